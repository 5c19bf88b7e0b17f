"""Chains of moves become the shortest chain that gives the same numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.graphs import apply, parsed, run, types
from vitdeploy.graph.model import Graph
from vitdeploy.passes.merge_moves import MergeMoves

Move = tuple[str, tuple[int, ...]]


def chain(shape: tuple[int | str, ...], moves: list[Move], *, reader: bool = False) -> Graph:
    """A graph of Reshapes and Transposes; `reader`: something else reads the first result."""
    nodes, constants, value = [], {}, "x"
    for number, (op_type, numbers) in enumerate(moves):
        output = f"v{number}"
        if op_type == "Transpose":
            nodes.append(f"{output} = Transpose<perm = {list(numbers)}>({value})")
        else:
            constants[f"c{number}"] = np.array(numbers, np.int64)
            nodes.append(f"{output} = {op_type}({value}, c{number})")
        value = output
    more = " r = Relu(v0)" if reader else ""
    sizes = ",".join(map(str, shape))
    return parsed(
        f'<ir_version: 10, opset_import: ["" : 20]> vit (float[{sizes}] x) => (float y{", float r" if reader else ""}) '
        f"{{ {' '.join(nodes)} y = Neg({value}){more} }}",
        **constants,
    )


def numbers(shape: tuple[int | str, ...], batch: int = 2) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    sizes = [n if isinstance(n, int) else batch for n in shape]
    return np.arange(math.prod(sizes), dtype=np.float32).reshape(sizes)


R, T, U, S = "Reshape", "Transpose", "Unsqueeze", "Squeeze"
CASES: dict[str, tuple[tuple[int | str, ...], list[Move], list[Move]]] = {
    "heads merged with the batch": (
        (5, 2, 6),
        [(R, (5, 4, 3)), (T, (1, 0, 2)), (R, (2, 2, 5, 3))],
        [(R, (5, 2, 2, 3)), (T, (1, 2, 0, 3))],
    ),
    "tokens first, one image": (
        (5, 1, 6),
        [(R, (5, 2, 3)), (T, (1, 0, 2)), (R, (1, 2, 5, 3))],
        [(R, (1, 5, 2, 3)), (T, (0, 2, 1, 3))],
    ),
    "merged and split again": ((1, 2, 5, 3), [(R, (2, 5, 3)), (R, (1, 2, 5, 3))], []),
    "transposed and back": ((2, 3, 4), [(T, (0, 2, 1)), (T, (0, 2, 1))], []),
    "an axis of one": ((1, 3, 4), [(T, (1, 0, 2)), (R, (3, 4))], [(R, (3, 4))]),
    "any batch": (
        ("batch", 5, 6),
        [(R, (0, 5, 2, 3)), (T, (0, 2, 1, 3)), (R, (-1, 5, 3)), (R, (-1, 2, 5, 3))],
        [(R, (0, 5, 2, 3)), (T, (0, 2, 1, 3))],
    ),
    "windows that leave the batch": (
        ("batch", 3, 4, 6),
        [(R, (-1, 2, 3, 4, 6)), (T, (0, 2, 1, 3, 4)), (T, (0, 1, 3, 2, 4))],
        [(R, (-1, 2, 3, 4, 6)), (T, (0, 2, 3, 1, 4))],
    ),
    "windows": (
        ("batch", 2, 2, 6),
        [(R, (-1, 4, 6)), (U, (1,)), (R, (-1, 4, 2, 3)), (T, (0, 2, 1, 3)), (T, (0, 2, 1, 3)), (R, (-1, 4, 6))],
        [(R, (0, 4, 6))],
    ),
    "leading axes after the others": (
        (4, 6, 5),
        [(T, (0, 2, 1)), (R, (1, 4, 5, 6))],
        [(R, (1, 4, 6, 5)), (T, (0, 1, 3, 2))],
    ),
    "on both sides": (
        (4, 6),
        [(R, (2, 2, 2, 3)), (T, (0, 2, 1, 3)), (R, (1, 2, 2, 2, 3)), (R, (4, 6))],
        [(R, (2, 2, 2, 3)), (T, (0, 2, 1, 3)), (R, (4, 6))],
    ),
}


def moves(graph: Graph) -> list[Move]:
    """What is left of the chain."""
    result = []
    for node in graph.nodes:
        if node.op_type == "Transpose":
            result.append((T, tuple(node.attributes.get_ints("perm", ()))))
        elif node.op_type == "Reshape":
            constant = node.inputs[1]
            assert constant is not None and constant.const_value is not None
            result.append((R, tuple(constant.const_value.numpy().tolist())))
    return result


@pytest.mark.parametrize("name", CASES)
def test_merges(name: str) -> None:
    shape, before, after = CASES[name]
    graph = chain(shape, before)
    x = numbers(shape)
    expected = run(chain(shape, before), x)["y"]
    assert apply(MergeMoves(), graph).fired == 1
    assert moves(graph) == after
    assert np.array_equal(run(graph, x)["y"], expected)
    assert apply(MergeMoves(), graph).fired == 0


@pytest.mark.parametrize(
    ("shape", "before"),
    [
        ((2, 3, 4), [(T, (0, 2, 1)), (R, (2, 12))]),  # as short as it can be
        ((4, 6, 5), [(T, (0, 2, 1)), (R, (4, 5, 2, 3))]),  # the Reshape splits an axis that the Transpose moves
        (("batch", "tokens", 4), [(R, (0, 0, 2, 2)), (R, (0, 0, 4))]),  # two sizes vary
        # (3, -1) takes any batch, because 12 divides by 3, but (3, -1, 6, 2) would not
        (("batch", 6, 2), [(T, (0, 2, 1)), (R, (3, -1)), (T, (1, 0)), (R, (1, -1))]),
    ],
)
def test_leaves(shape: tuple[int | str, ...], before: list[Move]) -> None:
    graph = chain(shape, before)
    assert (apply(MergeMoves(), graph).fired, len(moves(graph))) == (0, len(before))


def test_merges_in_parts_what_would_have_too_many_axes() -> None:
    """Hiera puts tokens that it will pool beside each other, level by level."""
    shape, before = (2, 16, 16, 3), []
    batch, side = 2, 16
    for _ in range(3):
        before += [(R, (batch, side // 2, 2, side // 2, 2, 3)), (T, (0, 2, 4, 1, 3, 5))]
        batch, side = batch * 4, side // 2
        before += [(R, (batch, side, side, 3))]
    graph, x = chain(shape, before), numbers(shape)
    assert apply(MergeMoves(), graph).fired > 0
    assert max(len(numbers) for _, numbers in moves(graph)) <= 8
    assert len(moves(graph)) < len(before)
    assert np.array_equal(run(graph, x)["y"], run(chain(shape, before), x)["y"])


def test_leaves_what_is_read_in_the_middle() -> None:
    graph = chain((2, 3, 4), [(T, (0, 2, 1)), (T, (0, 2, 1))], reader=True)
    assert apply(MergeMoves(), graph).fired == 0
    assert types(graph).count("Transpose") == 2


def test_an_output_that_is_the_input_stays_an_output() -> None:
    graph = chain((2, 3, 4), [(T, (0, 2, 1)), (T, (0, 2, 1))])
    neg = next(node for node in graph.nodes if node.op_type == "Neg")
    graph.model.graph.outputs[0] = neg.inputs[0]  # type: ignore[call-overload]
    graph.model.graph.remove(neg, safe=False)
    assert apply(MergeMoves(), graph).fired == 1
    assert types(graph) == ["Identity"]
    x = numbers((2, 3, 4))
    assert np.array_equal(run(graph, x)["v1"], x)


@st.composite
def chains(draw: st.DrawFn) -> tuple[tuple[int, ...], list[Move]]:
    """A shape, and moves that fit it."""
    factors = draw(st.lists(st.sampled_from([1, 2, 3]), min_size=1, max_size=6))

    def group(factors: list[int]) -> tuple[int, ...]:
        cuts = sorted(draw(st.sets(st.integers(1, len(factors)), max_size=3)))
        return tuple(math.prod(factors[a:b]) for a, b in zip([0, *cuts], [*cuts, len(factors)], strict=True))

    first = shape = group(factors)
    steps: list[Move] = []
    for _ in range(draw(st.integers(1, 5))):
        if draw(st.booleans()):
            perm = tuple(draw(st.permutations(range(len(shape)))))
            steps.append((T, perm))
            shape = tuple(shape[axis] for axis in perm)
        else:
            prime = [p for size in shape for p in _primes(size)] or [1]
            shape = group(prime)
            steps.append((R, shape))
    return first, steps


def _primes(size: int) -> list[int]:
    return [p for p in (2, 3) for _ in range(int(size % p == 0) and _power(size, p))]


def _power(size: int, prime: int) -> int:
    count = 0
    while size % prime == 0:
        size, count = size // prime, count + 1
    return count


@settings(max_examples=150, deadline=None)
@given(chains())
def test_any_chain_keeps_its_numbers(case: tuple[tuple[int, ...], list[Move]]) -> None:
    shape, steps = case
    x, expected = numbers(shape), numbers(shape)
    for op_type, sizes in steps:
        expected = expected.transpose(sizes) if op_type == T else expected.reshape(sizes)
    graph = chain(shape, steps)
    apply(MergeMoves(), graph)
    assert len(moves(graph)) <= len(steps)
    assert np.array_equal(run(graph, x)["y"], -expected)


def test_a_node_without_inputs_is_no_move() -> None:
    """A graph output that does not depend on the image is a Constant."""
    graph = parsed("""<ir_version: 10, opset_import: ["" : 20]> vit (float[2,3] x) => (float y, int64[2] order) {
        order = Constant<value_ints = [1, 0]>() t = Transpose<perm = [1, 0]>(x) y = Transpose<perm = [1, 0]>(t)
    }""")
    assert apply(MergeMoves(), graph).fired == 1
    assert sorted(types(graph)) == ["Constant", "Identity"]
    outputs = run(graph, numbers((2, 3)))
    assert np.array_equal(outputs["y"], numbers((2, 3)))
    assert outputs["order"].tolist() == [1, 0]
