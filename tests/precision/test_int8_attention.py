"""INT8 attention: all operands or none, and only where TensorRT still runs one kernel."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from tests.graphs import images, raised, run
from vitdeploy import passes
from vitdeploy.artifact.quantization import Int8AttentionCount
from vitdeploy.errors import QuantizeError
from vitdeploy.frozen import replace
from vitdeploy.graph.dialect import Dialect, Int8AttentionKernel
from vitdeploy.graph.model import Graph, operand
from vitdeploy.graph.recognize import recognize
from vitdeploy.graph.structure import AttentionSite, Structure
from vitdeploy.passes import order
from vitdeploy.passes.drop_unread_tokens import DropUnreadTokens
from vitdeploy.precision import quantize
from vitdeploy.precision.int8 import Int8
from vitdeploy.progress import Silent
from vitdeploy.quantize import Calibration, Quantized
from vitdeploy.quantize.attention import find_operands
from vitdeploy.recipe import VALUES, Batch, Int8Attention, PrecisionSpec
from vitdeploy.targets import Bundle
from vitdeploy.targets.openvino import OpenVINO
from vitdeploy.targets.tensorrt_rtx import TensorRTRTX

BATCHES = [images(1, seed) for seed in range(4)]
CALIBRATION = Calibration(lambda: iter(BATCHES), len(BATCHES), len(BATCHES), "test", "digest")
KERNEL = Int8AttentionKernel(head_sizes=(16, 32, 64), tokens=512)
COMPLETE = PrecisionSpec(kind="int8", smooth_alpha="off", attention=True)


def dialect(kernel: Int8AttentionKernel | None = KERNEL) -> Dialect:
    return Dialect(20, "primitives", activation_codes="int8", int8_attention=kernel)


def folded(model: bytes, *, whole: bool = True) -> tuple[Graph, Structure]:
    """Scales of attention are in the weights, as the kernel needs it. `whole`: tokens that nothing reads stay."""
    graph, _, _ = raised(model)
    passes.run([p for p in order.folding() if not (whole and isinstance(p, DropUnreadTokens))], graph)
    return graph, recognize(graph, {})


def quantized(
    model: bytes, precision: PrecisionSpec = COMPLETE, kernel: Int8AttentionKernel | None = KERNEL
) -> Quantized:
    graph, structure = folded(model)
    return quantize(graph, structure, precision, dialect(kernel), CALIBRATION, Silent())


def test_all_operands_are_int8(exported: Callable[[str], bytes]) -> None:
    found = quantized(exported("dynamo"))
    cores = [
        f"{name}/Attention" for name, placed in found.placement.items() if name.endswith("attn") and placed.quantized
    ]
    assert len(cores) == 2
    read = find_operands(found.graph, cores)
    assert len(read) == 8
    for node, index in read:
        assert operand(node, index).producer().op_type == "DequantizeLinear"  # type: ignore[union-attr]
    assert found.record is not None
    assert found.record.attention == Int8AttentionCount(sites=2, of=2)


def test_numbers_stay_near_those_without(exported: Callable[[str], bytes]) -> None:
    found = quantized(exported("dynamo"))
    reference = run(raised(exported("dynamo"))[0], images(1, 9))["output_0"]
    y = run(found.graph, images(1, 9))["output_0"]
    assert 0 < np.abs(y - reference).max() < 0.1 * np.abs(reference).max()
    assert found.record is not None
    both = found.record.output_sqnr_db, found.record.output_sqnr_db_without_attention
    assert min(db or 0 for db in both) > 30
    assert both[0] != both[1]


@pytest.mark.parametrize(
    ("kernel", "rule"),
    [
        (Int8AttentionKernel(head_sizes=(24,), tokens=512), "head sizes of 24 only, not 16"),
        (Int8AttentionKernel(head_sizes=(16,), tokens=4), "up to 4 tokens only, not 17"),
    ],
)
def test_the_kernel_s_rule_is_named_when_no_site_obeys_it(
    exported: Callable[[str], bytes], kernel: Int8AttentionKernel, rule: str
) -> None:
    with pytest.raises(QuantizeError, match=rule):
        quantized(exported("dynamo"), kernel=kernel)


def test_a_reader_in_float_leaves_its_site_in_float(exported: Callable[[str], bytes]) -> None:
    found = quantized(exported("dynamo"), replace(COMPLETE, keep=("blocks.0.attn.proj",)))
    first, second = (found.placement[f"blocks.{block}.attn"] for block in range(2))
    assert (first.precision, second.precision) == ("float", "int8")
    assert "the node that reads it is not quantized" in first.rule
    assert found.record is not None
    assert found.record.attention == Int8AttentionCount(sites=1, of=2)


def test_sites_that_were_not_raised_count(exported: Callable[[str], bytes]) -> None:
    graph, structure = folded(exported("dynamo"))
    refused = AttentionSite(name="blocks.2.attn", nodes=("softmax",), block=2, refused="its mask is not known")
    structure = replace(structure, attention=(*structure.attention, refused))
    found = quantize(graph, structure, COMPLETE, dialect(), CALIBRATION, Silent())
    assert found.record is not None
    assert found.record.attention == Int8AttentionCount(sites=2, of=3)


def test_nncf_decides_itself_where_its_pairs_fuse(exported: Callable[[str], bytes]) -> None:
    graph, structure = folded(exported("dynamo"))
    fuses = Dialect(20, "primitives", int8_attention=KERNEL, partial_int8_attention=True)
    with pytest.raises(QuantizeError, match="NNCF itself decides for this target"):
        quantize(graph, structure, replace(COMPLETE, quantizer="nncf"), fuses, CALIBRATION, Silent())


def test_a_single_query_stays_in_float(exported: Callable[[str], bytes]) -> None:
    graph, structure = folded(exported("dynamo"), whole=False)
    found = quantize(graph, structure, COMPLETE, dialect(), CALIBRATION, Silent())
    first, last = (found.placement[f"blocks.{block}.attn"] for block in range(2))
    assert (first.precision, last.precision) == ("int8", "float")
    assert "fewer queries than keys" in last.rule


@pytest.mark.parametrize(
    ("precision", "kernel"),
    [
        (COMPLETE, None),
        (replace(COMPLETE, kind="fp8"), KERNEL),
        (PrecisionSpec(kind="fp16", attention=True), KERNEL),
    ],
)
def test_other_targets_and_precisions_refuse_it(
    exported: Callable[[str], bytes], precision: PrecisionSpec, kernel: Int8AttentionKernel | None
) -> None:
    with pytest.raises(QuantizeError, match=r"`attention: true` is not for"):
        quantized(exported("dynamo"), precision, kernel)


@pytest.mark.parametrize(("attention", "operands"), [(VALUES, 2), (True, 4)])
def test_openvino_runs_it_as_one_kernel(
    exported: Callable[[str], bytes], attention: Int8Attention, operands: int, tmp_path: Path
) -> None:
    pytest.importorskip("openvino")
    target = OpenVINO()
    if target.dialect().int8_attention is None:
        pytest.skip("OpenVINO has no INT8 attention on this CPU: it has no INT8 dot products")
    graph, structure = folded(exported("dynamo"))
    spec = replace(COMPLETE, attention=attention)
    found = quantize(graph, structure, spec, target.dialect(), CALIBRATION, Silent())
    products = [node for node in found.graph.nodes if (node.name or "").endswith(("/qk", "/pv", "/transpose_k"))]
    pairs = [v.producer() for n in products for v in n.inputs if v is not None and v.producer() is not None]
    assert sum(node.op_type == "DequantizeLinear" for node in pairs if node is not None) == 2 * operands
    pairs = [operand(n, 0).producer() for n in products if (n.name or "").endswith("/pv")]
    assert {pair.inputs[2].dtype for pair in pairs if pair is not None} == {ir.DataType.UINT8}  # type: ignore[union-attr]
    assert found.record is not None
    assert found.record.attention == Int8AttentionCount(sites=2, of=2, values_alone=attention == VALUES)
    assert (found.record.output_sqnr_db or 0) > 30
    passes.run(order.lowering(target.dialect()), found.graph)
    bundle = _bundle(found.graph, structure, tmp_path)
    audit = target.audit(bundle, target.compile(bundle, tmp_path))
    assert (audit.attention.sites, audit.attention.fused) == (2, 2)


def test_values_alone_are_refused_where_all_operands_are_needed(exported: Callable[[str], bytes]) -> None:
    with pytest.raises(QuantizeError, match="`attention: values` is not for this target"):
        quantized(exported("dynamo"), replace(COMPLETE, attention=VALUES))


@pytest.mark.slow
def test_tensorrt_rtx_runs_it_as_one_kernel(exported: Callable[[str], bytes], tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    target = TensorRTRTX()
    graph, structure = folded(exported("dynamo"))
    found = quantize(graph, structure, COMPLETE, target.dialect(), CALIBRATION, Silent())
    passes.run(order.lowering(target.dialect()), found.graph)
    bundle = _bundle(found.graph, structure, tmp_path)
    audit = target.audit(bundle, target.compile(bundle, tmp_path))
    assert (audit.attention.sites, audit.attention.fused) == (2, 2)


def _bundle(graph: Graph, structure: Structure, folder: Path) -> Bundle:
    graph.save(folder / "graph.onnx")
    located = structure.locate_attention(node.name or "" for node in graph.nodes)
    return Bundle(folder / "graph.onnx", located, Int8.numbers, Batch(), "input", (1, 3, 32, 32))
