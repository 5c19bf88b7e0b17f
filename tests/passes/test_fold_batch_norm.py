"""A batch normalization is folded into the product before or behind it."""

from __future__ import annotations

import numpy as np
import pytest

from tests.graphs import apply, parsed, run, types
from vitdeploy.passes.fold_batch_norm import FoldBatchNorm
from vitdeploy.session import Array

C = 8
RNG = np.random.default_rng(0)
IMAGE = RNG.standard_normal((2, C, C, C)).astype(np.float32)
TOKENS = RNG.standard_normal((2, C, C)).astype(np.float32)  # as many tokens as channels: an axis taken wrongly shows
ROWS = RNG.standard_normal((2, C)).astype(np.float32)

BN = "BatchNormalization<epsilon = 0.01>({}, gamma, beta, mean, var)"
FLAT, BACK = np.array([2 * C, C]), np.array([2, C, C])


def draw(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


def vit(body: str, x: Array) -> str:
    shape = ",".join(str(n) for n in x.shape)
    return f'<ir_version: 10, opset_import: ["" : 20]> vit (float[{shape}] x) => (float y) {{ {body} }}'


def check(body: str, x: Array, fired: int, operators: list[str] | None = None, **constants: Array) -> None:
    """Without `operators`, the graph must not change."""
    norm = {"gamma": draw(C), "beta": draw(C), "mean": draw(C), "var": 0.5 + draw(C) ** 2}
    graph = parsed(vit(body, x), **norm, **{"w": draw(C, C), "b": draw(C), **constants})
    before, reference = types(graph), run(graph, x)["y"]
    assert apply(FoldBatchNorm(), graph).fired == fired
    assert types(graph) == (before if operators is None else operators)
    assert np.abs(run(graph, x)["y"] - reference).max() < 1e-5 * np.abs(reference).max()


@pytest.mark.parametrize("inputs", ["x, w", "x, w, b"])
@pytest.mark.parametrize("groups", [1, 2, C])
def test_folds_into_a_convolution(inputs: str, groups: int) -> None:
    body = f"c = Conv<group = {groups}, pads = [1, 1, 1, 1]>({inputs}) y = {BN.format('c')}"
    check(body, IMAGE, 1, ["Conv"], w=draw(C, C // groups, 3, 3))


@pytest.mark.parametrize("mul", ["m = Mul(c, f)", "m = Mul(f, c)"])
@pytest.mark.parametrize("add", ["y = Add(m, s)", "y = Add(s, m)"])
@pytest.mark.parametrize("shape", [(C, 1, 1), (1, C, 1, 1)])
def test_folds_the_norm_written_as_two_operators(mul: str, add: str, shape: tuple[int, ...]) -> None:
    check(f"c = Conv(x, w, b) {mul} {add}", IMAGE, 1, ["Conv"], w=draw(C, C, 3, 3), f=draw(*shape), s=draw(*shape))


@pytest.mark.parametrize("flatten", ["f = Reshape(l, flat)", "f = Flatten<axis = 2>(l)"])
@pytest.mark.parametrize("bias", [True, False])
def test_folds_into_a_linear_through_a_reshape(flatten: str, bias: bool) -> None:
    linear = "m = MatMul(x, w) l = Add(m, b)" if bias else "l = MatMul(x, w)"
    body = f"{linear} {flatten} n = {BN.format('f')} y = Reshape(n, back)"
    operators = ["MatMul", "Add", flatten.split()[2].partition("(")[0].partition("<")[0], "Reshape"]
    check(body, TOKENS, 1, operators, flat=FLAT, back=BACK)


def test_folds_into_a_linear_through_a_transpose() -> None:
    body = f"m = MatMul(x, w) t = Transpose<perm = [0, 2, 1]>(m) y = {BN.format('t')}"
    check(body, TOKENS, 1, ["MatMul", "Add", "Transpose"])


@pytest.mark.parametrize("bias", [True, False])
def test_folds_into_the_linear_behind(bias: bool) -> None:
    tail = "m = MatMul(n, w) y = Add(m, b)" if bias else "y = MatMul(n, w)"
    check(f"n = {BN.format('x')} {tail}", ROWS, 1, ["MatMul", "Add"])


LAST = "t = Transpose<perm = [0, 2, 3, 1]>(n)"
"""The channels of an image to the end, as a raised 1×1 convolution reads them."""


@pytest.mark.parametrize("bias", [True, False])
def test_folds_into_a_raised_convolution_behind(bias: bool) -> None:
    tail = "m = MatMul(t, w) y = Add(m, b)" if bias else "y = MatMul(t, w)"
    check(f"n = {BN.format('x')} {LAST} {tail}", IMAGE, 1, ["Transpose", "MatMul", "Add"])


def test_folds_into_all_linears_behind() -> None:
    body = f"n = {BN.format('x')} {LAST} q = MatMul(t, w) k = MatMul(t, u) y = Mul(q, k)"
    check(body, IMAGE, 1, ["Transpose", "MatMul", "Add", "MatMul", "Add", "Mul"], u=draw(C, C))


def test_folds_one_norm_after_the_other() -> None:
    body = f"m = MatMul(x, w) n = {BN.format('m')} n2 = {BN.format('n')} y = Relu(n2)"
    check(body, ROWS, 2, ["MatMul", "Add", "Relu"])


def test_a_norm_between_two_linears_goes_into_the_first() -> None:
    check(f"m = MatMul(x, w) n = {BN.format('m')} y = MatMul(n, w)", ROWS, 1, ["MatMul", "Add", "MatMul"])


@pytest.mark.parametrize(
    ("body", "x"),
    [
        (f"m = MatMul(x, w) y = {BN.format('m')}", TOKENS),  # its channels are the tokens
        (f"t = MatMul(x, w) f = Reshape(t, back) y = {BN.format('f')}", TOKENS),
        (f"m = MatMul(x, w) n = {BN.format('m')} y = Add(n, m)", ROWS),  # m is read twice
        (f"m = MatMul(x, w) l = Add(m, b) n = {BN.format('l')} y = Add(n, m)", ROWS),
        (f"n = {BN.format('x')} m = MatMul(n, w) y = Add(n, m)", ROWS),  # n is
        (f"n = {BN.format('x')} y = MatMul(n, w)", TOKENS),
        (f"n = {BN.format('x')} y = MatMul(n, n)", draw(C, C)),
        (f"n = {BN.format('x')} y = MatMul(w, n)", draw(C, C)),
        (f"r = Relu(x) y = {BN.format('r')}", ROWS),
        (f"n = {BN.format('x')} {LAST} m = MatMul(t, w) y = Add(m, t)", IMAGE),  # t is read twice
        (f"n = {BN.format('x')} {LAST} m = MatMul(t, w) r = Relu(n) y = Add(m, r)", IMAGE),  # n is
        (f"n = {BN.format('x')} t = Transpose<perm = [0, 1, 3, 2]>(n) y = MatMul(t, w)", IMAGE),  # a side of the image
    ],
)
def test_leaves_alone_what_does_not_fit(body: str, x: Array) -> None:
    check(body, x, 0, back=BACK)


def test_leaves_a_norm_before_a_convolution_alone() -> None:
    check(f"n = {BN.format('x')} y = Conv<pads = [1, 1, 1, 1]>(n, w)", IMAGE, 0, w=draw(C, C, 3, 3))


@pytest.mark.parametrize(("f", "s"), [((C, 1), (C, 1, 1)), ((C, 1, 1), (C,)), ((C, 1, 1), (C, C, 1))])
def test_leaves_a_factor_or_shift_for_each_pixel_alone(f: tuple[int, ...], s: tuple[int, ...]) -> None:
    body = "c = Conv(x, w, b) m = Mul(c, f) y = Add(m, s)"
    check(body, IMAGE, 0, w=draw(C, C, 1, 1), f=draw(*f), s=draw(*s))


def test_leaves_a_factor_that_another_node_reads_alone() -> None:
    constants = {"w": draw(C, C, 1, 1), "f": draw(C, 1, 1), "s": draw(C, 1, 1)}
    check("c = Conv(x, w, b) m = Mul(c, f) a = Add(m, s) y = Mul(a, m)", IMAGE, 0, **constants)
    check("c = Conv(x, w, b) m = Mul(c, f) a = Add(m, s) y = Mul(a, c)", IMAGE, 0, **constants)


def test_leaves_a_norm_in_training_alone() -> None:
    body = "m = MatMul(x, w) y, m1, v1 = BatchNormalization<training_mode = 1>(m, gamma, beta, mean, var)"
    check(body, ROWS, 0)
