"""A Gather by a table of places becomes moves, or a Gather by a vector."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from tests.graphs import apply, parsed, run, types
from vitdeploy.graph.model import Graph
from vitdeploy.passes.raise_unfold import RaiseUnfold


def gathering(shape: Sequence[int | str], indices: Sequence[Sequence[int]], axis: int) -> Graph:
    """A graph that gathers from `x` by a table."""
    table = np.array(indices)
    numbers = ", ".join(map(str, table.reshape(-1)))
    sizes, places = ", ".join(map(str, shape)), ", ".join(map(str, table.shape))
    after = ", ".join(map(str, [*shape[:axis], *table.shape, *shape[axis + 1 :]]))
    return parsed(
        f'<ir_version: 9, opset_import: ["" : 20]> unfold (float[{sizes}] x) => (float[{after}] y) '
        f"<int64[{places}] table = {{{numbers}}}> {{ y = Gather<axis = {axis}>(x, table) }}"
    )


@pytest.mark.parametrize("batch", [2, "batch"])
@pytest.mark.parametrize(
    ("indices", "axis", "operators"),
    [
        ([[0, 2, 4], [1, 3, 5]], 2, ["Reshape", "Transpose"]),  # kernel 2, stride 2: the place in a patch first
        ([[0, 1], [2, 3], [4, 5]], 2, ["Reshape", "Transpose"]),
        ([[0, 3], [1, 4], [2, 5]], 2, ["Reshape", "Transpose"]),
        ([[0, 2, 4], [1, 3, -1]], 2, ["Reshape", "Transpose"]),  # -1 is the last place
        ([[0, 1, 2, 3], [1, 2, 3, 4], [2, 3, 4, 5]], 2, ["Gather", "Reshape"]),  # patches that overlap
        ([[0, 2], [1, 3]], 2, ["Gather", "Reshape"]),  # a patch that is cut off
        ([[5, 4, 3], [2, 1, 0]], 2, ["Gather", "Reshape"]),  # backwards
        ([[0], [1], [2], [3]], 3, ["Reshape", "Transpose"]),  # one column
    ],
)
def test_it_moves_the_same_numbers(batch: int | str, indices: list[list[int]], axis: int, operators: list[str]) -> None:
    shape = (batch, 3, 6, 4)
    graph = gathering(shape, indices, axis)
    x = np.arange(2 * 3 * 6 * 4, dtype=np.float32).reshape(2, 3, 6, 4)
    assert apply(RaiseUnfold(), graph).fired == 1
    assert [*types(graph)] == operators
    assert np.array_equal(run(graph, x)["y"], np.take(x, indices, axis))
    assert apply(RaiseUnfold(), graph).fired == 0


def test_a_vector_and_computed_indices_stay() -> None:
    graph = parsed(
        '<ir_version: 9, opset_import: ["" : 20]> vit (float[2,6] x, int64[2,2] i) => (float[2,2,2] y, float[2,2] z) '
        "<int64[2] some = {1, 3}> { y = Gather<axis = 1>(x, i) z = Gather<axis = 1>(x, some) }"
    )
    assert apply(RaiseUnfold(), graph).fired == 0
