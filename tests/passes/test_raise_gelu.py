"""A GELU in many operators becomes one, with the same numbers; what only looks like one stays."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.graphs import apply, differs, dynamo, expected, legacy, parsed, raised, redrawn, run, tokens, types
from vitdeploy.passes.raise_gelu import RaiseGelu
from vitdeploy.session import Array

X = np.linspace(-5, 5, 48, dtype=np.float32).reshape(2, 3, 8)
E = "e = Erf(u) p = Add(e, one)"
U = f"u = Div(x, root2) {E}"
CUBE = "c = Pow(x, three)"
INNER = "k = Mul(c, cubic) a = Add(x, k) u = Mul(a, slope) t = Tanh(u)"
T = f"{CUBE} {INNER} p = Add(t, one)"

ERF = {
    "x · (1 + erf) · 0.5": f"{U} m = Mul(x, p) y = Mul(m, half)",
    "0.5 · x · (1 + erf)": f"{U} h = Mul(half, x) y = Mul(h, p)",
    "x · 0.5 · (1 + erf), from the right": f"{U} h = Mul(x, half) y = Mul(p, h)",
    "x · (0.5 · (1 + erf))": f"{U} h = Mul(half, p) y = Mul(x, h)",
    "0.5 · (x · (1 + erf))": f"{U} m = Mul(p, x) y = Mul(half, m)",
    "x · (1 + erf) / 2": f"{U} m = Mul(x, p) y = Div(m, two)",
    "x / 2 · (1 + erf)": f"{U} h = Div(x, two) y = Mul(h, p)",
    "x · 1/√2": f"u = Mul(x, root_half) {E} m = Mul(x, p) y = Mul(m, half)",
    "1/√2 · x": f"u = Mul(root_half, x) {E} m = Mul(x, p) y = Mul(m, half)",
    "erf + 1 from the left": f"{U.replace('(e, one)', '(one, e)')} m = Mul(x, p) y = Mul(m, half)",
    "x · (0.5 + 0.5 · erf)": "u = Div(x, root2) e = Erf(u) g = Mul(e, half) p = Add(g, half) y = Mul(x, p)",
    "0.5 · x + 0.5 · x · erf": "u = Div(x, root2) e = Erf(u) h = Mul(x, half) m = Mul(h, e) y = Add(m, h)",
}
TANH = {
    "Pow": f"{T} h = Mul(x, half) y = Mul(h, p)",
    "x² · x": f"{T.replace(CUBE, 's = Mul(x, x) c = Mul(s, x)')} h = Mul(x, half) y = Mul(h, p)",
    "x · x²": f"{T.replace(CUBE, 's = Pow(x, two) c = Mul(x, s)')} h = Mul(x, half) y = Mul(h, p)",
    "x · (0.5 · (1 + tanh))": f"{T} h = Mul(half, p) y = Mul(x, h)",
    "cube first": f"{T.replace('Add(x, k)', 'Add(k, x)')} m = Mul(x, p) y = Mul(m, half)",
    "0.044715 from the left": f"{T.replace('(c, cubic)', '(cubic, c)')} h = Mul(x, half) y = Mul(p, h)",
    "x · √(2/π) · (1 + 0.044715 · x · x)": (
        "s = Mul(x, slope) k = Mul(cubic, x) q = Mul(k, x) a = Add(one, q) u = Mul(s, a) t = Tanh(u)"
        " p = Add(one, t) h = Mul(half, x) y = Mul(h, p)"
    ),
}


def model(body: str, *, opset: int = 20, dtype: str = "float") -> str:
    return f'<ir_version: 10, opset_import: ["" : {opset}]> vit ({dtype}[2,3,8] x) => ({dtype} y) {{ {body} }}'


def constants(dtype: type = np.float32, **given: float | Array) -> dict[str, Array]:
    numbers = {
        "half": 0.5, "one": 1, "two": 2, "three": 3, "root2": math.sqrt(2), "root_half": math.sqrt(0.5),
        "slope": math.sqrt(2 / math.pi), "cubic": 0.044715, "rounded": 0.0448, "quick": 1.702,
    }  # fmt: skip
    return {name: np.asarray(value, dtype) for name, value in (numbers | given).items()}


def gelu(x: Array, approximate: str) -> Array:
    return torch.nn.functional.gelu(torch.from_numpy(x), approximate=approximate).numpy()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("form", [*ERF, *TANH])
def test_raises_every_form(form: str, dtype: type) -> None:
    approximate = "none" if form in ERF else "tanh"
    declared = "float" if dtype is np.float32 else "float16"
    graph = parsed(model((ERF | TANH)[form], dtype=declared), **constants(dtype))
    result = apply(RaiseGelu(), graph)
    assert (result.fired, result.refused, types(graph)) == (1, {}, ["Gelu"])
    (node,) = graph.nodes
    assert node.attributes.get_string("approximate", "none") == approximate
    x = X.astype(dtype)
    error = np.abs(run(graph, x)["y"].astype(np.float32) - gelu(x, approximate).astype(np.float32)).max()
    assert error < (1e-6 if dtype is np.float32 else 4e-3)


LEFT_ALONE = {
    "QuickGELU": "u = Mul(x, quick) g = Sigmoid(u) y = Mul(x, g)",
    "erf of x": f"u = Mul(x, one) {E} m = Mul(x, p) y = Mul(m, half)",
    "erf of x / 2": f"u = Div(x, two) {E} m = Mul(x, p) y = Mul(m, half)",
    "erf of √2 / x": f"u = Div(root2, x) {E} m = Mul(x, p) y = Mul(m, half)",
    "another cubic": f"{T.replace('cubic', 'half')} h = Mul(x, half) y = Mul(h, p)",
    "a square": f"{T.replace('three', 'two')} h = Mul(x, half) y = Mul(h, p)",
    "tanh of x": "u = Mul(x, slope) t = Tanh(u) p = Add(t, one) h = Mul(x, half) y = Mul(h, p)",
    "x − cube": f"{T.replace('Add(x', 'Sub(x')} h = Mul(x, half) y = Mul(h, p)",
    "erf of x/√2 + 1": f"v = Div(x, root2) u = Add(v, one) {E} m = Mul(x, p) y = Mul(m, half)",
    "0.0448 instead of 0.044715": f"{T.replace('cubic', 'rounded')} h = Mul(x, half) y = Mul(h, p)",
    "two inputs": f"z = Neg(x) {T.replace('Add(x', 'Add(z')} h = Mul(x, half) y = Mul(h, p)",
}


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_leaves_alone_what_is_no_gelu(name: str) -> None:
    graph = parsed(model(LEFT_ALONE[name]), **constants())
    before, numbers = types(graph), run(graph, X)["y"]
    result = apply(RaiseGelu(), graph)
    assert (result.fired, result.refused, types(graph)) == (0, {}, before)
    assert np.array_equal(run(graph, X)["y"], numbers)


WRONG_END = {
    "not halved": f"{U} y = Mul(x, p)",
    "1 − erf": f"{U.replace('Add(e, one)', 'Sub(one, e)')} m = Mul(x, p) y = Mul(m, half)",
    "2 + erf": f"{U.replace('(e, one)', '(e, two)')} m = Mul(x, p) y = Mul(m, half)",
    "times another value": f"{U} z = Neg(x) m = Mul(z, p) y = Mul(m, half)",
    "squared": f"{U} m = Mul(p, p) n = Mul(x, m) y = Mul(n, half)",
    "the erf read elsewhere": f"{U} m = Mul(x, p) h = Mul(m, half) y = Add(h, e)",
    "the sum read elsewhere": f"{U} m = Mul(x, p) h = Mul(m, half) y = Add(h, p)",
}


@pytest.mark.parametrize("name", WRONG_END)
def test_refuses_an_erf_without_the_rest_of_a_gelu(name: str) -> None:
    graph = parsed(model(WRONG_END[name]), **constants())
    before, numbers = types(graph), run(graph, X)["y"]
    result = apply(RaiseGelu(), graph)
    assert (result.fired, list(result.refused)) == (0, ["Erf.1"])
    assert list(result.refused.values()) == ["no GELU follows its Erf, or another node reads a part of it"]
    assert types(graph) == before
    assert np.array_equal(run(graph, X)["y"], numbers)


def test_what_follows_a_gelu_stays() -> None:
    graph = parsed(model(ERF["x / 2 · (1 + erf)"].replace("y =", "g =") + " y = Mul(g, half)"), **constants())
    assert (apply(RaiseGelu(), graph).fired, types(graph)) == (1, ["Gelu", "Mul"])
    assert np.abs(run(graph, X)["y"] - gelu(X, "none") / 2).max() < 1e-6


def test_a_constant_that_adds_an_axis_refuses_it() -> None:
    graph = parsed(model(ERF["x · (1 + erf) · 0.5"]), **constants(half=np.full((1, 1, 1, 1), 0.5)))
    assert (apply(RaiseGelu(), graph).fired, types(graph)) == (0, ["Div", "Erf", "Add", "Mul", "Mul"])


def test_a_half_of_x_that_another_node_reads_stays() -> None:
    graph = parsed(model(f"{U} h = Mul(x, half) g = Mul(h, p) y = Add(g, h)"), **constants())
    numbers = run(graph, X)["y"]
    assert (apply(RaiseGelu(), graph).fired, types(graph)) == (1, ["Mul", "Gelu", "Add"])
    assert np.abs(run(graph, X)["y"] - numbers).max() < 1e-6


def test_finds_x_behind_a_scaled_bias() -> None:
    """The input x is a sum with one number and a product with another."""
    body = "b = Mul(x, three) z = Add(b, one) " + ERF["x · (1 + erf) · 0.5"].replace("(x,", "(z,")
    graph = parsed(model(body), **constants())
    assert (apply(RaiseGelu(), graph).fired, types(graph)) == (1, ["Mul", "Add", "Gelu"])
    assert np.abs(run(graph, X)["y"] - gelu(3 * X + 1, "none")).max() < 1e-6


def test_a_graph_without_the_operator_stays() -> None:
    graph = parsed(model(ERF["x / 2 · (1 + erf)"], opset=17), **constants())
    assert (apply(RaiseGelu(), graph).fired, "Gelu" in types(graph)) == (0, False)


class Activations(torch.nn.Module):
    """Every GELU that PyTorch users write, two of them in one module that share its scope."""

    def __init__(self) -> None:
        super().__init__()
        self.erf, self.tanh = torch.nn.GELU(), torch.nn.GELU(approximate="tanh")
        self.linear = torch.nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.tanh(self.linear(self.erf(x)))
        x = x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0))) + 1
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * torch.pow(x, 3))))


@pytest.mark.parametrize(("exporter", "opset"), [(legacy, 14), (legacy, 17), (dynamo, 18)])
def test_raises_both_exporters_gelus(exporter: object, opset: int) -> None:
    module = redrawn(Activations())
    graph, _, _ = raised(exporter(module, tokens(), opset=opset))  # type: ignore[operator]
    gelus = [n for n in graph.nodes if n.op_type == "Gelu"]
    assert [n.attributes.get_string("approximate", "none") for n in gelus] == ["none", "tanh", "none", "tanh"]
    assert len({n.name for n in gelus}) == 4
    assert [n.name for n in gelus][:2] == ["erf/Gelu", "tanh/Gelu"]
    assert not {"Erf", "Tanh", "Pow"} & set(types(graph))
    assert differs(graph, tokens(), expected(module, tokens())) is None
