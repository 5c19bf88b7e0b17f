"""FP16: weights and activations in half precision, float32 at the graph's edges and where half precision overflows.

`convert` changes the types, for `bfloat16` too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

import ml_dtypes
import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass

from vitdeploy.artifact.quantization import HalfPrecision
from vitdeploy.errors import QuantizeError
from vitdeploy.graph.model import Graph
from vitdeploy.graph.structure import Structure
from vitdeploy.quantize import Calibration
from vitdeploy.quantize.overflow import (
    FLOAT32_INPUTS,
    LIMIT,
    in_half_range,
    too_large,
    unfit_constants,
    with_scores,
)
from vitdeploy.quantize.placement import kept_by
from vitdeploy.quantize.ranges import LARGEST_HALF, Range, collect, masked

LEAST_HALF_SHARE = 0.5
"""Of the linears' weights, which is of their arithmetic for each token. With less in half precision the casts eat what
is gained, and "fp16" on the artifact would mislead."""

_LARGEST_BFLOAT16 = (2 - 2**-7) * 2.0**127


def quantize(
    graph: Graph, structure: Structure, keep: tuple[str, ...], calibration: Calibration | None
) -> HalfPrecision:
    """Convert the raised `graph` to float16, in place, but for what would overflow there.

    Every activation, attention scores included, is measured on `calibration`. A tensor beyond `LIMIT` keeps the nodes
    that write and read it in float32; casts stand at the borders only. So a residual stream that is too large is added
    up and normalized in float32, while the linears and attentions between stay in float16, and fuse.

    Args:
        graph: raised and folded.
        structure: its linears and sites, which the record names.
        keep: roles or names of linears that stay in float32 besides.
        calibration: images. Where they are synthetic, or there are none and only constants are checked, the record
            says so.

    Raises:
        QuantizeError: an activation that is NaN or infinite in float32; or too little would be float16.
    """
    reasons = unfit_constants(graph)
    ranges: Mapping[str, Range] = {}
    if calibration is not None:
        probe = with_scores(graph)
        ranges = collect(probe, calibration.batches())
        reasons |= too_large(probe, ranges)
    for linear, rule in kept_by(structure, keep).items():
        reasons.update(dict.fromkeys(_nodes_of(structure, linear), rule))
    _refuse_mostly_float32(structure, reasons)
    record = _record(graph, structure, reasons, ranges, calibration)
    convert(graph, reasons)
    return record


def convert(graph: Graph, float32: Collection[str] = (), to: ir.DataType = ir.DataType.FLOAT16) -> None:
    """Convert float32 tensors to `to`, FLOAT16 or BFLOAT16, in place, but for what nodes named in `float32` touch.

    A strongly typed TensorRT network takes its precision from these types. LayerNormalization stays one operator, whose
    statistics backends compute in float32 (ONNX's stash_type); written out as primitives it would overflow.

    Raises:
        QuantizeError: a constant that is to be float16 is beyond ±65,504.
    """
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(graph.model)
    computed = _convert_nodes(graph, float32, to)
    _convert_constants(graph, float32, to)
    for value in computed:
        _cast(graph, value, float32, to)
    _cast_outputs(graph, to)


def _refuse_mostly_float32(structure: Structure, reasons: Mapping[str, str]) -> None:
    sizes = {linear.name: int(np.prod(linear.weight)) for linear in structure.linears}
    kept = [linear.name for linear in structure.linears if set(linear.nodes) & set(reasons)]
    share = 1 - sum(sizes[name] for name in kept) / max(1, sum(sizes.values()))
    if kept and share < LEAST_HALF_SHARE:
        first = next(reasons[node] for node in _nodes_of(structure, kept[0]) if node in reasons)
        raise QuantizeError(
            f"fp16 gains nothing: {len(kept)} of {len(sizes)} linears, {1 - share:.0%} of their weights, would have to "
            f"stay float32 ({kept[0]}: {first}; float16 is used up to {LIMIT:.0f})",
            fix="Use --precision fp32, or bf16 where the target has it.",
        )


def _nodes_of(structure: Structure, linear: str) -> tuple[str, ...]:
    return next(entry.nodes for entry in structure.linears if entry.name == linear)


def _record(
    graph: Graph,
    structure: Structure,
    reasons: Mapping[str, str],
    ranges: Mapping[str, Range],
    calibration: Calibration | None,
) -> HalfPrecision:
    """Name each site and linear that stays in float32 with its reason; count the other nodes."""
    entries = {node: entry.name for entry in (*structure.attention, *structure.linears) for node in entry.nodes}
    sites: dict[str, str] = {}
    others: Counter[str] = Counter()
    for node in graph.nodes:
        if node.name in reasons and node.name in entries:
            sites[entries[node.name]] = reasons[node.name]
        elif node.name in reasons:
            others[node.op_type] += 1
    tensor, largest = max(ranges.items(), key=lambda item: item[1].magnitude, default=("", None))
    return HalfPrecision(
        dtype="float16",
        float32=sites,
        float32_nodes=dict(sorted(others.items())),
        largest=None if largest is None else float(largest.magnitude),
        largest_tensor=tensor,
        limit=None if largest is None else LIMIT,
        checked_on=None if calibration is None else calibration.data,
    )


def _convert_nodes(graph: Graph, float32: Collection[str], to: ir.DataType) -> list[ir.Value]:
    """Set what nodes compute to its type; all float values that are no constants, in order."""
    computed = [v for v in graph.model.graph.inputs if v.dtype == ir.DataType.FLOAT]
    for node in graph.model.graph.all_nodes():
        half = node.name not in float32
        if half:
            _convert_attributes(node, to)
        for value in node.outputs:
            if value.dtype == ir.DataType.FLOAT:
                if half:
                    value.type = ir.TensorType(to)  # its own: values share type objects
                computed.append(value)
    return computed


def _convert_attributes(node: ir.Node, to: ir.DataType) -> None:
    """What an attribute says about types: the target of a Cast, the number of a ConstantOfShape."""
    target = node.attributes.get("to")
    if node.op_type == "Cast" and target is not None and target.as_int() == ir.DataType.FLOAT:
        node.attributes["to"] = ir.AttrInt64("to", int(to))
    attribute = node.attributes.get("value")
    if attribute is not None and attribute.type == ir.AttributeType.TENSOR:
        tensor = attribute.as_tensor()
        if tensor.dtype == ir.DataType.FLOAT:
            node.attributes["value"] = ir.AttrTensor("value", _half(tensor, to, is_mask=False))


def _convert_constants(graph: Graph, float32: Collection[str], to: ir.DataType) -> None:
    """Give every reader the type it wants; a constant with readers of both kinds comes twice."""
    main, masks = graph.model.graph, masked(graph)
    for name, value in list(main.initializers.items()):
        tensor = value.const_value
        if tensor is None or tensor.dtype != ir.DataType.FLOAT:
            continue
        uses = list(value.uses())
        full = [use for use in uses if _wants_float(use.node, use.idx, float32)]
        if full and len(full) == len(uses):
            continue
        if full:
            kept = ir.Value(name=f"{name}/float32", const_value=tensor, shape=value.shape, type=value.type)
            main.register_initializer(kept)
            for use in full:
                use.node.replace_input_with(use.idx, kept)
        value.const_value = _half(tensor, to, is_mask=name in masks)
        value.type = ir.TensorType(to)


def _wants_float(node: ir.Node, index: int, float32: Collection[str]) -> bool:
    return node.name in float32 or index in FLOAT32_INPUTS.get(node.op_type, ())


def _half(tensor: ir.TensorProtocol, to: ir.DataType, *, is_mask: bool) -> ir.TensorProtocol:
    if to == ir.DataType.BFLOAT16:
        # float32's range but for its last percent: what models write for minus infinity in a mask stays finite.
        finite = np.clip(tensor.numpy(), -_LARGEST_BFLOAT16, _LARGEST_BFLOAT16)
        return ir.tensor(np.asarray(finite, ml_dtypes.bfloat16), name=tensor.name)
    numbers = in_half_range(tensor, is_mask=is_mask)
    largest = np.abs(numbers).max(initial=0.0, where=np.isfinite(numbers))
    if largest > LARGEST_HALF:
        raise QuantizeError(
            f"{tensor.name} reaches {largest:.3g}, float16 ends at {LARGEST_HALF:.0f}", fix="Use --precision fp32."
        )
    return ir.tensor(numbers.astype(np.float16), name=tensor.name)


def _cast(graph: Graph, value: ir.Value, float32: Collection[str], to: ir.DataType) -> None:
    """Put one Cast behind `value` for all readers that want the other type."""
    is_half = value.dtype == to
    readers = [use for use in value.uses() if _wants_float(use.node, use.idx, float32) == is_half]
    if not readers:
        return
    cast = _cast_node(value, ir.DataType.FLOAT if is_half else to)
    node = value.producer()
    if node is None:
        graph.model.graph.insert_before(graph.model.graph[0], cast)
    else:
        assert node.graph is not None
        node.graph.insert_after(node, cast)
    for use in readers:
        use.node.replace_input_with(use.idx, cast.outputs[0])


def _cast_outputs(graph: Graph, to: ir.DataType) -> None:
    main = graph.model.graph
    for index, value in enumerate(main.outputs):
        if value.dtype != to:
            continue
        name = value.name
        value.name = f"{name}/half"
        cast = _cast_node(value, ir.DataType.FLOAT)
        cast.name, cast.outputs[0].name = f"{name}/to_float", name
        main.append(cast)
        main.outputs[index] = cast.outputs[0]


def _cast_node(value: ir.Value, dtype: ir.DataType) -> ir.Node:
    label = "float" if dtype == ir.DataType.FLOAT else "half"
    cast = ir.node("Cast", [value], {"to": dtype}, name=f"{value.name}/to_{label}")
    cast.outputs[0].dtype, cast.outputs[0].shape = dtype, value.shape
    cast.outputs[0].name = f"{value.name}/{label}"
    return cast
