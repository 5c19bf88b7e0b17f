"""A factor for each channel behind a LayerNorm is folded into it."""

from __future__ import annotations

import numpy as np
import pytest

from tests.graphs import apply, parsed, run, types
from vitdeploy.passes.fold_norm_scale import FoldNormScale
from vitdeploy.session import Array

C = 8  # channels, and tokens: a factor for each token has as many numbers as one for each channel
RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, C, C)).astype(np.float32)


def norm(body: str, *, bias: bool = True, x: str = f"float[2,{C},{C}]") -> str:
    affine = "gamma, beta" if bias else "gamma"
    return (
        f'<ir_version: 10, opset_import: ["" : 20]> vit ({x} x) => (float y)'
        f" {{ n = LayerNormalization<axis = -1>(x, {affine}) {body} }}"
    )


def draw(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


def check(model: str, fired: int, operators: list[str], **constants: Array) -> None:
    constants = {"gamma": draw(C), "beta": draw(C), **constants}
    graph = parsed(model, **constants)
    reference = run(graph, X)["y"]
    assert apply(FoldNormScale(), graph).fired == fired
    assert types(graph) == operators
    assert np.abs(run(graph, X)["y"] - reference).max() < 1e-5


@pytest.mark.parametrize("shape", [(C,), (1, C), (1, 1, C), (1,), ()])
@pytest.mark.parametrize("body", ["y = Mul(n, s)", "y = Mul(s, n)"])
@pytest.mark.parametrize("bias", [True, False])
def test_folds_a_factor(shape: tuple[int, ...], body: str, bias: bool) -> None:
    check(norm(body, bias=bias), 1, ["LayerNormalization"], s=draw(*shape))


@pytest.mark.parametrize(
    ("body", "shape"),
    [
        ("y = Mul(n, s)", (C, 1)),  # one for each token
        ("y = Mul(n, s)", (C, C)),
        ("y = Mul(n, s)", (1, 1, 1, C)),  # it adds an axis
        ("m = Mul(n, s) y = Add(m, n)", (C,)),  # n is read twice
        ("y = Mul(n, n)", (C,)),
        ("y = Mul(n, x)", (C,)),
    ],
)
def test_leaves_alone_what_does_not_fit(body: str, shape: tuple[int, ...]) -> None:
    operators = ["LayerNormalization", "Mul"] + (["Add"] if "Add" in body else [])
    check(norm(body), 0, operators, s=draw(*shape))


def test_leaves_a_norm_whose_mean_is_read() -> None:
    model = norm("y1 = Mul(n, s) y = Add(y1, m)").replace("n = Layer", "n, m = Layer")
    check(model, 0, ["LayerNormalization", "Mul", "Add"], s=draw(C))


def test_does_not_touch_an_affine_part_that_another_norm_shares() -> None:
    body = "y1 = Mul(n, s) m = LayerNormalization<axis = -1>(y1, gamma, beta) y = Identity(m)"
    check(norm(body), 1, ["LayerNormalization", "LayerNormalization", "Identity"], s=draw(C))


def test_keeps_half_precision() -> None:
    model = norm("y = Mul(n, s)", x=f"float16[2,{C},{C}]").replace("float y", "float16 y")
    graph = parsed(model, **{name: draw(C).astype(np.float16) for name in ("gamma", "beta", "s")})
    reference = run(graph, X.astype(np.float16))["y"]
    assert apply(FoldNormScale(), graph).fired == 1
    assert np.abs(run(graph, X.astype(np.float16))["y"].astype(np.float32) - reference).max() < 0.02
