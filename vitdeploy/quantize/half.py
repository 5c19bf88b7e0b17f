"""FP16: half-precision weights and activations, float32 at the graph's edges and where half precision overflows.

`convert` changes the types, and serves `bfloat16` too.
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
from vitdeploy.graph.casts import FLOAT32_INPUTS, insert_cast, make_cast
from vitdeploy.graph.model import Graph
from vitdeploy.graph.structure import Structure
from vitdeploy.quantize import Calibration
from vitdeploy.quantize.angles import find_angles
from vitdeploy.quantize.box_arithmetic import find_box_arithmetic
from vitdeploy.quantize.guards import find_lost_guards
from vitdeploy.quantize.overflow import (
    LIMIT,
    clip_masks,
    expose_scores,
    find_overflow,
    find_unfit_constants,
)
from vitdeploy.quantize.placement import match_keep
from vitdeploy.quantize.ranges import LARGEST_HALF, Range, collect_ranges, find_masks
from vitdeploy.quantize.token_choices import find_token_choices

LEAST_HALF_SHARE = 0.5
"""Of the linears' weights, and so of their arithmetic for each token. With a smaller share in half precision, casts
cost what is gained, and the name "fp16" would mislead."""

_UNSTASHED = frozenset({"InstanceNormalization", "LpNormalization", "MeanVarianceNormalization"})
"""Norms without the attribute `stash_type`."""

_LARGEST_BFLOAT16 = (2 - 2**-7) * 2.0**127


def quantize(
    graph: Graph, structure: Structure, keep: tuple[str, ...], calibration: Calibration | None
) -> HalfPrecision:
    """Convert the raised `graph` to float16, in place, except for what would overflow there.

    Every activation is measured on `calibration`, attention scores included. A tensor beyond `LIMIT` keeps the nodes
    that write and read it in float32, with casts at the borders only. So if a residual stream is too large, its
    additions and norms are in float32, while the linears and attentions between them stay in float16, and fuse.

    Args:
        graph: raised and folded.
        structure: its linears and sites, which the record names.
        keep: roles or names of further linears that stay in float32.
        calibration: images. The record says if they are synthetic, or if there are none. Without images only
            constants are checked.

    Raises:
        QuantizeError: an activation is NaN or infinite in float32, or too little would be float16.
    """
    guards = find_box_arithmetic(graph) | find_lost_guards(graph)
    reasons = find_unfit_constants(graph) | find_statistics(graph) | find_angles(graph) | guards
    reasons |= find_token_choices(graph) | find_unfit_operators(graph, ir.DataType.FLOAT16)
    ranges: Mapping[str, Range] = {}
    if calibration is not None:
        probe = expose_scores(graph)
        ranges = collect_ranges(probe, calibration.batches())
        reasons |= find_overflow(probe, ranges)
    for linear, rule in match_keep(structure, keep).items():
        reasons.update(dict.fromkeys(_linear_nodes(structure, linear), rule))
    _refuse_mostly_float32(structure, reasons)
    record = _make_record(graph, structure, reasons, guards, ranges, calibration)
    convert(graph, reasons)
    return record


def find_statistics(graph: Graph) -> dict[str, str]:
    """Find the norms whose variance is computed in the type of their input, with the reason.

    LayerNormalization, GroupNormalization and RMSNormalization have an attribute for it (stash_type): float32.
    """
    reason = "its variance is computed in the type of its input"
    return {node.name or "": reason for node in graph.model.graph.all_nodes() if node.op_type in _UNSTASHED}


def find_unfit_operators(graph: Graph, to: ir.DataType) -> dict[str, str]:
    """Find the nodes whose operator ONNX does not define for `to`, such as Range for float16, with the reason."""
    name = to.name.lower()
    reason = f"ONNX does not define it for {name}"
    return {n.name or "": reason for n in graph.model.graph.all_nodes() if not _takes_type(n, name, graph.opset)}


def _takes_type(node: ir.Node, name: str, opset: int) -> bool:
    import onnx.defs

    if node.domain != "" or not onnx.defs.has(node.op_type):
        return True
    schema, float32 = onnx.defs.get_schema(node.op_type, opset), FLOAT32_INPUTS.get(node.op_type, ())
    inputs = [(v, f) for i, (v, f) in enumerate(zip(node.inputs, schema.inputs, strict=False)) if i not in float32]
    outputs = [(v, f) for v, f in zip(node.outputs, schema.outputs, strict=False) if v.uses() or v.is_graph_output()]
    floats = [formal for value, formal in (*inputs, *outputs) if value is not None and value.dtype == ir.DataType.FLOAT]
    return all(f"tensor({name})" in formal.types for formal in floats)


def convert(graph: Graph, float32: Collection[str] = (), to: ir.DataType = ir.DataType.FLOAT16) -> None:
    """Convert float32 tensors to `to`, FLOAT16 or BFLOAT16, in place.

    Nodes named in `float32`, and operators that ONNX does not define for `to`, still compute in float32. A strongly
    typed TensorRT network takes its precision from these types. LayerNormalization stays one operator, whose statistics
    backends compute in float32 (ONNX's stash_type). As primitives it would overflow.

    Raises:
        QuantizeError: a constant to convert to float16 is beyond ±65,504.
    """
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(graph.model)
    float32 = {*float32, *find_unfit_operators(graph, to)}
    computed = _convert_nodes(graph, float32, to)
    _convert_constants(graph, float32, to)
    for value in computed:
        _insert_cast(graph, value, float32, to)
    _cast_outputs(graph, to)


def _refuse_mostly_float32(structure: Structure, reasons: Mapping[str, str]) -> None:
    sizes = {linear.name: int(np.prod(linear.weight)) for linear in structure.linears}
    float32 = [linear.name for linear in structure.linears if set(linear.nodes) & set(reasons)]
    share = 1 - sum(sizes[name] for name in float32) / max(1, sum(sizes.values()))
    if float32 and share < LEAST_HALF_SHARE:
        first = next(reasons[node] for node in _linear_nodes(structure, float32[0]) if node in reasons)
        raise QuantizeError(
            f"fp16 gains nothing: {len(float32)} of {len(sizes)} linears, {1 - share:.0%} of their weights, would have "
            f"to stay float32 ({float32[0]}: {first}; float16 is used up to {LIMIT:.0f})",
            fix="Use --precision fp32, or bf16 where the target has it.",
        )


def _linear_nodes(structure: Structure, name: str) -> tuple[str, ...]:
    return next(linear.nodes for linear in structure.linears if linear.name == name)


def _make_record(
    graph: Graph,
    structure: Structure,
    reasons: Mapping[str, str],
    guards: Mapping[str, str],
    ranges: Mapping[str, Range],
    calibration: Calibration | None,
) -> HalfPrecision:
    """Name each site and linear that stays in float32 with its reason; count the other nodes, and those by a rule."""
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
        float32_rules=dict(Counter(guards[node] for node in sorted(guards))),
        largest=None if largest is None else float(largest.magnitude),
        largest_tensor=tensor,
        limit=None if largest is None else LIMIT,
        checked_on=None if calibration is None else calibration.data,
    )


def _convert_nodes(graph: Graph, float32: Collection[str], to: ir.DataType) -> list[ir.Value]:
    """Convert the outputs of nodes; return all float values that are not constants, in order."""
    computed = [v for v in graph.model.graph.inputs if v.dtype == ir.DataType.FLOAT]
    for node in graph.model.graph.all_nodes():
        half = node.name not in float32
        if half:
            _convert_attributes(node, to)
        for value in node.outputs:
            if value.dtype == ir.DataType.FLOAT:
                if half:
                    value.type = ir.TensorType(to)  # a new object: values share theirs
                computed.append(value)
    return computed


def _convert_attributes(node: ir.Node, to: ir.DataType) -> None:
    """Convert attributes that declare a type: of a Cast or an EyeLike, and the number of a ConstantOfShape."""
    name = "to" if node.op_type == "Cast" else "dtype"
    target = node.attributes.get(name)
    if target is not None and target.as_int() == ir.DataType.FLOAT:
        node.attributes[name] = ir.AttrInt64(name, int(to))
    attribute = node.attributes.get("value")
    if attribute is not None and attribute.type == ir.AttributeType.TENSOR:
        tensor = attribute.as_tensor()
        if tensor.dtype == ir.DataType.FLOAT:
            node.attributes["value"] = ir.AttrTensor("value", _convert_tensor(tensor, to, is_mask=False))


def _convert_constants(graph: Graph, float32: Collection[str], to: ir.DataType) -> None:
    """Convert constants. One with readers of both types gets a float32 copy."""
    main, masks = graph.model.graph, find_masks(graph)
    for name, value in list(main.initializers.items()):
        tensor = value.const_value
        if tensor is None or tensor.dtype != ir.DataType.FLOAT:
            continue
        uses = list(value.uses())
        float32_uses = [use for use in uses if _reads_float32(use.node, use.idx, float32)]
        if float32_uses and len(float32_uses) == len(uses):
            continue
        if float32_uses:
            copy = ir.Value(
                name=graph.fresh_name(f"{name}/float32"), const_value=tensor, shape=value.shape, type=value.type
            )
            main.register_initializer(copy)
            for use in float32_uses:
                use.node.replace_input_with(use.idx, copy)
        value.const_value = _convert_tensor(tensor, to, is_mask=name in masks)
        value.type = ir.TensorType(to)


def _reads_float32(node: ir.Node, index: int, float32: Collection[str]) -> bool:
    return node.name in float32 or index in FLOAT32_INPUTS.get(node.op_type, ())


def _convert_tensor(tensor: ir.TensorProtocol, to: ir.DataType, *, is_mask: bool) -> ir.TensorProtocol:
    if to == ir.DataType.BFLOAT16:
        # It ends a percent below float32, whose lowest number models write for minus infinity: that must stay finite.
        finite = np.clip(tensor.numpy(), -_LARGEST_BFLOAT16, _LARGEST_BFLOAT16)
        return ir.tensor(np.asarray(finite, ml_dtypes.bfloat16), name=tensor.name)
    numbers = clip_masks(tensor, is_mask=is_mask)
    largest = np.abs(numbers).max(initial=0.0, where=np.isfinite(numbers))
    if largest > LARGEST_HALF:
        raise QuantizeError(
            f"{tensor.name} reaches {largest:.3g}, float16 ends at {LARGEST_HALF:.0f}", fix="Use --precision fp32."
        )
    return ir.tensor(numbers.astype(np.float16), name=tensor.name)


def _insert_cast(graph: Graph, value: ir.Value, float32: Collection[str], to: ir.DataType) -> None:
    """Insert one Cast behind `value`, for all readers that need the other type."""
    is_half = value.dtype == to
    readers = [use for use in value.uses() if _reads_float32(use.node, use.idx, float32) == is_half]
    if not readers:
        return
    converted = insert_cast(graph, value, ir.DataType.FLOAT if is_half else to)
    for use in readers:
        use.node.replace_input_with(use.idx, converted)


def _cast_outputs(graph: Graph, to: ir.DataType) -> None:
    main = graph.model.graph
    for index, value in enumerate(main.outputs):
        if value.dtype != to:
            continue
        name = value.name
        value.name = graph.fresh_value_name(f"{name}/half")
        cast = make_cast(graph, value, ir.DataType.FLOAT)
        cast.outputs[0].name = name
        main.append(cast)
        main.outputs[index] = cast.outputs[0]
