"""INT8: Q/DQ on the linears, ranges from images, and numbers near the model's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from tests.graphs import apply, expected, images, raised, refusals, run, types
from vitdeploy import passes
from vitdeploy.artifact.manifest import Placement
from vitdeploy.artifact.quantization import Migration
from vitdeploy.errors import QuantizeError
from vitdeploy.graph.dialect import Dialect
from vitdeploy.graph.model import Graph, load
from vitdeploy.graph.structure import Structure
from vitdeploy.passes import order
from vitdeploy.passes.lower_integer_linears import LowerIntegerLinears
from vitdeploy.precision import quantize
from vitdeploy.progress import Silent
from vitdeploy.quantize import Calibration, Quantized
from vitdeploy.recipe import PrecisionSpec

QDQ = Dialect(20, "primitives")
BATCHES = [images(1, seed) for seed in range(8)]


def calibration() -> Calibration:
    return Calibration(lambda: iter(BATCHES), len(BATCHES), len(BATCHES), "test", "digest")


@pytest.fixture(scope="module")
def int8(
    exported: Callable[[str], bytes], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Quantized, Structure, Path]:
    graph, structure, _ = raised(exported("dynamo"))
    folder = tmp_path_factory.mktemp("int8")
    quantized = quantize(graph, structure, PrecisionSpec(kind="int8", keep=("head",)), QDQ, calibration(), Silent())
    path = folder / "quantized.onnx"
    quantized.graph.save(path)
    return quantized, structure, path


def test_q_dq_is_on_the_selected_linears_only(int8: tuple[Quantized, Structure, Path]) -> None:
    quantized, structure, path = int8
    graph = load(path)
    linears = {name: linear.role for linear in structure.linears for name in linear.nodes}
    roles = [linears[n.name or ""] for n in graph.nodes if n.name in linears and _quantized(n)]
    assert sorted(roles) == sorted(["qkv", "proj", "fc1", "fc2"] * 2)
    assert types(graph).count("Attention") == 2
    assert quantized.record is not None
    assert quantized.record.quantized == 8
    assert quantized.placement["head"] == Placement(precision="float", rule="keep: head")
    assert quantized.record.calibration is not None
    assert (quantized.record.calibration.data, quantized.record.calibration.images) == ("test", 8)
    assert not any(_quantized(n) for n in graph.nodes if n.op_type in ("Attention", "LayerNormalization", "Gelu"))


def _quantized(node: Any) -> bool:
    return any(
        v is not None and v.producer() is not None and v.producer().op_type == "DequantizeLinear" for v in node.inputs
    )


def test_numbers_stay_near_the_models(int8: tuple[Quantized, Structure, Path], vit: Any) -> None:
    y, reference = run(load(int8[2]), images(1, 3))["output_0"], expected(vit, images(1, 3))["output_0"]
    assert 0 < np.abs(y - reference).max() < 0.1 * np.abs(reference).max()


@pytest.mark.parametrize("attention", ["multihead", "primitives"])
def test_lowered_to_integer_kernels_it_gives_the_numbers_of_q_dq(
    int8: tuple[Quantized, Structure, Path], attention: Any
) -> None:
    graph = load(int8[2])
    reference = run(graph, images())["output_0"]
    records = passes.run(order.lowering(Dialect(20, attention, "integer")), graph)
    fired = {record.name: record.fired for record in records}
    assert fired["lower-integer-linears"] == 8
    assert fired[f"lower-{attention}"] == 2
    assert refusals(records, "lower-integer-linears") == {}
    assert types(graph).count("DequantizeLinear") == 0
    assert graph.opset == 20
    y = run(graph, images())["output_0"]
    assert np.abs(y - reference).max() < 1e-3 * np.abs(reference).max()


def test_a_broken_scale_would_be_noticed(int8: tuple[Quantized, Structure, Path]) -> None:
    """The test above depends on it."""
    graph = load(int8[2])
    reference = run(graph, images())["output_0"]
    apply(LowerIntegerLinears(), graph)
    node = next(n for n in graph.nodes if n.op_type == "MatMulIntegerToFloat")
    node.replace_input_with(3, _scaled(graph, node.inputs[3], 1.05))
    assert np.abs(run(graph, images())["output_0"] - reference).max() > 1e-3 * np.abs(reference).max()


def _scaled(graph: Graph, value: Any, factor: float) -> Any:
    tensor = ir.tensor(value.const_value.numpy() * np.float32(factor), name="scaled")
    scaled = ir.Value(name="scaled", const_value=tensor, shape=tensor.shape, type=value.type)
    graph.model.graph.register_initializer(scaled)
    return scaled


def test_calibration_images_are_required(exported: Callable[[str], bytes]) -> None:
    graph, structure, _ = raised(exported("dynamo"))
    with pytest.raises(QuantizeError, match=r"need calibration images.*--calibration"):
        quantize(graph, structure, PrecisionSpec(kind="int8"), QDQ, None, Silent())


def test_float32_is_left_alone(exported: Callable[[str], bytes]) -> None:
    graph, structure, _ = raised(exported("dynamo"))
    before = types(graph)
    found = quantize(graph, structure, PrecisionSpec(kind="fp32"), QDQ, None, Silent())
    assert (types(found.graph), found.record) == (before, None)


def test_nothing_is_printed(exported: Callable[[str], bytes], capfd: pytest.CaptureFixture[str]) -> None:
    """`--json` owns stdout."""
    graph, structure, _ = raised(exported("legacy-17"))
    precision = PrecisionSpec(kind="int8", smooth_alpha="off", keep=("qkv", "proj", "fc1", "head"))
    record = quantize(graph, structure, precision, QDQ, calibration(), Silent()).record
    assert record is not None
    assert record.quantized == 2
    assert capfd.readouterr().out == ""


def test_the_record_tells_the_path(int8: tuple[Quantized, Structure, Path]) -> None:
    record = int8[0].record
    assert record is not None
    assert (record.tried[0].alpha, record.tried[0].ranges, record.tried[0].bias_correction) == (None, "minmax", False)
    chosen = next(
        step
        for step in record.tried
        if (step.ranges, step.bias_correction) == (record.ranges, record.bias_correction)
        and step.alpha == (record.migration.alpha if record.migration else None)
    )
    assert record.output_sqnr_db == chosen.output_sqnr_db == max(step.output_sqnr_db or 0 for step in record.tried)
    assert record.weight_bits in (7, 8)
    assert dict(record.rows())["tried"].startswith("no migration, minmax ranges: ")


def test_dynamic_migrates_when_it_has_images(exported: Callable[[str], bytes]) -> None:
    precision = PrecisionSpec(kind="int8-dynamic", smooth_alpha=0.5)
    for given, migration in ((calibration(), Migration(alpha=0.5, inputs=7)), (None, None)):
        graph, structure, _ = raised(exported("dynamo"))
        found = quantize(graph, structure, precision, Dialect(20, "multihead", "integer"), given, Silent())
        assert found.record is not None
        assert found.record.migration == migration
        assert found.record.migration_note == ("" if given else "none: it needs calibration images (--calibration)")
        assert types(found.graph).count("DynamicQuantizeMatMul") == 9


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_around_tensorrts_pairs_everything_is_half(kind: Any, exported: Callable[[str], bytes]) -> None:
    graph, structure, _ = raised(exported("dynamo"))
    dialect = Dialect(20, "primitives", activation_codes="int8", half_around=True)
    found = quantize(graph, structure, PrecisionSpec(kind=kind), dialect, calibration(), Silent())
    pairs = [n for n in found.graph.nodes if n.op_type == "QuantizeLinear"]
    assert len(pairs) == 9
    for node in pairs:
        assert node.inputs[1].const_value.dtype == ir.DataType.FLOAT16
        assert node.inputs[2].const_value.dtype == {"int8": ir.DataType.INT8, "fp8": ir.DataType.FLOAT8E4M3FN}[kind]
        assert float(node.inputs[2].const_value.numpy()) == 0


def test_dynamic_left_to_the_engine_migrates_too(exported: Callable[[str], bytes]) -> None:
    """OpenVINO rounds activations by itself: the graph has INT8 weights only, behind migrated norms."""
    graph, structure, _ = raised(exported("dynamo"))
    norm = next(n for n in graph.nodes if n.op_type == "LayerNormalization")
    before = norm.inputs[1].const_value.numpy().copy()  # type: ignore[union-attr]
    found = quantize(
        graph, structure, PrecisionSpec(kind="int8-dynamic", smooth_alpha=0.5), QDQ, calibration(), Silent()
    )
    assert found.record is not None
    assert found.record.migration == Migration(alpha=0.5, inputs=7)
    assert found.record.output_sqnr_db is None
    assert found.record.method.startswith("weights only; the engine rounds")
    assert types(found.graph).count("DequantizeLinear") == 9
    passes.run(order.lowering(QDQ), found.graph)  # folds what migration multiplied
    moved = next(n for n in found.graph.nodes if n.name == norm.name)
    assert not np.allclose(moved.inputs[1].const_value.numpy(), before)  # type: ignore[union-attr]
    bare = quantize(graph, structure, PrecisionSpec(kind="int8-dynamic"), QDQ, None, Silent())
    assert bare.record is not None
    assert bare.record.migration_note.startswith("none: it needs calibration images")
