"""Whatever small Vision Transformer is drawn, and whichever exporter writes it: every attention is raised, and lowered
for every target, with PyTorch's numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from tests.graphs import dynamo, expected, legacy, parsed, run, types
from vitdeploy import passes, plugins, targets
from vitdeploy.graph.model import Graph
from vitdeploy.graph.onnx_session import compare
from vitdeploy.passes import order
from vitdeploy.session import Array

SIDE, GRID = 16, 4
"""Of the image in pixels, and in patches."""

WINDOWS, PER_WINDOW = 4, 4
"""The windows of a grid, and the patches in one."""

CLASSES = 5
LARGEST_RELATIVE_DIFFERENCE = 1e-4

DIALECTS = {plugins.find(targets, name, targets.Target)().dialect() for name in plugins.names(targets)}


@dataclass(frozen=True)
class Kind:
    """One way to write a Vision Transformer; `kinds` draws its fields."""

    packing: str
    scale: str
    einsum: bool
    mask: str
    norm: str
    heads: int
    size: int
    depth: int
    bias: bool
    layer_scale: bool
    class_token: bool
    shape: str
    exporter: str
    dynamic: bool


class Attention(nn.Module):
    """An attention as its `kind` writes it."""

    def __init__(self, kind: Kind, width: int, tokens: int) -> None:
        super().__init__()
        self.kind, self.tokens = kind, tokens
        if kind.packing == "three linears":
            self.q, self.k, self.v = (nn.Linear(width, width, kind.bias) for _ in range(3))
        else:
            self.qkv = nn.Linear(width, 3 * width, kind.bias)
        if kind.norm == "qk":
            self.q_norm, self.k_norm = nn.LayerNorm(kind.size), nn.LayerNorm(kind.size)
        self.proj = nn.Linear(width, width, kind.bias)
        inside = torch.arange(tokens)
        if kind.mask == "relative bias":
            self.table = nn.Parameter(torch.zeros(2 * tokens - 1, kind.heads))
            self.register_buffer("index", (inside[:, None] - inside[None, :] + tokens - 1).reshape(-1))
        if kind.mask in ("additive", "windows"):
            shape = (WINDOWS, tokens, tokens) if kind.mask == "windows" else (tokens, tokens)
            self.register_buffer("mask", 2 * torch.randn(shape, generator=torch.Generator().manual_seed(7)))
        if kind.mask == "boolean":
            self.register_buffer("mask", inside[:, None] < inside[None, :])

    def heads_of(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """q, k and v, each (batch, heads, tokens, size)."""
        kind = self.kind
        heads, size = kind.heads, kind.size
        batch, tokens, width = x.shape if kind.shape == "traced" else (-1, x.shape[1], x.shape[2])
        if kind.packing == "three linears":
            return tuple(f(x).reshape(batch, tokens, heads, size).transpose(1, 2) for f in (self.q, self.k, self.v))
        packed = self.qkv(x)
        if kind.packing == "(3, heads, size)":
            return packed.reshape(batch, tokens, 3, heads, size).permute(2, 0, 3, 1, 4).unbind(0)
        if kind.packing == "(3, heads, size), indexed":
            packed = packed.reshape(batch, tokens, 3, heads, size).permute(2, 0, 3, 1, 4)
            return packed[0], packed[1], packed[2]
        if kind.packing == "(heads, 3 size)":
            return packed.reshape(batch, tokens, heads, 3 * size).permute(0, 2, 1, 3).chunk(3, dim=-1)
        cut = packed.split(width, dim=-1)
        return tuple(t.reshape(batch, tokens, heads, size).transpose(1, 2) for t in cut)

    def bias(self) -> torch.Tensor | None:
        """What is added to the scores."""
        if self.kind.mask == "additive":
            return self.mask
        if self.kind.mask == "relative bias":
            table = self.table[self.index].reshape(self.tokens, self.tokens, -1)
            return table.permute(2, 0, 1).contiguous().unsqueeze(0)
        return None

    def masked(self, scores: torch.Tensor) -> torch.Tensor:
        """The scores with bias or mask."""
        kind, tokens = self.kind, self.tokens
        if kind.mask == "boolean":
            return scores.masked_fill(self.mask, float("-inf"))
        if kind.mask == "windows":
            by_window = scores.reshape(-1, WINDOWS, kind.heads, tokens, tokens)
            if kind.shape == "traced":
                by_window = scores.view(scores.shape[0] // WINDOWS, WINDOWS, kind.heads, tokens, tokens)
            return (by_window + self.mask.unsqueeze(1).unsqueeze(0)).reshape(-1, kind.heads, tokens, tokens)
        bias = self.bias()
        return scores if bias is None else scores + bias

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """(batch, heads, tokens, size)."""
        kind, factor = self.kind, self.kind.size**-0.5
        if kind.scale == "sdpa":
            mask = ~self.mask if kind.mask == "boolean" else self.bias()
            return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        if kind.scale in ("on q", "on both"):
            q = q * (factor if kind.scale == "on q" else math.sqrt(factor))
        if kind.scale in ("on k", "on both"):
            k = k * (factor if kind.scale == "on k" else math.sqrt(factor))
        scores = torch.einsum("bhid,bhjd->bhij", q, k) if kind.einsum else q @ k.transpose(-2, -1)
        if kind.scale == "after, product":
            scores = scores * factor
        elif kind.scale == "after, quotient":
            scores = scores / math.sqrt(kind.size)
        attention = self.masked(scores).softmax(dim=-1)
        return torch.einsum("bhij,bhjd->bhid", attention, v) if kind.einsum else attention @ v

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, tokens, width), or of windows."""
        q, k, v = self.heads_of(x)
        if self.kind.norm == "qk":
            q, k = self.q_norm(q), self.k_norm(k)
        merged = self.attend(q, k, v).transpose(1, 2)
        return self.proj(merged.reshape(x.shape) if self.kind.shape == "traced" else merged.flatten(2))


class Block(nn.Module):
    """Attention and MLP, each with its norm before or behind it, and its LayerScale."""

    def __init__(self, kind: Kind, width: int, tokens: int) -> None:
        super().__init__()
        self.kind = kind
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = Attention(kind, width, PER_WINDOW if kind.mask == "windows" else tokens)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width, kind.bias), nn.GELU(), nn.Linear(2 * width, width))
        if kind.layer_scale:
            self.gamma1, self.gamma2 = nn.Parameter(torch.ones(width)), nn.Parameter(torch.ones(width))

    def attended(self, x: torch.Tensor) -> torch.Tensor:
        """The attention over all tokens, or in windows of 2 x 2 patches."""
        if self.kind.mask != "windows":
            return self.attn(x)
        width = x.shape[-1]
        cut = x.reshape(-1, GRID // 2, 2, GRID // 2, 2, width).transpose(2, 3)
        y = self.attn(cut.reshape(-1, PER_WINDOW, width))
        return y.reshape(-1, GRID // 2, GRID // 2, 2, 2, width).transpose(2, 3).reshape(-1, GRID * GRID, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, tokens, width)."""
        gamma1, gamma2 = (self.gamma1, self.gamma2) if self.kind.layer_scale else (None, None)

        def scaled(y: torch.Tensor, gamma: Any) -> torch.Tensor:
            return y if gamma is None else y * gamma

        if self.kind.norm == "post":
            x = self.norm1(x + scaled(self.attended(x), gamma1))
            return self.norm2(x + scaled(self.mlp(x), gamma2))
        x = x + scaled(self.attended(self.norm1(x)), gamma1)
        return x + scaled(self.mlp(self.norm2(x)), gamma2)


class Vit(nn.Module):
    """Patches of 4 x 4, blocks, and a head on the mean token or on the class token."""

    def __init__(self, kind: Kind) -> None:
        super().__init__()
        width, tokens = kind.heads * kind.size, GRID * GRID + kind.class_token
        self.embed = nn.Conv2d(3, width, SIDE // GRID, SIDE // GRID)
        self.token = nn.Parameter(torch.zeros(1, 1, width)) if kind.class_token else None
        self.position = nn.Parameter(torch.zeros(1, tokens, width))
        self.blocks = nn.Sequential(*(Block(kind, width, tokens) for _ in range(kind.depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CLASSES)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits."""
        x = self.embed(image).flatten(2).transpose(1, 2)
        if self.token is not None:
            x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1)
        x = self.norm(self.blocks(x + self.position))
        return self.head(x[:, 0] if self.token is not None else x.mean(1))


def redrawn(module: nn.Module) -> nn.Module:
    """Matrices that keep the variance; norms, biases, LayerScale, tokens and tables of order 1."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                parameter.copy_(0.5 * noise + 0.5)
            else:
                table = name.endswith(("table", "token", "position"))
                parameter.copy_(noise if table else noise / parameter[0].numel() ** 0.5)
    return module.eval().requires_grad_(False)


PACKINGS = ["(3, heads, size)", "(3, heads, size), indexed", "(heads, 3 size)", "split", "three linears"]
SCALES = ["on q", "on k", "on both", "after, product", "after, quotient", "sdpa"]
EXPORTERS = {"dynamo 23": (dynamo, 23), "legacy 14": (legacy, 14), "legacy 17": (legacy, 17)}


@st.composite
def kinds(draw: st.DrawFn) -> Kind:
    scale = draw(st.sampled_from(SCALES))
    # The function takes a mask for all windows alike only.
    masks = ["none", "additive", "relative bias", "boolean", *(["windows"] if scale != "sdpa" else [])]
    mask = draw(st.sampled_from(masks))
    return Kind(
        packing=draw(st.sampled_from(PACKINGS)),
        scale=scale,
        einsum=draw(st.booleans()),
        mask=mask,
        norm=draw(st.sampled_from(["pre", "post", "qk"])),
        heads=draw(st.integers(1, 4)),
        size=draw(st.integers(4, 40)),
        depth=draw(st.integers(1, 2)),
        bias=draw(st.booleans()),
        layer_scale=draw(st.booleans()),
        class_token=mask != "windows" and draw(st.booleans()),
        shape=draw(st.sampled_from(["traced", "open"])),
        exporter=draw(st.sampled_from(list(EXPORTERS))),
        dynamic=draw(st.booleans()),
    )


def images(batch: int) -> Array:
    return np.random.default_rng(batch).standard_normal((batch, 3, SIDE, SIDE)).astype(np.float32)


def written(kind: Kind, module: nn.Module) -> bytes:
    write, opset = EXPORTERS[kind.exporter]
    return write(module, images(2 if kind.dynamic else 1), opset=opset, dynamic=kind.dynamic)


def difference(graph: Graph, module: nn.Module, batch: int) -> float:
    """The largest difference, relative to the largest number of the reference."""
    parity = compare(expected(module, images(batch)), run(graph, images(batch)), batch=batch)
    return parity.max_abs / parity.reference_max if parity.finite else math.inf


def copy(graph: Graph) -> Graph:
    return Graph(ir.from_proto(ir.to_proto(graph.model)))


def zero(graph: Graph, site: int) -> Graph:
    """Return the graph with one attention that gives zeros."""
    core = [node for node in graph.nodes if node.op_type == "Attention"][site]
    tape, old = ir.tape.Tape(), core.outputs[0]
    nothing = tape.initializer(ir.tensor(np.zeros((), np.float32), name=f"{core.name}/nothing"))
    graph.model.graph.register_initializer(nothing)
    readers = list(old.uses())
    zeroed = tape.op("Mul", [old, nothing], name=f"{core.name}/zeroed")
    graph.model.graph.insert_after(core, tape.nodes)
    for use in readers:
        use.node.replace_input_with(use.idx, zeroed)
    return graph


def check(kind: Kind) -> None:
    """Raise, fold, and lower for every dialect, and check that a lost attention is noticed."""
    module = redrawn(Vit(kind))
    batches = (1, 3) if kind.dynamic else (1,)
    graph = parsed(written(kind, module))
    records = {record.name: record for record in passes.run([*order.raising(), *order.folding()], graph)}
    assert records["raise-attention"].refused == ()
    assert (types(graph).count("Attention"), types(graph).count("Softmax")) == (kind.depth, 0)
    assert records["fold-layer-scale"].fired == 2 * kind.depth * kind.layer_scale
    # A normalised query has no linear to take the scale.
    assert records["fold-attention-scale"].fired == (0 if kind.norm == "qk" else kind.depth)
    assert max(difference(graph, module, batch) for batch in batches) <= LARGEST_RELATIVE_DIFFERENCE
    for site in range(kind.depth):
        assert difference(zero(copy(graph), site), module, 1) > LARGEST_RELATIVE_DIFFERENCE
    for dialect in DIALECTS:
        lowered = copy(graph)
        records = {record.name: record for record in passes.run(order.lowering(dialect), lowered)}
        (lowering,) = (records[name] for name in ("lower-multihead", "lower-primitives") if name in records)
        assert (lowering.fired, lowering.refused) == (kind.depth, ())
        assert "Attention" not in types(lowered)
        assert max(difference(lowered, module, batch) for batch in batches) <= LARGEST_RELATIVE_DIFFERENCE


SHIFTED_WINDOWS = Kind(
    packing="(3, heads, size)", scale="on q", einsum=False, mask="windows", norm="pre", heads=3, size=7, depth=2,
    bias=True, layer_scale=False, class_token=False, shape="traced", exporter="legacy 17", dynamic=True,
)  # fmt: skip


@settings(max_examples=24, derandomize=True, deadline=None, database=None)
@example(kind=SHIFTED_WINDOWS)
@given(kind=kinds())
def test_every_vit_is_raised_and_lowered(kind: Kind) -> None:
    check(kind)
