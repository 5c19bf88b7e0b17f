"""Blocks end where the residual stream is one tensor, whatever the order of norms and sums."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from tests.graphs import WIDTH, dynamo, images, raised, redrawn, tokens
from tests.toys.lowered import Depth, lower
from vitdeploy.graph.blocks import Part, find_blocks, find_parts
from vitdeploy.graph.extra_outputs import tensors_between, with_outputs
from vitdeploy.graph.model import Graph
from vitdeploy.session import Array


class Encoder(nn.Module):
    """PyTorch's own encoder with a head."""

    def __init__(self, *, norm_first: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 64, batch_first=True, norm_first=norm_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.position = nn.Parameter(torch.zeros(1, 17, WIDTH))
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, tokens, channels) to (batch, classes)."""
        return self.head(self.encoder(x + self.position).mean(1))


class Parallel(nn.Module):
    """As in ViT-22B, attention and MLP read one norm and are added together; the stream is an output too."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.qkv = nn.ModuleList(nn.Linear(WIDTH, 3 * WIDTH) for _ in range(2))
        self.proj = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))
        self.fc1 = nn.ModuleList(nn.Linear(WIDTH, 64) for _ in range(2))
        self.fc2 = nn.ModuleList(nn.Linear(64, WIDTH) for _ in range(2))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Tokens in; tokens after each block out."""
        x, streams = x * 1.5, []
        for norm, qkv, proj, fc1, fc2 in zip(self.norms, self.qkv, self.proj, self.fc1, self.fc2, strict=True):
            y = norm(x)
            q, k, v = (t.unflatten(-1, (2, -1)).transpose(1, 2) for t in qkv(y).chunk(3, -1))
            attended = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            x = x + proj(attended) + fc2(nn.functional.gelu(fc1(y)))
            streams.append(x)
        return streams[-1], streams[0]


def swin() -> nn.Module:
    from timm.models.swin_transformer import SwinTransformer

    sizes: dict[str, Any] = {"img_size": 32, "patch_size": 4, "window_size": 4, "embed_dim": 16}
    return SwinTransformer(**sizes, depths=(2, 2), num_heads=(2, 4), num_classes=10)


def found(module: nn.Module, x: Array) -> list[Part]:
    graph, structure, _ = raised(dynamo(redrawn(module), x))
    return find_parts(graph, structure)


def test_norms_before(exported: Callable[[str], bytes]) -> None:
    for kind in ("dynamo", "dynamo-batch", "legacy-17"):
        graph, structure, _ = raised(exported(kind))
        stem, *blocks, head = find_parts(graph, structure)
        assert [(p.block, len(p.spots)) for p in blocks] == [(0, 9), (1, 9)], kind
        assert [p.start for p in (*blocks, head)] == [p.end for p in (stem, *blocks)]
        assert [s.kind for s in blocks[0].spots] == [
            "norm", "values", "attention", "linear", "sum", "norm", "linear", "linear", "sum",
        ]  # fmt: skip
        assert [s.layer for s in head.spots][-1] == "head"
        assert head.end == "output_0"


def test_the_end_is_what_the_next_norm_reads(exported: Callable[[str], bytes]) -> None:
    graph, structure, _ = raised(exported("dynamo"))
    by_tensor = {v.name: v for node in graph.nodes for v in node.outputs}
    for part in find_parts(graph, structure)[:-1]:
        readers = {use.node.op_type for use in by_tensor[part.end].uses()}
        assert "LayerNormalization" in readers
        assert by_tensor[part.end].producer().op_type == "Add"


@pytest.mark.parametrize("norm_first", [True, False])
def test_pytorchs_encoder_with_norms_before_or_behind(norm_first: bool) -> None:
    stem, *blocks, head = found(Encoder(norm_first=norm_first), tokens())
    assert [p.name for p in blocks] == ["encoder.layers.0", "encoder.layers.1"]
    assert all(p.spots[-1].kind == "sum" for p in blocks)
    norms = [s.layer for s in blocks[1].spots if s.kind == "norm"]
    # With norms behind, the block ends at the sum, and its last norm is the first spot of the next part.
    first = "encoder.layers.1.norm1" if norm_first else "encoder.layers.0.norm2"
    assert (norms[0], stem.name, head.name) == (first, "stem", "head")


def test_stages_with_merging_between() -> None:
    found_parts = found(swin(), images(1))
    names = [f"layers.{stage}.blocks.{number}" for stage in (0, 1) for number in (0, 1)]
    assert [p.name for p in found_parts] == ["stem", *names[:2], "layers.1.downsample", *names[2:], "head"]
    assert [p.block for p in found_parts] == [None, 0, 1, None, 2, 3, None]
    assert all(p.spots[-1].kind == "sum" for p in found_parts if p.block is not None)
    assert [s.layer for s in found_parts[3].spots] == ["layers.1.downsample.norm", "layers.1.downsample.reduction"]
    assert found_parts[0].spots[-1].kind == "norm"


def test_branches_in_parallel_and_streams_that_are_outputs() -> None:
    stem, *blocks = found(Parallel(), tokens())
    assert [p.block for p in blocks] == [0, 1]
    assert [p.end for p in blocks] == ["output_1", "output_0"]
    assert stem.name == "stem"


def test_a_spot_reads_the_nearest_above(exported: Callable[[str], bytes]) -> None:
    graph, structure, _ = raised(exported("dynamo"))
    block = find_parts(graph, structure)[1]
    reads = {spot.layer: spot.reads for spot in block.spots}
    tensors = {spot.layer: spot.tensor for spot in block.spots}
    assert reads["blocks.0.norm1"] == (block.start,)
    assert set(reads["blocks.0 (sum 1)"]) == {block.start, tensors["blocks.0.attn.proj"]}
    assert reads["blocks.0.mlp.fc2"] == (tensors["blocks.0.mlp.fc1"],)
    assert set(reads["blocks.0 (sum 2)"]) == {tensors["blocks.0 (sum 1)"], tensors["blocks.0.mlp.fc2"]}


def test_without_attention_it_is_one_part() -> None:
    [part] = found(nn.Sequential(nn.Linear(WIDTH, 8), nn.GELU(), nn.Linear(8, 3)), tokens())
    assert (part.name, part.start, part.end) == ("model", "input", "output_0")
    assert [s.kind for s in part.spots] == ["linear", "linear"]


def test_watched_tensors_are_given_and_missing_ones_left_out(exported: Callable[[str], bytes], tmp_path: Any) -> None:
    graph, structure, _ = raised(exported("dynamo"))
    _, block, *_ = find_parts(graph, structure)
    path = tmp_path / "watched.onnx"
    assert with_outputs(graph, [block.end, "nowhere", "output_0"], path) == {block.end, "output_0"}
    assert [o.name for o in onnx.load(path).graph.output] == ["output_0", block.end]
    assert len(graph.model.graph.outputs) == 1, "the graph that was given stays as it was"
    inside = tensors_between(path, block.start, block.end)
    assert inside[-1] == block.end
    assert block.start not in inside
    assert {spot.tensor for spot in block.spots} <= set(inside)
    assert isinstance(graph, Graph)
    assert np.all([name in tensors_between(path, "input", block.end) for name in inside])


def test_blocks_share_no_node_even_if_a_head_reads_several() -> None:
    graph, structure = lower(Depth(), images())
    blocks = find_blocks(graph, structure)
    assert [block.number for block in blocks] == [0, 1, 2, 3]
    nodes = [name for block in blocks for name in block.nodes]
    assert len(set(nodes)) == len(nodes)
    for block, site in zip(blocks, structure.attention, strict=True):
        assert set(site.nodes) <= block.nodes
