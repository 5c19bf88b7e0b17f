"""The structure of a model is the same from every exporter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.conftest import EXPORTS
from tests.graphs import HEADS, SIZE, TOKENS, WIDTH, Site, images, legacy, parsed, raised, redrawn, tokens
from vitdeploy.errors import GraphError
from vitdeploy.graph import structure as structures
from vitdeploy.graph.recognize import recognize
from vitdeploy.graph.structure import AttentionSite, Structure

BLOCK = ["qkv", "proj", "fc1", "fc2"]


@pytest.mark.parametrize("kind", EXPORTS)
def test_a_vit_reads_the_same_from_every_exporter(kind: str, exported: Callable[[str], bytes]) -> None:
    _, structure, _ = raised(exported(kind))
    assert [linear.role for linear in structure.linears] == ["patch", *BLOCK, *BLOCK, "head"]
    assert [linear.block for linear in structure.linears] == [None, *[0] * 4, *[1] * 4, None]
    shapes = [(WIDTH, 3 * WIDTH), (WIDTH, WIDTH), (WIDTH, 4 * WIDTH), (4 * WIDTH, WIDTH)]
    assert [linear.weight for linear in structure.linears] == [(WIDTH, 3, 8, 8), *shapes, *shapes, (WIDTH, 10)]
    assert [(s.block, s.heads, s.head_size, s.tokens) for s in structure.attention] == [
        (0, HEADS, SIZE, TOKENS),
        (1, HEADS, SIZE, TOKENS),
    ]
    assert [(s.key_tokens, s.value_size, s.bias) for s in structure.attention] == [(TOKENS, SIZE, None)] * 2
    assert [linear.size for linear in structure.linears] == [(3 * 8 * 8, WIDTH), *shapes, *shapes, (WIDTH, 10)]
    assert [linear.rows for linear in structure.linears] == [TOKENS - 1, *[TOKENS] * 8, 1]
    assert [s.windows for s in structure.attention] == [1, 1]
    assert len(structure.norms) == 5
    name = "blocks/blocks.{}/attn" if kind.startswith("legacy") else "blocks.{}.attn"
    assert [s.name for s in structure.attention] == [name.format(n) for n in (0, 1)]


class Mlp(nn.Module):
    """An attention with its own q, k and v, an MLP and a head."""

    def __init__(self, activation: nn.Module, gated: bool = False) -> None:
        super().__init__()
        self.attn = Site(lambda q, k, v, x: (q @ k.transpose(-2, -1)).softmax(-1) @ v)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(WIDTH) for _ in range(3))
        self.fc1, self.fc2, self.head = nn.Linear(WIDTH, 64), nn.Linear(64, WIDTH), nn.Linear(WIDTH, 10)
        self.gate = nn.Linear(WIDTH, 64) if gated else None
        self.act = activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.norm1(x))
        y = self.norm2(x)
        hidden = self.act(self.fc1(y)) if self.gate is None else self.act(self.fc1(y)) * self.gate(y)
        return self.head(self.norm3(x + self.fc2(hidden))[:, 0])


class QuickGelu(nn.Module):
    """CLIP's activation."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(1.702 * x)


@pytest.mark.parametrize(
    "activation", [nn.GELU(), nn.GELU(approximate="tanh"), nn.ReLU(), nn.SiLU(), nn.Hardswish(), QuickGelu()], ids=str
)
def test_an_mlp_is_found_however_its_activation_is_written(activation: nn.Module) -> None:
    _, structure, _ = raised(legacy(redrawn(Mlp(activation)), tokens(), opset=17))
    assert [linear.role for linear in structure.linears] == ["qkv", "qkv", "qkv", "proj", "fc1", "fc2", "head"]
    assert [linear.block for linear in structure.linears] == [0] * 6 + [None]


def test_both_linears_of_a_gate_are_fc1() -> None:
    _, structure, _ = raised(legacy(redrawn(Mlp(nn.SiLU(), gated=True)), tokens()))
    assert [linear.role for linear in structure.linears][3:] == ["proj", "fc1", "fc1", "fc2", "head"]


class MixMlp(nn.Module):
    """SegFormer's MLP, with a depthwise convolution before the activation, and a head of two linears."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(WIDTH, 64), nn.Linear(64, WIDTH)
        self.mix = nn.Conv1d(64, 64, 3, padding=1, groups=64)
        self.norm, self.hidden, self.scores = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 16), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.mix(self.fc1(x).transpose(1, 2)).transpose(1, 2)
        x = self.norm(x + self.fc2(nn.functional.gelu(y)))
        return self.scores(self.hidden(x[:, 0]).relu()).sigmoid()


def test_a_depthwise_convolution_within_an_mlp_and_an_activation_behind_a_head() -> None:
    _, structure, _ = raised(legacy(redrawn(MixMlp()), tokens()))
    assert [linear.role for linear in structure.linears] == ["fc1", "fc2", "fc1", "head"]


class Stem(nn.Module):
    """Convolutions that do and do not embed patches."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.point, self.patch = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 8, 4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.patch(self.point(self.mix(x)))


def test_only_a_convolution_over_patches_or_one_position_is_a_linear() -> None:
    _, structure, _ = raised(legacy(redrawn(Stem()), images()))
    assert [(linear.role, linear.weight, linear.channels_first) for linear in structure.linears] == [
        ("other", (3, 3), True),
        ("patch", (8, 3, 4, 4), False),
    ]


def test_it_is_stored_for_devices_without_onnx(tmp_path: Path, exported: Callable[[str], bytes]) -> None:
    _, structure, _ = raised(exported("dynamo"))
    structure.save(tmp_path / "sites.json")
    assert structures.load(tmp_path / "sites.json") == structure


def test_locate_attention_finds_the_nodes_of_each_site() -> None:
    sites: Any = (
        AttentionSite(name="blocks.1", nodes=("x",), block=0),
        AttentionSite(name="gone", nodes=("y",), block=1),
    )
    names = ["blocks.1/Attention/qk", "blocks.1/Attention", "blocks.11/Attention/qk", "blocks.1/AttentionPool"]
    located = Structure(attention=sites, linears=(), norms=()).locate_attention(names)
    assert [site.nodes for site in located.attention] == [("blocks.1/Attention/qk", "blocks.1/Attention"), ("y",)]


def test_the_size_of_a_gemm_is_in_the_order_of_the_product() -> None:
    text = """<ir_version: 9, opset_import: ["" : 23]> g (float[2, 4] x) => (float[2, 6] y)
    { y = Gemm <transB = 1> (x, w) }"""
    [linear] = recognize(parsed(text, w=np.ones((6, 4), np.float32)), {}).linears
    assert (linear.weight, linear.size) == ((6, 4), (4, 6))


@pytest.mark.parametrize(
    ("signature", "attribute", "bias"),
    [
        ("float[1, 2, 5, 5] b", "", "bias"),
        ("float[4, 2, 5, 5] b", "", "window bias"),
        ("bool[5, 5] b", "", "mask"),
        ("float[1] b", "<is_causal = 1>", "causal"),
    ],
)
def test_what_is_added_to_the_scores_and_how_many_windows_there_are(signature: str, attribute: str, bias: str) -> None:
    read = "x, x, x" if attribute else "x, x, x, b"
    text = f"""<ir_version: 9, opset_import: ["" : 23]> g (float[1, 3, 8, 8] image, float[4, 2, 5, 8] x, {signature})
    => (float[4, 2, 5, 8] y) {{ y = Attention {attribute} ({read}) }}"""
    [site] = recognize(parsed(text), {}).attention
    assert (site.bias, site.windows, site.tokens, site.key_tokens) == (bias, 4, 5, 5)


def test_control_flow_is_refused_by_name() -> None:
    text = """<ir_version: 9, opset_import: ["" : 23]> g (bool c, float[1] x) => (float[1] y)
    { y = If (c) <then_branch = a () => (float[1] t) { t = Relu (x) },
                  else_branch = b () => (float[1] e) { e = Abs (x) }> }"""
    with pytest.raises(GraphError, match=r"node 'If\.0' is If"):
        recognize(parsed(text), {})
