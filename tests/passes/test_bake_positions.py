"""Rotary positions become products with constants, whatever operators they consist of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.graphs import apply, images, redrawn, run, tiny_vit
from tests.toys.lowered import eva, lower
from vitdeploy.graph.model import Graph
from vitdeploy.graph.risky_forms import find_risky_forms
from vitdeploy.passes.bake_positions import BakePositions
from vitdeploy.passes.remove_dead import RemoveDead

WIDTH, HEADS, TOKENS, SIZE = 32, 2, 16, 16


def halves(x: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat([-second, first], -1)


def pairs(x: Tensor) -> Tensor:
    return torch.stack([-x[..., 1::2], x[..., ::2]], -1).reshape(x.shape)


def both(turn: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda x, cos, sin: x * cos + turn(x) * sin


def complex_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """As a product of complex numbers is written out: no sign changes, but a difference."""
    even, odd, c, s = x[..., ::2], x[..., 1::2], cos[..., ::2], sin[..., ::2]
    return torch.stack([even * c - odd * s, even * s + odd * c], -1).reshape(x.shape)


def partial(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Half of the channels, of all tokens but the first."""
    turned = x[:, :, 1:, :8] * cos[1:, :8] + halves(x[:, :, 1:, :8]) * sin[1:, :8]
    return torch.cat([x[:, :, :1], torch.cat([turned, x[:, :, 1:, 8:]], -1)], 2)


def image_angles(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return x * (cos + x[:, :, :1, :1]) + halves(x) * sin


def mixing(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Each token gets its neighbour's numbers too."""
    return x * cos + halves(x.roll(1, 2)) * sin


class Rotated(nn.Module):
    """One attention, whose queries and keys `rotate` turns."""

    def __init__(self, rotate: Callable[..., Tensor]) -> None:
        super().__init__()
        self.embed, self.out = nn.Conv2d(3, WIDTH, 8, 8), nn.Linear(WIDTH, WIDTH)
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        angles = torch.rand(TOKENS, SIZE, generator=torch.Generator().manual_seed(0))
        self.register_buffer("sin", angles.sin())
        self.register_buffer("cos", angles.cos())
        self.rotate = rotate

    def forward(self, image: Tensor) -> Tensor:
        x = self.embed(image).flatten(2).transpose(1, 2)
        q, k, v = (linear(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for linear in (self.q, self.k, self.v))
        q, k = (self.rotate(value, self.cos, self.sin) for value in (q, k))
        return self.out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


ROTATIONS: dict[str, Any] = {
    "halves": both(halves), "pairs": both(pairs), "complex": complex_pairs, "partial": partial,
}  # fmt: skip


def operators(graph: Graph) -> set[str]:
    return {node.op_type for node in graph.nodes}


@pytest.mark.parametrize("kind", ["fp32", "fp16"])
@pytest.mark.parametrize("name", list(ROTATIONS))
def test_any_rotation_becomes_three_products(name: str, kind: str) -> None:
    x = images()
    graph, structure = lower(redrawn(Rotated(ROTATIONS[name])), x, kind)
    before = run(graph, x)["output_0"]
    result = apply(BakePositions(), graph)
    assert (result.fired, result.refused) == (2, {})
    apply(RemoveDead(), graph)
    assert not operators(graph) & {"Neg", "Sub", "Concat", "Slice", "Split"}
    assert "rotary positions" not in find_risky_forms(graph, structure)
    after = run(graph, x)["output_0"]
    assert np.abs(after - before).max() <= (1e-6 if kind == "fp32" else 5e-3) * np.abs(before).max()
    assert apply(BakePositions(), graph).fired == 0


def test_equal_tables_of_all_blocks_are_stored_once() -> None:
    graph, _ = lower(eva(), images())
    assert apply(BakePositions(), graph).fired == 4
    apply(RemoveDead(), graph)
    tables = [name for name in graph.model.graph.initializers if "/rotate_" in name]
    assert sorted(name.rpartition("/")[2] for name in tables) == ["cosines", "sines", "swap"]


def test_the_class_token_is_not_turned() -> None:
    graph, _ = lower(eva(), images(), "fp32")
    apply(BakePositions(), graph)
    tables = {name.rpartition("/")[2]: value for name, value in graph.model.graph.initializers.items()}
    cosines, sines = (tables[name].const_value.numpy() for name in ("cosines", "sines"))  # type: ignore[union-attr]
    assert cosines.shape == sines.shape == (17, 16)
    assert (cosines[0] == 1).all() and (sines[0] == 0).all()
    assert np.allclose(cosines**2 + sines**2, 1, atol=1e-6)


def test_a_varying_batch_keeps_varying() -> None:
    x = images(3)
    graph, _ = lower(redrawn(Rotated(both(halves))), images(2), dynamic=True)
    before = run(graph, x)["output_0"]
    assert apply(BakePositions(), graph).fired == 2
    after = run(graph, x)["output_0"]
    assert np.abs(after - before).max() <= 5e-3 * np.abs(before).max()


@pytest.mark.parametrize(("rotate", "reason"), [(mixing, "its tokens are not turned each by itself")])
def test_what_is_no_rotation_is_refused(rotate: Callable[..., Tensor], reason: str) -> None:
    graph, _ = lower(redrawn(Rotated(rotate)), images(), "fp32")
    result = apply(BakePositions(), graph)
    assert result.fired == 0
    assert set(result.refused.values()) == {reason}


def test_angles_that_depend_on_the_image_are_left_alone() -> None:
    graph, _ = lower(redrawn(Rotated(image_angles)), images(), "fp32")
    before = operators(graph)
    assert apply(BakePositions(), graph).fired == 0
    assert operators(graph) == before


def test_a_vit_without_rotations_is_left_alone() -> None:
    graph, _ = lower(tiny_vit(), images())
    result = apply(BakePositions(), graph)
    assert (result.fired, result.refused) == (0, {})
