"""Forms of graph that a compiler is reported to compute wrongly: in the graphs that TensorRT gets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.detectors import Detector
from tests.graphs import dynamo, parsed, redrawn, refusals, tiny_vit
from vitdeploy import passes
from vitdeploy.graph.model import Graph
from vitdeploy.graph.recognize import recognize
from vitdeploy.graph.regions import assign_regions
from vitdeploy.graph.risky_forms import find_risky_forms
from vitdeploy.graph.structure import Structure
from vitdeploy.passes import order
from vitdeploy.quantize.half import convert
from vitdeploy.recipe import TargetSpec
from vitdeploy.targets import find

WIDTH, HEADS, TOKENS = 32, 2, 16


class Rotated(nn.Module):
    """One attention whose q and k are rotated by their position, in either order of the pairs; `rotates` or not."""

    def __init__(self, *, rotates: bool, interleaved: bool = False) -> None:
        super().__init__()
        self.embed, self.out = nn.Conv2d(3, WIDTH, 8, 8), nn.Linear(WIDTH, WIDTH)
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        angles = torch.rand(TOKENS, WIDTH // HEADS)
        self.register_buffer("sin", angles.sin())
        self.register_buffer("cos", angles.cos())
        self.rotates, self.interleaved = rotates, interleaved

    def rotate(self, x: Tensor) -> Tensor:
        if not self.rotates:
            return x * self.cos + x.flip(-1) * self.sin
        if self.interleaved:
            turned = torch.stack([-x[..., 1::2], x[..., ::2]], -1).reshape(x.shape)
        else:
            first, second = x.chunk(2, -1)
            turned = torch.cat([-second, first], -1)
        return x * self.cos + turned * self.sin

    def forward(self, image: Tensor) -> Tensor:
        x = self.embed(image).flatten(2).transpose(1, 2)
        q, k, v = (linear(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for linear in (self.q, self.k, self.v))
        attended = functional.scaled_dot_product_attention(self.rotate(q), self.rotate(k), v)
        return self.out(attended.transpose(1, 2).flatten(2))


class Refined(nn.Module):
    """A tiny ViT's features as a map that is enlarged `steps` times."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.embed, self.steps = nn.Conv2d(3, WIDTH, 8, 8), steps
        self.convolutions = nn.ModuleList(nn.Conv2d(WIDTH, WIDTH, 3, padding=1) for _ in range(steps))

    def forward(self, image: Tensor) -> Tensor:
        x = self.embed(image)
        for convolution in self.convolutions:
            x = convolution(functional.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=True))
        return x


def lowered(module: nn.Module, *, half: bool = False, packed_qkv: bool = False) -> tuple[Graph, Structure]:
    image = np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32)
    graph = parsed(dynamo(redrawn(module), image))
    records = passes.run([*order.raising(1), *order.folding(packed_qkv=packed_qkv)], graph)
    structure = assign_regions(graph, recognize(graph, refusals(records, "raise-attention")))
    if half:
        convert(graph)
    passes.run(order.lowering(find(TargetSpec(kind="tensorrt")).dialect()), graph)
    return graph, structure.locate_attention(node.name or "" for node in graph.nodes)


def forms(module: nn.Module, **options: Any) -> set[str]:
    return set(find_risky_forms(*lowered(module, **options)))


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotary_positions(*, interleaved: bool) -> None:
    assert "rotary positions" in forms(Rotated(rotates=True, interleaved=interleaved))


def test_other_factors_on_q_and_k_are_no_rotation() -> None:
    assert "rotary positions" not in forms(Rotated(rotates=False))
    assert "rotary positions" not in forms(tiny_vit())


def test_separate_and_packed_qkv() -> None:
    assert "separate q, k, v" in forms(tiny_vit())
    assert "separate q, k, v" not in forms(tiny_vit(), packed_qkv=True)


@pytest.mark.parametrize("selects", [False, True])
def test_detectors(*, selects: bool) -> None:
    assert forms(Detector(selects=selects)) == {"detector", "separate q, k, v"}
    half = forms(Detector(selects=selects), half=True)
    assert half == {"detector", "separate q, k, v", "float16 norm", "float16 decoder"}


def test_a_classifier_in_float16_has_no_decoder() -> None:
    assert forms(tiny_vit(), half=True) == {"separate q, k, v", "float16 norm"}


@pytest.mark.parametrize(("steps", "is_refined"), [(2, False), (3, True)])
def test_maps_that_are_refined_step_by_step(steps: int, *, is_refined: bool) -> None:
    assert ("refined maps" in forms(Refined(steps))) is is_refined
