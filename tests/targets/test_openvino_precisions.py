"""OpenVINO falls back to another type without a message: the requested type is compared with the running one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.graphs import images, parsed
from vitdeploy import environment, passes
from vitdeploy import precision as precisions
from vitdeploy import recipe as recipes
from vitdeploy.commands.export import export
from vitdeploy.commands.inspect.inspect import inspect
from vitdeploy.errors import CompileError, UsageError
from vitdeploy.frozen import replace
from vitdeploy.graph.recognize import recognize
from vitdeploy.passes import order
from vitdeploy.precision import quantize
from vitdeploy.progress import Silent
from vitdeploy.recipe import Batch, PrecisionSpec
from vitdeploy.runtime.artifact_session import open_session
from vitdeploy.targets import Bundle, _openvino_session
from vitdeploy.targets._openvino_session import Engine, OpenVINOSession
from vitdeploy.targets.openvino import OpenVINO

ov = pytest.importorskip("openvino")
VNNI = pytest.mark.skipif(not environment.host().int8_dot_product, reason="this CPU has no INT8 dot products")


@pytest.fixture
def bundle(exported: Callable[[str], bytes], tmp_path: Path) -> Callable[..., Bundle]:
    """The tiny ViT with its weights in a format, to be compiled for a precision."""

    def make(weights: str, precision: str) -> Bundle:
        graph = parsed(exported("dynamo"))
        passes.run([*order.raising(), *order.folding()], graph)
        structure = recognize(graph, {})
        dialect = OpenVINO().dialect()
        spec = PrecisionSpec(kind=weights)
        graph = quantize(graph, structure, spec, dialect, None, Silent()).graph
        passes.run(order.lowering(dialect), graph)
        graph.save(tmp_path / "graph.onnx")
        structure = structure.locate_attention(node.name or "" for node in graph.nodes)
        numbers = precisions.kind_of(precision).numbers
        return Bundle(tmp_path / "graph.onnx", structure, numbers, Batch(), "input", (1, 3, 32, 32))

    return make


def test_another_type_than_the_requested_one_is_refused(
    bundle: Callable[..., Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """float16 stands for bfloat16, which this CPU may have: the plug-in falls back from both in the same way."""
    if "FP16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU computes in float16")
    monkeypatch.setitem(_openvino_session._COMPUTE, "bf16", "f16")
    with pytest.raises(CompileError, match=r"OpenVINO computes in (f32|bf16) on this CPU, although f16 was requested"):
        OpenVINO(threads=1).compile(bundle("bf16", "bf16"), tmp_path)


def test_a_cpu_without_the_units_is_refused_with_what_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = replace(environment.host(), isa=("avx2",))
    monkeypatch.setattr(environment, "host", lambda: plain)
    with pytest.raises(UsageError, match="this CPU has no bfloat16") as caught:
        precisions.check("bf16", OpenVINO())
    assert caught.value.fix == "It can do fp32, int8, int8-weights, int4-weights."
    with pytest.raises(UsageError, match="this CPU has no bfloat16"):
        precisions.check("int8-bf16", OpenVINO())
    with pytest.raises(UsageError, match="this CPU has no INT8 dot products"):
        precisions.check("int8-dynamic", OpenVINO())
    precisions.check("int8-weights", OpenVINO())


def test_only_the_cpu_plug_in_needs_the_units_of_the_cpu() -> None:
    plain = replace(environment.host(), isa=("avx2",))
    for kind in ("bf16", "int8-dynamic"):
        numbers = precisions.kind_of(kind).numbers
        assert OpenVINO().refuse_numbers(numbers, plain) is not None
        assert OpenVINO(device="GPU").refuse_numbers(numbers, plain) is None


def test_another_machine_is_asked_for_its_own_units(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = replace(environment.host(), isa=("avx2",))
    able = replace(plain, isa=("avx2", "avx512_bf16"))
    monkeypatch.setattr(environment, "host", lambda: plain)
    precisions.check("bf16", OpenVINO(), able)
    monkeypatch.setattr(environment, "host", lambda: able)
    with pytest.raises(UsageError, match="that CPU has no bfloat16"):
        precisions.check("bf16", OpenVINO(), plain)


@VNNI
def test_weights_alone_leave_activations_exact_and_dynamic_rounds_them(
    bundle: Callable[..., Bundle], tmp_path: Path
) -> None:
    """Weight-only must give the numbers of ONNX Runtime with the same graph in float32."""
    from vitdeploy.graph.onnx_session import OnnxSession

    given = bundle("int8-weights", "int8-weights")
    compiled = OpenVINO(threads=1).compile(given, tmp_path)
    answers = []
    for precision, group in (("int8-weights", "0"), ("int8-dynamic", "32")):
        engine = Engine("CPU", 1, numbers=precisions.kind_of(precision).numbers)
        with OpenVINOSession(tmp_path / compiled.runs, engine) as session:
            assert session.effective["dynamic_quantization_group"] == group
            answers.append(next(iter(session.run({"input": images()}).values())))
    with OnnxSession(given.graph, lean=True) as reference:
        exact = next(iter(reference.run({"input": images()}).values()))
    largest = np.abs(exact).max()
    assert np.abs(answers[0] - exact).max() < 1e-4 * largest
    assert 1e-4 * largest < np.abs(answers[1] - exact).max() < 0.1 * largest


def test_requested_int8_products_that_do_not_happen_are_doubted(bundle: Callable[..., Bundle], tmp_path: Path) -> None:
    """The weights are float32, so nothing is rounded, although int8 products are requested."""
    found, given = OpenVINO(threads=1), bundle("fp32", "int8-dynamic")
    audit = found.audit(given, found.compile(given, tmp_path))
    assert (audit.linears.int8, audit.stored) == (0, {})
    unpacked, share = audit.doubts
    assert unpacked == "the engine unpacks the weights and computes in float32, although int8 products were requested"
    assert share.startswith("only 0.0 % of the multiply-accumulates that could be int8 are")


@pytest.mark.skipif(not environment.host().bfloat16_dot_product, reason="this CPU has no bfloat16")
@pytest.mark.long
def test_what_is_not_int8_is_bfloat16(tmp_path: Path) -> None:
    found = {}
    for precision in ("int8", "int8-bf16"):
        out = tmp_path / precision
        recipe = recipes.compose("demo:digits", target="openvino", precision=precision)
        artifact = export(recipe, out, Silent()).artifact
        with open_session(artifact, 1) as session:
            assert session.effective["inference_precision"] == ("bf16" if precision == "int8-bf16" else "f32")
        found[precision] = inspect(artifact)
    plain, around = found.values()
    assert around.linears.int8 == plain.linears.int8 > 0
    assert (plain.linears.fp32, around.linears.bf16) == (around.linears.bf16, plain.linears.fp32)
    assert around.attention.fused == around.attention.sites > 0
    assert around.doubts == ()
    graphs = {(tmp_path / precision / "graph.onnx").read_bytes() for precision in found}
    assert len(graphs) == 1, "what runs around the INT8 linears is the engine's business alone"
