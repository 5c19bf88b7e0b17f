"""Q/DQ pairs on every operand of an attention, for one INT8 kernel."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import onnx_ir as ir

from vitdeploy.graph.dialect import Int8AttentionKernel
from vitdeploy.graph.model import Graph, dims, operand
from vitdeploy.quantize.qdq import fit_affine, insert_pair
from vitdeploy.quantize.ranges import Range

_MOVING = ("Transpose", "Reshape")
_PROBABILITIES = ("pv", 0)
_SCORES, _VALUES = (("qk", 0), ("transpose_k", 0)), (_PROBABILITIES, ("pv", 1))


def select_cores(
    graph: Graph, kernel: Int8AttentionKernel, in_float: Mapping[str, str] | None = None
) -> tuple[list[str], dict[str, str]]:
    """Select the attention cores that stay fused in INT8.

    Args:
        graph: raised, with the Q/DQ pairs of its linears.
        kernel: the compiler's INT8 attention kernel.
        in_float: cores that stay in float, with the rule.

    Returns:
        The names of the selected cores (`SITE/Attention`), and the rule that forbids it for each other core.
    """
    selected, forbidden = [], {}
    for core in [n for n in graph.nodes if n.op_type == "Attention" and n.domain == ""]:
        if rule := (in_float or {}).get(core.name or "") or _broken_rule(core, kernel):
            forbidden[core.name or ""] = rule
        else:
            selected.append(core.name or "")
    return selected, forbidden


def find_operands(graph: Graph, cores: Iterable[str], *, values_alone: bool = False) -> list[tuple[ir.Node, int]]:
    """Find q, k, the probabilities and v of each core; with `values_alone` the last two.

    The `cores` are lowered to primitives. Each operand is given as (node that reads it, index of the input).
    """
    nodes = {node.name: node for node in graph.nodes}
    operands = _VALUES if values_alone else (*_SCORES, *_VALUES)
    return [(nodes[f"{core}/{name}"], index) for core in cores for name, index in operands]


def write_pairs(
    graph: Graph, operands: Iterable[tuple[ir.Node, int]], ranges: Mapping[str, Range], kernel: Int8AttentionKernel
) -> None:
    """Put Q/DQ pairs on operands of attentions, in place.

        q ─ MatMul ─ Softmax ─ MatMul ─ v   ─▶   q ─ Q ─ DQ ─ MatMul ─ Softmax ─ Q ─ DQ ─ MatMul ─ DQ ─ Q ─ v

    INT8 is symmetric here, with one scale per tensor. The scale of the probabilities comes from the largest one that
    was measured. A scale of 1/127 everywhere would round the small probabilities of a token that attends to many keys
    alike to 0, which costs 17 of the digits ViT's 41 dB.

    Args:
        graph: with the cores as primitives.
        operands: as `find_operands` lists them.
        ranges: of these tensors.
        kernel: the compiler's INT8 attention kernel.
    """
    pairs: dict[str, ir.Value] = {}
    for node, index in operands:
        name = operand(node, index).name or ""
        if name not in pairs:
            unsigned = kernel.unsigned_probabilities and _is_operand(node, index, _PROBABILITIES)
            codes: Literal["int8", "uint8"] = "uint8" if unsigned else "int8"
            pairs[name] = insert_pair(graph, node, index, fit_affine(ranges[name].low, ranges[name].high, codes))
        node.replace_input_with(index, pairs[name])


def _is_operand(node: ir.Node, index: int, operand_name: tuple[str, int]) -> bool:
    part, place = operand_name
    return index == place and (node.name or "").endswith(f"/{part}")


def _broken_rule(core: ir.Node, kernel: Int8AttentionKernel) -> str | None:
    shapes = [dims(value) for value in core.inputs[:3]]
    sizes = {shape[-1] for shape in shapes if shape is not None}
    if kernel.head_sizes and (len(sizes) != 1 or not sizes <= set(kernel.head_sizes)):
        able, actual = ", ".join(map(str, kernel.head_sizes)), "/".join(sorted(map(str, sizes)))
        return f"INT8 attention is fused with head sizes of {able} only, not {actual}"
    tokens = [shape[-2] for shape in shapes if shape is not None]
    if kernel.tokens is not None and not all(isinstance(n, int) and n <= kernel.tokens for n in tokens):
        return f"INT8 attention is fused up to {kernel.tokens} tokens only, not {max(tokens, key=lambda n: n or 0)}"
    if kernel.values_alone:
        return None
    if tokens[0] != tokens[1]:
        return "it has fewer queries than keys: with one query, TensorRT-RTX does not use its INT8 kernel"
    if core.attributes.get_float("scale", 1.0) != 1.0:
        return "its scale could not be folded into the weights, and would stand between q's Q/DQ pair and the product"
    if not _is_read_in_int8(core.outputs[0]):
        return "the node that reads it is not quantized, and INT8 attention is fused only with the reader's Q/DQ pair"
    return None


def _is_read_in_int8(value: ir.Value) -> bool:
    """Return whether only QuantizeLinear nodes read a value, directly or behind a Transpose or Reshape."""
    readers = [use.node for use in value.uses()]
    if len(readers) == 1 and readers[0].op_type in _MOVING:
        return _is_read_in_int8(readers[0].outputs[0])
    return bool(readers) and all(node.op_type == "QuantizeLinear" for node in readers)
