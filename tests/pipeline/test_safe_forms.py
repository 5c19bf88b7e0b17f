"""Safe forms: which apply to a graph, and that each computes the same with the same weights and the same sites."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from torch import nn

from tests.detectors import Detector
from tests.graphs import images, redrawn, run, tiny_vit
from tests.toys.lowered import Depth, eva, lower, swin
from vitdeploy.graph.model import Graph, constant
from vitdeploy.graph.structure import Structure
from vitdeploy.pipeline.safe_forms import SafeForms, list_safe_forms
from vitdeploy.session import Array

MODELS: dict[str, Callable[[], nn.Module]] = {
    "vit": tiny_vit, "eva": eva, "packed eva": lambda: eva(qkv_fused=True), "swin": swin, "dpt": Depth,
}  # fmt: skip
ROUNDING = {"fp16": 1e-2, "int8": 2e-2, "fp32": 1e-6}
"""Of the largest number. ONNX Runtime computes half precision in float32 and rounds where it has to, so forms round in
other places; a code of INT8 may become its neighbour."""


def image_of(name: str) -> Array:
    if name == "swin":
        return np.random.default_rng(0).standard_normal((1, 3, 64, 64)).astype(np.float32)
    return images()


@pytest.fixture(scope="module")
def lowered() -> Callable[[str, str], tuple[Graph, Structure, Array]]:
    made: dict[tuple[str, str], tuple[Graph, Structure, Array]] = {}

    def make(name: str, kind: str) -> tuple[Graph, Structure, Array]:
        if (name, kind) not in made:
            x = image_of(name)
            made[name, kind] = (*lower(MODELS[name](), x, kind), x)
        return made[name, kind]

    return make


def names(forms: SafeForms) -> list[str]:
    return [form.name for form in forms.forms]


def largest_difference(a: dict[str, Array], b: dict[str, Array]) -> float:
    return max(float(np.abs(a[name] - b[name]).max() / np.abs(a[name]).max()) for name in a)


def weights(graph: Graph) -> set[bytes]:
    """The bytes of the weights that variants share: those of 1 kB and more."""
    tensors = (constant(value) for value in graph.model.graph.initializers.values())
    return {tensor.numpy().tobytes() for tensor in tensors if tensor is not None and tensor.nbytes >= 1024}


BLOCKS = {"vit": 2, "eva": 2, "packed eva": 2, "swin": 4, "dpt": 4}


@pytest.mark.parametrize("name", list(MODELS))
def test_forms_come_in_a_fixed_order_and_the_others_have_a_reason(
    name: str, lowered: Callable[[str, str], tuple[Graph, Structure, Array]]
) -> None:
    graph, structure, _ = lowered(name, "fp16")
    forms = list_safe_forms(graph, structure)
    rotary = ["baked-positions"] if "eva" in name else []
    blocks = [f"fp32-block-{block}" for block in range(BLOCKS[name])]
    assert names(forms) == ["separate-qkv", *rotary, "fp32-scores", *blocks, "level-2", "level-0", "fp32"]
    assert set(forms.left_out) == {"baked-positions"} - set(rotary)
    assert [form.block for form in forms.forms if form.name in blocks] == list(range(BLOCKS[name]))


@pytest.mark.parametrize("kind", ["fp16", "int8", "fp32"])
@pytest.mark.parametrize("name", list(MODELS))
def test_each_form_computes_the_same_with_the_same_weights_and_sites(
    name: str, kind: str, lowered: Callable[[str, str], tuple[Graph, Structure, Array]]
) -> None:
    graph, structure, x = lowered(name, kind)
    plain, before, sites = run(graph, x), weights(graph), {site.name for site in structure.attention}
    forms = list_safe_forms(graph, structure)
    node_names = {node.name for node in graph.nodes}
    for form in forms.forms:
        if not form.has_graph:
            continue
        rewritten = form.rewrite(graph, structure)
        assert largest_difference(plain, run(rewritten.graph, x)) <= ROUNDING[kind], form.name
        after = {node.name for node in rewritten.graph.nodes}
        assert {site.name for site in rewritten.structure.attention} == sites
        listed = [*rewritten.structure.attention, *rewritten.structure.linears, *rewritten.structure.norms]
        assert all(set(entry.nodes) <= after for entry in listed), form.name
        tables = weights(rewritten.graph) - before
        assert not tables or form.name == "baked-positions"
    assert {node.name for node in graph.nodes} == node_names  # the plain graph stays as it is
    assert largest_difference(plain, run(graph, x)) == 0


def test_a_float32_graph_has_no_forms_in_float32(
    lowered: Callable[[str, str], tuple[Graph, Structure, Array]],
) -> None:
    graph, structure, _ = lowered("eva", "fp32")
    forms = list_safe_forms(graph, structure)
    assert names(forms) == ["separate-qkv", "baked-positions", "level-2", "level-0"]
    assert forms.left_out == dict.fromkeys(["fp32-scores", "fp32"], "the graph computes in FP32 already")


def test_forms_in_float32_have_no_half_precision_left(
    lowered: Callable[[str, str], tuple[Graph, Structure, Array]],
) -> None:
    graph, structure, _ = lowered("vit", "fp16")
    form = list_safe_forms(graph, structure).find("fp32")
    assert form is not None
    everything = form.rewrite(graph, structure)
    types = {str(v.dtype) for n in everything.graph.nodes if n.op_type != "Cast" for v in (*n.inputs, *n.outputs) if v}
    assert "FLOAT16" not in types
    assert "float16 norm" not in everything.structure.risky_forms
    assert form.note == "everything computes in FP32; casts FP16 weights up"


def test_a_lower_level_is_only_offered_below_that_of_the_plain_form(
    lowered: Callable[[str, str], tuple[Graph, Structure, Array]],
) -> None:
    graph, structure, _ = lowered("vit", "fp16")
    forms = list_safe_forms(graph, structure, optimization_level=1)
    assert "level-0" in names(forms)
    assert forms.left_out["level-2"] == "it is built at level 1"
    level = forms.find("level-0")
    assert level is not None and level.optimization_level == 0 and not level.has_graph


def test_a_varying_batch_keeps_varying() -> None:
    x = images(3)
    graph, structure = lower(eva(qkv_fused=True), images(2), dynamic=True)
    plain = run(graph, x)
    forms = [form for form in list_safe_forms(graph, structure).forms if form.has_graph]
    assert len(forms) == 6
    for form in forms:
        assert largest_difference(plain, run(form.rewrite(graph, structure).graph, x)) <= ROUNDING["fp16"], form.name


def test_a_detector_has_the_forms_of_its_encoder_and_decoder() -> None:
    x = images()
    graph, structure = lower(redrawn(Detector(selects=True)), x)
    plain = run(graph, x)
    forms = list_safe_forms(graph, structure)
    assert [form.block for form in forms.forms if form.block is not None]
    for form in (form for form in forms.forms if form.has_graph):
        rewritten = form.rewrite(graph, structure)
        assert largest_difference(plain, run(rewritten.graph, x)) <= ROUNDING["fp16"], form.name
        assert ("float16 decoder" in rewritten.structure.risky_forms) == (form.name != "fp32")


def test_bfloat16_graphs_stay_valid() -> None:
    """ONNX Runtime has no kernels for bfloat16 on a CPU, so types are checked and numbers are not."""
    graph, structure = lower(eva(qkv_fused=True), images(), "bf16")
    forms = list_safe_forms(graph, structure)
    assert names(forms)[:4] == ["separate-qkv", "baked-positions", "fp32-scores", "fp32-block-0"]
    assert forms.forms[-1].note == "everything computes in FP32; casts BF16 weights up"
    for form in (form for form in forms.forms if form.has_graph):
        rewritten = form.rewrite(graph, structure).graph
        onnx.checker.check_model(ir.to_proto(rewritten.model), full_check=True)
        types = {str(node.outputs[0].dtype) for node in rewritten.nodes}
        assert types == ({"FLOAT"} if form.name == "fp32" else {"BFLOAT16", "FLOAT"}), form.name
