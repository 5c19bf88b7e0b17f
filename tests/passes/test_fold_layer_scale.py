"""A factor for each channel behind a linear is folded into it."""

from __future__ import annotations

import numpy as np
import pytest

from tests.graphs import apply, parsed, run, types
from vitdeploy.passes.fold_layer_scale import FoldLayerScale
from vitdeploy.session import Array

C = 8  # channels in and out, and tokens: a factor for each token has as many numbers as one for each channel
RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, C, C)).astype(np.float32)
IMAGE = RNG.standard_normal((2, C, C, C)).astype(np.float32)


def draw(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


def vit(body: str, x: Array = X, dtype: str = "float") -> str:
    shape = ",".join(str(n) for n in x.shape)
    return f'<ir_version: 10, opset_import: ["" : 20]> vit ({dtype}[{shape}] x) => ({dtype} y) {{ {body} }}'


def check(body: str, fired: int, operators: list[str], x: Array = X, **constants: Array) -> None:
    graph = parsed(vit(body, x), **{"w": draw(C, C), "b": draw(C), **constants})
    reference = run(graph, x)["y"]
    assert apply(FoldLayerScale(), graph).fired == fired
    assert types(graph) == operators
    assert np.abs(run(graph, x)["y"] - reference).max() < 1e-5 * np.abs(reference).max()


LINEAR = "m = MatMul(x, w) l = Add(m, b)"


@pytest.mark.parametrize("shape", [(C,), (1, C), (1, 1, C), (1,), ()])
@pytest.mark.parametrize("body", ["y = Mul(l, s)", "y = Mul(s, l)"])
def test_folds_a_factor(shape: tuple[int, ...], body: str) -> None:
    check(f"{LINEAR} {body}", 1, ["MatMul", "Add"], s=draw(*shape))


def test_folds_into_a_linear_without_a_bias() -> None:
    check("m = MatMul(x, w) y = Mul(m, s)", 1, ["MatMul"], s=draw(C))


@pytest.mark.parametrize("bias", [(1, 1, C), (1,), ()])
def test_takes_every_form_of_a_bias(bias: tuple[int, ...]) -> None:
    check("m = MatMul(x, w) l = Add(b, m) y = Mul(l, s)", 1, ["MatMul", "Add"], s=draw(C), b=draw(*bias))


def test_folds_one_factor_after_the_other() -> None:
    check(f"{LINEAR} l2 = Mul(l, s) l3 = Mul(l2, t) y = Relu(l3)", 2, ["MatMul", "Add", "Relu"], s=draw(C), t=draw(1))


def test_a_constant_that_others_share_stays() -> None:
    body = f"{LINEAR} z = Mul(l, s) m2 = MatMul(z, w) l2 = Add(m2, b) y = Mul(l2, m2)"
    check(body, 1, ["MatMul", "Add", "MatMul", "Add", "Mul"], s=draw(C))


@pytest.mark.parametrize(
    ("moves", "shape", "kept"),
    [
        ("t = Transpose<perm = [2, 0, 1]>(l)", (C, 1, 1), ["Transpose"]),
        ("t = Reshape(l, flat)", (C,), ["Reshape"]),
        ("t = Reshape(l, flat)", (), ["Reshape"]),
    ],
)
def test_finds_the_linear_behind_what_moves_its_channels(moves: str, shape: tuple[int, ...], kept: list[str]) -> None:
    body = f"{LINEAR} {moves} y = Mul(t, s)"
    check(body, 1, ["MatMul", "Add", *kept], s=draw(*shape), flat=np.array([-1, C]))


@pytest.mark.parametrize("shape", [(C, 1, 1), (1, C, 1, 1), (1,), ()])
def test_folds_into_a_convolution(shape: tuple[int, ...]) -> None:
    w = draw(C, C // 2, 3, 3)
    check("c = Conv<group = 2>(x, w, b) y = Mul(c, s)", 1, ["Conv"], x=IMAGE, w=w, s=draw(*shape))


@pytest.mark.parametrize(
    ("body", "shape"),
    [
        ("y = Mul(l, s)", (C, 1)),  # one for each token
        ("y = Mul(l, s)", (C, C)),
        ("y = Mul(l, s)", (1, 1, 1, C)),  # adds an axis
        ("z = Mul(l, s) y = Add(z, l)", (C,)),  # l is read twice
        ("z = Mul(l, s) y = Add(z, m)", (C,)),  # m is
        ("y = Mul(l, l)", (C,)),
        ("y = Mul(l, x)", (C,)),
        ("t = Transpose<perm = [0, 2, 1]>(l) y = Mul(t, s)", (C,)),  # one for each token
        ("t = Reshape(l, split) y = Mul(t, s)", (4, 2)),
        ("t = Reshape(l, split) y = Mul(t, s)", (2,)),
        ("t = Reshape(l, rows) y = Mul(t, s)", (C, 1)),
    ],
)
def test_leaves_alone_what_does_not_fit(body: str, shape: tuple[int, ...]) -> None:
    constants = {"s": draw(*shape), "split": np.array([2, C, 4, 2]), "rows": np.array([C, 2 * C])}
    before = types(parsed(vit(f"{LINEAR} {body}"), w=draw(C, C), b=draw(C), **constants))
    check(f"{LINEAR} {body}", 0, before, **constants)


@pytest.mark.parametrize(("bias", "factor"), [((C, C), (C,)), ((C, 1), (C,)), ((1, 1, 1, 1), ())])
def test_leaves_alone_what_adds_more_than_a_bias(bias: tuple[int, ...], factor: tuple[int, ...]) -> None:
    check(f"{LINEAR} y = Mul(l, s)", 0, ["MatMul", "Add", "Mul"], b=draw(*bias), s=draw(*factor))


def test_leaves_a_computed_weight_alone() -> None:
    check("v = Exp(w) m = MatMul(x, v) y = Mul(m, s)", 0, ["Exp", "MatMul", "Mul"], s=draw(C))


def test_does_not_write_what_half_precision_cannot_hold() -> None:
    constants = {"w": draw(C, C), "b": draw(C), "s": np.full(C, 6e4)}
    model = vit(f"{LINEAR} y = Mul(l, s)", dtype="float16")
    graph = parsed(model, **{name: value.astype(np.float16) for name, value in constants.items()})
    assert apply(FoldLayerScale(), graph).fired == 0
    assert types(graph) == ["MatMul", "Add", "Mul"]


def test_keeps_half_precision() -> None:
    constants = {name: draw(*shape).astype(np.float16) for name, shape in {"w": (C, C), "b": (C,), "s": (C,)}.items()}
    graph = parsed(vit(f"{LINEAR} y = Mul(l, s)", dtype="float16"), **constants)
    x = X.astype(np.float16)
    reference = run(graph, x)["y"].astype(np.float32)
    assert apply(FoldLayerScale(), graph).fired == 1
    assert np.abs(run(graph, x)["y"] - reference).max() < 0.01 * np.abs(reference).max()
