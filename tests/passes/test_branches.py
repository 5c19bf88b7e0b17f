"""What a branch of an If reads is left alone: it runs only sometimes."""

from __future__ import annotations

import numpy as np
import pytest

from tests.graphs import apply, parsed, run
from vitdeploy.passes import Pass
from vitdeploy.passes.fold_batch_norm import FoldBatchNorm
from vitdeploy.passes.fold_norm_affine import FoldNormAffine
from vitdeploy.passes.fold_norm_scale import FoldNormScale
from vitdeploy.passes.hoist_moves import HoistMoves
from vitdeploy.passes.merge_moves import MergeMoves
from vitdeploy.passes.raise_attention import RaiseAttention
from vitdeploy.passes.raise_gelu import RaiseGelu
from vitdeploy.passes.raise_layer_norm import RaiseLayerNorm

C = 4  # channels, and tokens
RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, C, C)).astype(np.float32)
NUMBERS = {"root2": 2**0.5, "one": 1, "half": 0.5, "eps": 1e-6, "zero": 0}
CONSTANTS = {name: np.array(value, np.float32) for name, value in NUMBERS.items()} | {
    "axes": np.array([-1]),
    "w": RNG.standard_normal((C, C)).astype(np.float32),
    **{name: 1 + RNG.random(C, np.float32) for name in ("gamma", "beta", "mean", "var")},
}

NORM = (
    "m = ReduceMean(x, axes) d = Sub(x, m) p = Mul(d, d) v = ReduceMean(p, axes) e = Add(v, eps) s = Sqrt(e)"
    " n = Div(d, s)"
)
CASES: dict[str, tuple[Pass, str, str]] = {
    "end of a GELU": (RaiseGelu(), "d = Div(x, root2) e = Erf(d) p = Add(e, one)", "m = Mul(x, p) a = Mul(m, half)"),
    "scale of a norm": (FoldNormScale(), "n = LayerNormalization(x, gamma)", "a = Mul(n, gamma)"),
    "scale of a norm in parts": (RaiseLayerNorm(), NORM, "a = Mul(n, gamma)"),
    "product with v": (
        RaiseAttention(),
        "k = Transpose<perm = [0, 2, 1]>(x) s = MatMul(x, k) p = Softmax(s)",
        "a = MatMul(p, x)",
    ),
    "linear behind a norm": (FoldNormAffine(), "n = LayerNormalization(x, gamma, beta)", "a = MatMul(n, w)"),
    "moved, and a linear": (
        FoldNormAffine(),
        "n = LayerNormalization(x, gamma, beta)",
        "r = Identity(n) a = MatMul(r, w)",
    ),
    "linear behind a batch norm": (
        FoldBatchNorm(),
        "t = Transpose<perm = [0, 2, 1]>(x) n = BatchNormalization(t, gamma, beta, mean, var)"
        " u = Transpose<perm = [0, 2, 1]>(n)",
        "a = MatMul(u, w)",
    ),
    "moves of parts": (
        HoistMoves(),
        "r = Relu(x) u, v = Split<axis = 0, num_outputs = 2>(r)",
        "s = Transpose<perm = [0, 2, 1]>(u) t = Transpose<perm = [0, 2, 1]>(v) a = Sub(s, t)",
    ),
    "second move": (MergeMoves(), "t = Transpose<perm = [0, 2, 1]>(x)", "a = Transpose<perm = [0, 2, 1]>(t)"),
}


@pytest.mark.parametrize("name", CASES)
def test_leaves_what_a_branch_reads(name: str) -> None:
    rewrite, before, inside = CASES[name]
    text = (
        f'<ir_version: 10, opset_import: ["" : 23]> vit (float[2,{C},{C}] x) => (float y) {{'
        f" {before} top = ReduceMax<keepdims = 0>(x) c = Greater(top, zero)"
        f" y = If (c) <then_branch = t () => (float[i,j,k] a) {{ {inside} }},"
        f" else_branch = f () => (float[i,j,k] b) {{ b = Identity(x) }}> }}"
    )
    graph = parsed(text, **CONSTANTS)
    reference, operators = run(graph, X)["y"], [node.op_type for node in graph.model.graph.all_nodes()]
    apply(rewrite, graph)
    if not isinstance(rewrite, RaiseLayerNorm):  # the norm without the scale becomes one operator
        assert [node.op_type for node in graph.model.graph.all_nodes()] == operators
    assert np.abs(run(graph, X)["y"] - reference).max() < 1e-5
