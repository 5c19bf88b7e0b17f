"""A 1×1 convolution is computed before its input is enlarged."""

from __future__ import annotations

import numpy as np
import pytest

from tests.graphs import apply, parsed, run, types
from vitdeploy.graph.model import Graph
from vitdeploy.passes.hoist_pointwise import HoistPointwise
from vitdeploy.session import Array

C, N = 8, 8
RNG = np.random.default_rng(0)
SMALL, MIDDLE, LARGE = ((2, C, side, side + 1) for side in (3, 6, 12))
SIZES = np.array([2, C, 12, 13])


def draw(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


def convolve(value: str, bias: bool = True, result: str = "y") -> str:
    """A 1×1 convolution in the form that `RaisePointwise` writes."""
    first = f"{result} = Transpose<perm = [0, 3, 1, 2]>"
    linear = f"m = MatMul(t, w) p = Add(m, b) {first}(p)" if bias else f"m = MatMul(t, w) {first}(m)"
    return f"t = Transpose<perm = [0, 2, 3, 1]>({value}) {linear}"


def model(body: str, outputs: str = "float y", batch: str = "2", **constants: Array) -> Graph:
    inputs = ", ".join(
        f"float[{batch}, {', '.join(map(str, shape[1:]))}] {name}"
        for name, shape in (("small", SMALL), ("middle", MIDDLE), ("large", LARGE))
    )
    given = {"w": draw(C, N), "b": draw(N), "sizes": SIZES, **constants}
    return parsed(f'<ir_version: 10, opset_import: ["" : 20]> vit ({inputs}) => ({outputs}) {{ {body} }}', **given)


def answers(graph: Graph) -> dict[str, Array]:
    """The outputs for random maps."""
    rng = np.random.default_rng(1)
    small, middle, large = (rng.standard_normal(shape).astype(np.float32) for shape in (SMALL, MIDDLE, LARGE))
    return run(graph, small, middle=middle, large=large)


def check(graph: Graph, fired: int) -> list[tuple[int, ...]]:
    """The pass fires so often and changes no number; return the shapes of all inputs of linears."""
    expected, before = answers(graph), types(graph)
    assert apply(HoistPointwise(), graph).fired == fired
    if not fired:
        assert types(graph) == before
    for name, values in answers(graph).items():
        assert np.abs(values - expected[name]).max() < 1e-5 * np.abs(expected[name]).max()
    products = [node for node in graph.nodes if node.op_type == "MatMul"]
    return [tuple(n for n in (node.inputs[0].shape or ()) if isinstance(n, int)) for node in products]


WAYS = [
    'mode = "linear", coordinate_transformation_mode = "half_pixel"',
    'mode = "linear", coordinate_transformation_mode = "align_corners"',
    'mode = "linear", coordinate_transformation_mode = "asymmetric"',
    'mode = "nearest", coordinate_transformation_mode = "asymmetric", nearest_mode = "floor"',
    'mode = "cubic", coordinate_transformation_mode = "half_pixel", cubic_coeff_a = -0.75',
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("bias", [True, False])
def test_changes_places_with_a_resize(way: str, bias: bool) -> None:
    graph = model(f"r = Resize<{way}>(small, , , sizes) {convolve('r', bias)}")
    assert check(graph, 1) == [(2, 3, 4, C)]


def test_takes_a_resize_by_factors() -> None:
    scales = np.array([1, 1, 2, 2], np.float32)
    graph = model(f'r = Resize<mode = "linear">(small, , scales) {convolve("r")}', batch="batch", scales=scales)
    assert check(graph, 1) == [(3, 4, C)]


def test_splits_joined_maps_and_adds_the_bias_once() -> None:
    resizes = " ".join(f'r{name} = Resize<mode = "linear">({name}, , , sizes)' for name in ("small", "middle", "large"))
    graph = model(f"{resizes} c = Concat<axis = 1>(rsmall, rmiddle, rlarge) {convolve('c')}", w=draw(3 * C, N))
    assert check(graph, 1) == [(2, 3, 4, C), (2, 6, 7, C), (2, 12, 13, C)]
    assert types(graph).count("Resize") == 2, "one that keeps the size is gone"
    assert types(graph).count("Add") == 3, "one bias and two sums"


def test_a_map_beside_it_may_have_any_number_of_channels() -> None:
    body = f'r = Resize<mode = "linear">(small, , , sizes) c = Concat<axis = -3>(large, large, r) {convolve("c")}'
    assert check(model(body, w=draw(3 * C, N)), 1) == [(2, 12, 13, C), (2, 12, 13, C), (2, 3, 4, C)]


LEFT = {
    "more channels than it enlarges": (convolve("r"), {"w": draw(C, 2 * C), "b": draw(2 * C)}, "float y"),
    "the enlarged map is an output": (convolve("r"), {}, "float y, float r"),
    "something else reads the enlarged map": (f"{convolve('r')} z = Relu(r)", {}, "float y, float z"),
    "something else reads the linear": (f"{convolve('r')} z = Relu(m)", {}, "float y, float z"),
    "an activation between": (f"a = Relu(r) {convolve('a')}", {}, "float y"),
    "joined along the height": (f"c = Concat<axis = 2>(r, large) {convolve('c')}", {}, "float y"),
}


@pytest.mark.parametrize("case", LEFT)
def test_left_alone(case: str) -> None:
    body, constants, outputs = LEFT[case]
    check(model(f'r = Resize<mode = "linear">(small, , , sizes) {body}', outputs, **constants), 0)


def test_one_that_makes_a_map_smaller_is_left_alone() -> None:
    sizes = np.array([2, C, 3, 4])
    check(model(f'r = Resize<mode = "linear">(large, , , sizes) {convolve("r")}', sizes=sizes), 0)


@pytest.mark.parametrize("factors", [(1, 1.1, 2, 2), (1, 1, 1.1, 1.1)])
def test_factors_that_only_happen_to_keep_a_size_are_left_alone(factors: tuple[float, ...]) -> None:
    """8 channels times 1.1 are 8, and 3 rows times 1.1 are 3; but other numbers are taken."""
    way, scales = 'mode = "nearest"', np.array(factors, np.float32)
    check(model(f"r = Resize<{way}>(small, , scales) {convolve('r')}", scales=scales), 0)


def test_factors_that_are_computed_are_left_alone() -> None:
    body = f'f = Cast<to = 1>(whole) r = Resize<mode = "linear">(small, , f) {convolve("r")}'
    graph = model(body, whole=np.array([1, 1, 4, 4]))
    graph.infer_shapes()
    [resize] = [node for node in graph.nodes if node.op_type == "Resize"]
    resize.outputs[0].shape = type(resize.outputs[0].shape)([2, C, 12, 16])  # known from elsewhere
    for node in graph.nodes:
        if node.op_type in ("Transpose", "MatMul", "Add") and node.outputs[0].shape is None:
            node.outputs[0].shape = type(resize.outputs[0].shape)([2, 12, 16, C])
    assert HoistPointwise().apply(graph).fired == 0


def test_one_that_fills_in_a_constant_is_left_alone() -> None:
    roi = np.array([0, 0, -0.5, -0.5, 1, 1, 1.5, 1.5], np.float32)
    way = 'mode = "linear", coordinate_transformation_mode = "tf_crop_and_resize", extrapolation_value = 3.0'
    check(model(f"r = Resize<{way}>(small, roi, , sizes) {convolve('r')}", roi=roi), 0)


def test_a_batch_that_varies_with_given_sizes_is_left_alone() -> None:
    """The sizes have the batch in them."""
    graph = model(f'r = Resize<mode = "linear">(small, , , sizes) {convolve("r")}')
    graph.infer_shapes()
    for node in graph.nodes:
        for value in node.outputs:
            value.shape = None if value.shape is None else type(value.shape)(["batch", *[*value.shape][1:]])
    assert HoistPointwise().apply(graph).fired == 0
