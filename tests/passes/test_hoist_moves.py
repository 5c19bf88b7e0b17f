"""Equal Transposes behind a Split become one before it."""

from __future__ import annotations

import numpy as np
import pytest

from tests.graphs import apply, parsed, run, types
from vitdeploy.passes.hoist_moves import HoistMoves

X = np.random.default_rng(0).standard_normal((2, 3, 8, 5)).astype(np.float32)
SIZES = np.array([2, 2, 4])
SPLIT = "q, k, v = Split<axis = 2>(x, sizes)"
TURN = "t{0} = Transpose<perm = [0, 1, 3, 2]>({0})"


def vit(body: str) -> str:
    return f'<ir_version: 10, opset_import: ["" : 20]> vit (float[2,3,8,5] x) => (float y) {{ {body} }}'


def test_the_transposes_of_q_k_and_v_become_one() -> None:
    body = f"{SPLIT} {' '.join(map(TURN.format, 'qkv'))} y = Concat<axis = -1>(tv, tq, tk)"
    graph = parsed(vit(body), sizes=SIZES)
    reference = run(graph, X)["y"]
    assert apply(HoistMoves(), graph).fired == 1
    assert types(graph) == ["Transpose", "Split", "Concat"]
    assert np.array_equal(run(graph, X)["y"], reference)


def test_slices_are_parts_too() -> None:
    """As PyTorch's older exporter writes `chunk`."""
    slices = " ".join(
        f"{part} = Slice(x, {first}, {last}, axis)" for part, first, last in zip("qkv", "acd", "cde", strict=True)
    )
    body = f"{slices} {' '.join(map(TURN.format, 'qkv'))} y = Concat<axis = -1>(tv, tq, tk)"
    bounds = {name: np.array([number]) for name, number in zip("acde", (0, 2, 4, 8), strict=True)}
    graph = parsed(vit(body), **bounds, axis=np.array([-2]))
    reference = run(graph, X)["y"]
    assert apply(HoistMoves(), graph).fired == 1
    assert types(graph) == ["Transpose", "Slice", "Slice", "Slice", "Concat"]
    assert np.array_equal(run(graph, X)["y"], reference)


def test_a_part_that_is_an_output_keeps_its_name() -> None:
    graph = parsed(
        vit(
            "q, k = Split<axis = -2, num_outputs = 2>(x) " + TURN.format("q") + " y = Transpose<perm = [0, 1, 3, 2]>(k)"
        )
    )
    reference = run(graph, X)["y"]
    assert apply(HoistMoves(), graph).fired == 1
    assert np.array_equal(run(graph, X)["y"], reference)


@pytest.mark.parametrize(
    "tail",
    [
        f"{TURN.format('q')} {TURN.format('k')} tv = Transpose<perm = [0, 2, 1, 3]>(v) r = Relu(tv)",  # v differs
        f"{TURN.format('q')} {TURN.format('k')} {TURN.format('v')} r = Relu(v)",  # v is read twice
        f"{TURN.format('q')} {TURN.format('k')} r = Relu(v)",  # v is not turned
        f"{TURN.format('q')} {TURN.format('k')} {TURN.format('v')} r = Relu(x)",  # the whole is read twice
    ],
)
def test_leaves_other_parts_alone(tail: str) -> None:
    graph = parsed(
        vit(f"{SPLIT} {tail} s = ReduceSum(r) u = ReduceSum(tq) w = ReduceSum(tk) z = Add(u, w) y = Add(z, s)"),
        sizes=SIZES,
    )
    before = types(graph)
    assert apply(HoistMoves(), graph).fired == 0
    assert types(graph) == before


def test_leaves_a_slice_along_a_computed_axis_alone() -> None:
    body = "first = Slice(x, a, c, axis) t = Transpose<perm = [0, 1, 3, 2]>(first) y = Relu(t)"
    text = vit("axis = Shape<start = 0, end = 1>(x) " + body)
    graph = parsed(text, a=np.array([0]), c=np.array([2]))
    assert apply(HoistMoves(), graph).fired == 0
