"""A LayerNorm in many operators becomes one, with the same numbers; what only looks like one stays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.graphs import SIZE, apply, differs, expected, images, legacy, parsed, raised, redrawn, run, types
from vitdeploy.graph.model import Graph, load
from vitdeploy.passes.raise_layer_norm import RaiseLayerNorm
from vitdeploy.session import Array

C = 8  # channels, and tokens: a factor for each token has as many numbers as one for each channel
RNG = np.random.default_rng(0)
X = (3 * RNG.standard_normal((2, C, C)) + 1).astype(np.float32)
GAMMA, BETA = (RNG.standard_normal(C).astype(np.float32) for _ in range(2))
EPSILON = 1e-3  # large enough to be seen in the result

MEAN = "m = ReduceMean<keepdims = 1>(x, axes) d = Sub(x, m)"
VARIANCE = "p = Pow(d, two) v = ReduceMean<keepdims = 1>(p, axes) e = Add(v, eps)"
NORM = f"{MEAN} {VARIANCE} s = Sqrt(e) n = Div(d, s)"
AFFINE = "g = Mul(n, gamma) y = Add(g, beta)"


def model(body: str, *, opset: int = 20, x: str = f"float[2,{C},{C}]", y: str = "float") -> str:
    return f'<ir_version: 10, opset_import: ["" : {opset}]> vit ({x} x) => ({y} y) {{ {body} }}'


def constants(dtype: type = np.float32, **given: Array) -> dict[str, Array]:
    numbers = {
        "two": np.array(2, dtype), "half": np.array(0.5, dtype), "minus_half": np.array(-0.5, dtype),
        "one": np.array(1, dtype), "eps": np.array(EPSILON, dtype), "gamma": GAMMA.astype(dtype),
        "beta": BETA.astype(dtype), "ones": np.ones(C, dtype), "zeros": np.zeros(C, dtype),
    }  # fmt: skip
    return {"axes": np.array([-1]), **numbers, **given}


def reference(gamma: Array | float = GAMMA, beta: Array | float = BETA, x: Array = X) -> Array:
    """The definition, in float64."""
    x = x.astype(np.float64)
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + EPSILON) * gamma + beta  # type: ignore[no-any-return]


def check(graph: Graph, expected_outputs: Array | dict[str, Array], operators: list[str], fired: int = 1) -> None:
    result = apply(RaiseLayerNorm(), graph)
    assert (result.fired, result.refused) == (fired, {})
    assert types(graph) == operators
    outputs = run(graph, X)
    for name, numbers in (expected_outputs if isinstance(expected_outputs, dict) else {"y": expected_outputs}).items():
        assert outputs[name].shape == numbers.shape
        assert np.abs(outputs[name] - numbers).max() < 1e-5


FORMS = {
    "Pow, Sqrt, Div": NORM,
    "Mul by itself": NORM.replace("Pow(d, two)", "Mul(d, d)"),
    "the difference twice": NORM.replace("Div(d, s)", "Div(d2, s)").replace("s = Sqrt", "d2 = Sub(x, m) s = Sqrt"),
    "the mean twice": NORM.replace("Div(d, s)", "Div(d2, s)").replace(
        "s = Sqrt", "m2 = ReduceMean<keepdims = 1>(x, axes) d2 = Sub(x, m2) s = Sqrt"
    ),
    "Mul of two differences": NORM.replace("p = Pow(d, two)", "d2 = Sub(x, m) p = Mul(d, d2)"),
    "epsilon first": NORM.replace("Add(v, eps)", "Add(eps, v)"),
    "Reciprocal": NORM.replace("n = Div(d, s)", "r = Reciprocal(s) n = Mul(d, r)"),
    "1 / root": NORM.replace("n = Div(d, s)", "r = Div(one, s) n = Mul(r, d)"),
    "Pow 0.5": NORM.replace("Sqrt(e)", "Pow(e, half)"),
    "Pow -0.5": NORM.replace("Sqrt(e)", "Pow(e, minus_half)").replace("Div(d, s)", "Mul(d, s)"),
    "Pow -0.5 from the left": NORM.replace("Sqrt(e)", "Pow(e, minus_half)").replace("Div(d, s)", "Mul(s, d)"),
}


@pytest.mark.parametrize("form", FORMS)
def test_raises_every_form(form: str) -> None:
    graph = parsed(model(f"{FORMS[form]} {AFFINE}"), **constants())
    check(graph, reference(), ["LayerNormalization"])
    (node,) = graph.nodes
    assert node.attributes.get_float("epsilon", 0.0) == np.float32(EPSILON)


AFFINES = {
    "weight and bias from the left": ("g = Mul(gamma, n) y = Add(beta, g)", GAMMA, BETA),
    "weight only": ("y = Mul(n, gamma)", GAMMA, 0.0),
    "bias only": ("y = Add(n, beta)", 1.0, BETA),
    "neither": ("y = Identity(n)", 1.0, 0.0),
}


@pytest.mark.parametrize("affine", AFFINES)
@pytest.mark.parametrize("axes", [[-1], [2], -1])
def test_raises_with_any_affine_part(affine: str, axes: list[int] | int) -> None:
    body, gamma, beta = AFFINES[affine]
    tail = ["Identity"] if affine == "neither" else []
    graph = parsed(model(f"{NORM} {body}"), **constants(axes=np.array(axes)))
    check(graph, reference(gamma, beta), ["LayerNormalization", *tail])


@pytest.mark.parametrize("axis", [-1, 2])
def test_axes_may_be_an_attribute(axis: int) -> None:
    body = NORM.replace("<keepdims = 1>(x, axes)", f"<axes = [{axis}]>(x)")
    body = body.replace("<keepdims = 1>(p, axes)", f"<axes = [{axis}]>(p)")
    check(parsed(model(f"{body} {AFFINE}", opset=17), **constants()), reference(), ["LayerNormalization"])


def test_a_graph_without_the_operator_stays() -> None:
    body = NORM.replace("(x, axes)", "(x)").replace("(p, axes)", "(p)").replace("keepdims = 1", "axes = [-1]")
    graph = parsed(model(f"{body} {AFFINE}", opset=16), **constants())
    assert apply(RaiseLayerNorm(), graph).fired == 0
    assert "LayerNormalization" not in types(graph)


@pytest.mark.parametrize("shape", [(1, C), (1, 1, C)])
def test_a_weight_with_more_axes_gets_one(shape: tuple[int, ...]) -> None:
    given = constants(gamma=GAMMA.reshape(shape), beta=BETA.reshape(shape))
    check(parsed(model(f"{NORM} {AFFINE}"), **given), reference(), ["LayerNormalization"])


@pytest.mark.parametrize(
    ("body", "left", "given"),
    [
        ("g = Mul(n, gamma) y = Add(g, beta)", ["Mul", "Add"], {"gamma": GAMMA.reshape(C, 1)}),  # one for each token
        ("g = Mul(n, gamma) y = Add(g, beta)", ["Mul", "Add"], {"gamma": GAMMA.reshape(1, 1, 1, C)}),  # adds an axis
        ("g = Mul(n, gamma) y = Add(g, x)", ["Add"], {}),
        ("g = Mul(n, x) y = Add(g, beta)", ["Mul", "Add"], {}),  # a computed weight
        ("g = Mul(n, gamma) h = Add(g, beta) y = Add(h, n)", ["Mul", "Add", "Add"], {}),  # n is read twice
        ("y = Mul(n, n)", ["Mul"], {}),
    ],
)
def test_leaves_what_is_no_constant_affine_part(body: str, left: list[str], given: dict[str, Array]) -> None:
    graph = parsed(model(f"{NORM} {body}"), **constants(**given))
    check(graph, run(graph, X)["y"], ["LayerNormalization", *left])


REFUSED = {
    "over tokens": (NORM, {"axes": np.array([1])}, "normalises over axes (1,) of 3"),
    "over two axes": (NORM, {"axes": np.array([1, 2])}, "normalises over axes (1, 2) of 3"),
    "means over different axes": (
        NORM.replace("(p, axes)", "(p, axes1)"),
        {"axes1": np.array([1])},
        "normalises over axes (1,) of 3",
    ),
    "the mean read elsewhere": (NORM.replace("n = Div", "t = Div") + " n = Add(t, m)", {}, "ReduceMean.0) is read"),
    "the root read elsewhere": (NORM.replace("n = Div", "t = Div") + " n = Mul(t, s)", {}, "Sqrt.5) is read"),
    "the difference read elsewhere": (NORM.replace("n = Div", "t = Div") + " n = Add(t, d)", {}, "Sub.1) is read"),
    "an epsilon of rank 4": (NORM, {"eps": np.full((1, 1, 1, 1), EPSILON, np.float32)}, "epsilon adds an axis"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_with_a_reason(name: str) -> None:
    body, given, reason = REFUSED[name]
    graph = parsed(model(f"{body} {AFFINE}"), **constants(**given))
    before, numbers = types(graph), run(graph, X)["y"]
    result = apply(RaiseLayerNorm(), graph)
    assert (result.fired, [reason in text for text in result.refused.values()]) == (0, [True]), result.refused
    assert types(graph) == before
    assert np.array_equal(run(graph, X)["y"], numbers)


NOT_MENTIONED = {
    "RMSNorm": "p = Pow(x, two) v = ReduceMean<keepdims = 1>(p, axes) e = Add(v, eps) s = Sqrt(e) n = Div(x, s)",
    "RMSNorm of a difference": f"{MEAN} {VARIANCE} s = Sqrt(e) n = Div(x, s)",
    "another numerator": NORM.replace("Div(d, s)", "Div(d2, s)").replace("s = Sqrt", "d2 = Sub(v, m) s = Sqrt"),
    "cubes": NORM.replace("(d, two)", "(d, three)"),
    "no root": NORM.replace("Sqrt(e)", "Pow(e, two)"),
    "two over the root": NORM.replace("n = Div(d, s)", "r = Div(two, s) n = Mul(r, d)"),
    "an epsilon for each channel": NORM.replace("eps", "gamma"),
    "a difference of another value": f"z = Abs(x) {MEAN} {VARIANCE} s = Sqrt(e)"
    " mz = ReduceMean<keepdims = 1>(z, axes) dz = Sub(z, mz) n = Div(dz, s)",
    "the mean of another value": NORM.replace("m = ReduceMean<keepdims = 1>(x,", "z = Abs(x) m = ReduceMean(z,"),
    "mean minus x": NORM.replace("Sub(x, m)", "Sub(m, x)"),
}


@pytest.mark.parametrize("name", NOT_MENTIONED)
def test_leaves_alone_what_is_no_layer_norm(name: str) -> None:
    graph = parsed(model(f"{NOT_MENTIONED[name]} {AFFINE}"), **constants(three=np.float32(3)))
    before = types(graph)
    result = apply(RaiseLayerNorm(), graph)
    assert (result.fired, result.refused, types(graph)) == (0, {}, before)


HALF = f"float16[2,{C},{C}]"
AFTER_CAST = "w = Cast<to = 1>(x)"
CASTS = {
    "around the norm": (
        f"{AFTER_CAST} {NORM.replace('(x,', '(w,')} h = Cast<to = 10>(n) {AFFINE.replace('(n,', '(h,')}",
        np.float16,
        ["LayerNormalization"],
    ),
    # PyTorch's legacy exporter computes the difference in float16 and the rest in float32.
    "after the difference": (
        f"{MEAN} c = Cast<to = 1>(d) {VARIANCE.replace('(d,', '(c,')} s = Sqrt(e) n = Div(c, s)"
        f" h = Cast<to = 10>(n) {AFFINE.replace('(n,', '(h,')}",
        np.float16,
        ["LayerNormalization"],
    ),
    "around the affine part too": (
        f"{AFTER_CAST} {NORM.replace('(x,', '(w,')} g = Mul(n, gamma) b = Add(g, beta) y = Cast<to = 10>(b)",
        np.float32,
        ["Cast", "LayerNormalization", "Cast"],
    ),
}


@pytest.mark.parametrize("name", CASTS)
def test_casts_to_float32_for_the_norm_alone_go(name: str) -> None:
    body, affine, operators = CASTS[name]
    given = constants(gamma=GAMMA.astype(affine), beta=BETA.astype(affine))
    graph = parsed(model(body, x=HALF, y="float16"), **given)
    assert apply(RaiseLayerNorm(), graph).fired == 1
    assert types(graph) == operators
    half = X.astype(np.float16)
    assert np.abs(run(graph, half)["y"] - reference(x=half)).max() < 0.01


def test_half_precision_throughout() -> None:
    graph = parsed(model(f"{NORM} {AFFINE}", x=HALF, y="float16"), **constants(np.float16))
    assert apply(RaiseLayerNorm(), graph).fired == 1
    (node,) = graph.nodes
    assert node.attributes.get_float("epsilon", 0.0) == np.float16(EPSILON)  # what the graph really adds
    half = X.astype(np.float16)
    assert np.abs(run(graph, half)["y"] - reference(x=half)).max() < 0.02


def test_a_cast_to_a_third_type_stays() -> None:
    body = f"{AFTER_CAST} {NORM.replace('(x,', '(w,')} y = Cast<to = 11>(n)"
    graph = parsed(model(body, x=HALF, y="double"), **constants())
    assert apply(RaiseLayerNorm(), graph).fired == 1
    assert types(graph) == ["Cast", "LayerNormalization", "Cast"]
    half = X.astype(np.float16)
    assert np.abs(run(graph, half)["y"] - reference(1.0, 0.0, half)).max() < 1e-5


def test_a_result_in_another_type_is_refused() -> None:
    body = f"{MEAN} c = Cast<to = 1>(d) {VARIANCE.replace('(d,', '(c,')} s = Sqrt(e) n = Div(c, s) {AFFINE}"
    graph = parsed(model(body, x=HALF), **constants())
    result = apply(RaiseLayerNorm(), graph)
    assert list(result.refused.values()) == ["its result has another data type than its input"]
    assert result.fired == 0


LAYER_NORM = f"n = LayerNormalization<axis = -1, epsilon = {EPSILON}>"
FOLDED = {
    "weight and bias": (f"{LAYER_NORM}(x, ones) {AFFINE}", GAMMA, BETA, []),
    "axis from the front": (f"{LAYER_NORM.replace('-1', '2')}(x, ones) {AFFINE}", GAMMA, BETA, []),
    "a bias of zeros": (f"{LAYER_NORM}(x, ones, zeros) {AFFINE}", GAMMA, BETA, []),
    "weight": (f"{LAYER_NORM}(x, ones) y = Mul(n, gamma)", GAMMA, 0.0, []),
    "bias behind a weight": (f"{LAYER_NORM}(x, gamma) y = Add(n, beta)", GAMMA, BETA, []),
    "not the bias after a residual": (f"{LAYER_NORM}(x, ones) g = Mul(n, gamma) y = Add(g, x)", GAMMA, X, ["Add"]),
}


@pytest.mark.parametrize("name", FOLDED)
def test_folds_an_affine_part_into_a_norm_without(name: str) -> None:
    body, gamma, beta, left = FOLDED[name]
    check(parsed(model(body), **constants()), reference(gamma, beta), ["LayerNormalization", *left])


@pytest.mark.parametrize(
    ("body", "left"),
    [
        (f"{LAYER_NORM}(x, gamma) y = Mul(n, beta)", ["Mul"]),  # it has a weight; FoldNormScale multiplies them
        (f"{LAYER_NORM}(x, ones, beta) {AFFINE}", ["Mul", "Add"]),  # it has a bias
        (f"{LAYER_NORM}(x, ones) {AFFINE.replace('gamma', 'x')}", ["Mul", "Add"]),
        (f"{LAYER_NORM.replace('-1', '1')}(x, square) {AFFINE}", ["Mul", "Add"]),  # over tokens and channels
        (f"{LAYER_NORM}(x, ones) y = Identity(n)", ["Identity"]),
    ],
)
def test_leaves_a_norm_with_its_own_affine_part(body: str, left: list[str]) -> None:
    graph = parsed(model(body), **constants(square=np.ones((C, C), np.float32)))
    check(graph, run(graph, X)["y"], ["LayerNormalization", *left], fired=0)


def test_a_norm_may_end_the_graph() -> None:
    graph = parsed(model(NORM.replace("n = ", "y = ")), **constants())
    check(graph, reference(1.0, 0.0), ["LayerNormalization"])


def test_a_normalised_value_that_is_returned_keeps_its_node() -> None:
    declared = model(f"{NORM} {AFFINE}").replace("(float y)", "(float y, float n)")
    graph = parsed(declared, **constants())
    check(graph, {"y": reference(), "n": reference(1.0, 0.0)}, ["LayerNormalization", "Mul", "Add"])


def test_a_mean_that_drops_its_axis_refuses_it() -> None:
    """With one image, it is broadcast over the tokens instead."""
    body = NORM.replace("keepdims = 1", "keepdims = 0")
    graph = parsed(model(f"{body} {AFFINE}", x=f"float[1,{C},{C}]"), **constants())
    result = apply(RaiseLayerNorm(), graph)
    assert (result.fired, list(result.refused.values())) == (
        0,
        ["its mean drops the axis that it runs over (keepdims = 0)"],
    )


def test_a_weight_tells_the_number_of_channels() -> None:
    graph = parsed(model(f"{NORM} {AFFINE}", x="float[batch,tokens,channels]"), **constants())
    check(graph, reference(), ["LayerNormalization"])


@pytest.mark.parametrize("tail", ["y = Identity(n)", "y = Mul(n, half)", "y = Mul(n, x)"])
def test_an_unknown_number_of_channels_refuses_it(tail: str) -> None:
    graph = parsed(model(f"{NORM} {tail}", x="float[batch,tokens,channels]"), **constants())
    result = apply(RaiseLayerNorm(), graph)
    assert (result.fired, list(result.refused.values())) == (0, ["the number of its channels is not known"])


class PatchNorm(torch.nn.Module):
    """Swin's norm behind a Reshape to sizes that are computed."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x.flatten(2).transpose(1, 2))


def test_raises_a_norm_whose_channels_only_inference_over_the_whole_graph_knows() -> None:
    module = redrawn(PatchNorm())
    graph, structure, _ = raised(legacy(module, images(2), opset=14, dynamic=True))
    assert [norm.name for norm in structure.norms] == ["norm/LayerNormalization"]
    assert differs(graph, images(3), expected(module, images(3))) is None


class ParallelNorms(torch.nn.Module):
    """Two norms of one x, as in parallel blocks, and one function called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = torch.nn.LayerNorm(32), torch.nn.LayerNorm(32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        both = self.norm1(x) * torch.tanh(self.norm2(x))
        return both + torch.nn.functional.layer_norm(torch.nn.functional.layer_norm(both, (32,)) + x, (32,))


def test_norms_that_share_mean_and_variance_become_one_node_each() -> None:
    module = redrawn(ParallelNorms())
    graph, structure, _ = raised(legacy(module, images(), opset=14))
    assert sorted(norm.name for norm in structure.norms) == [
        "LayerNormalization",
        "LayerNormalization_1",
        "norm1/LayerNormalization",
        "norm2/LayerNormalization",
    ]
    assert "ReduceMean" not in types(graph)
    assert differs(graph, images(), expected(module, images())) is None


def scope_of(name: str) -> str:
    return name.removesuffix("/LayerNormalization").removeprefix("blocks/").replace("/", ".")


@pytest.mark.parametrize("opset", [14, 17])
def test_raises_a_saved_graph_with_a_dynamic_batch(opset: int, vit: torch.nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(legacy(vit, images(2), opset=opset, dynamic=True))
    saved = load(path)
    assert types(saved).count("LayerNormalization") == (0 if opset == 14 else 5)
    graph, structure, refused = raised(path.read_bytes())
    # The legacy exporter writes the path `blocks/blocks.0/norm1`.
    modules = [name for name, module in vit.named_modules() if isinstance(module, torch.nn.LayerNorm)]
    assert [scope_of(norm.name) for norm in structure.norms] == modules
    assert (types(graph).count("Gelu"), types(graph).count("Attention"), refused) == (2, 2, {})
    assert not {"Cast", "Div", "Erf", "Mul", "Pow", "ReduceMean", "Softmax", "Sqrt"} & set(types(graph))
    scales = [node.attributes.get_float("scale", 0.0) for node in graph.nodes if node.op_type == "Attention"]
    assert scales == [pytest.approx(SIZE**-0.5)] * 2  # not computed at run time
    roles = [linear.role for linear in structure.linears]
    assert roles == ["patch", *["qkv", "proj", "fc1", "fc2"] * 2, "head"]
    for batch in (1, 3):
        assert differs(graph, images(batch), expected(vit, images(batch))) is None
