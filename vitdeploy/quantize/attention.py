"""Q/DQ pairs on all that an attention multiplies, where the compiler then runs it as one INT8 kernel."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import onnx_ir as ir

from vitdeploy.graph.dialect import Int8Attention
from vitdeploy.graph.model import Graph, dims, operand
from vitdeploy.quantize.qdq import affine, pair_on
from vitdeploy.quantize.ranges import Range

_MOVING = ("Transpose", "Reshape")


def place(graph: Graph, kernel: Int8Attention) -> tuple[list[str], dict[str, str]]:
    """The cores (`SITE/Attention`) that may be INT8 and stay fused, and for each other one the rule that forbids it.

    Args:
        graph: raised; the pairs on its linears are written.
        kernel: what the compiler has.
    """
    placed, left = [], {}
    for core in [n for n in graph.nodes if n.op_type == "Attention" and n.domain == ""]:
        if reason := _forbidden(core, kernel):
            left[core.name or ""] = reason
        else:
            placed.append(core.name or "")
    return placed, left


def operands(graph: Graph, cores: Iterable[str]) -> list[tuple[ir.Node, int]]:
    """What is multiplied in each of the `cores`, which are lowered to primitives: (reader, index of its input)."""
    nodes = {node.name: node for node in graph.nodes}
    return [
        (nodes[f"{core}/{name}"], index)
        for core in cores
        for name, index in (("qk", 0), ("transpose_k", 0), ("pv", 0), ("pv", 1))
    ]


def write(graph: Graph, cores: Iterable[str], ranges: Mapping[str, Range]) -> None:
    """Put Q/DQ pairs on q, k, v and the probabilities of `cores`, in place.

        q ─ MatMul ─ Softmax ─ MatMul ─ v   ─▶   q ─ Q ─ DQ ─ MatMul ─ Softmax ─ Q ─ DQ ─ MatMul ─ DQ ─ Q ─ v

    INT8 is symmetric here, one scale for a tensor. That of the probabilities comes from the largest one seen: with
    1/127 for all, a token that attends to many keys alike would lose them (17 dB of the digits ViT's 41).

    Args:
        graph: with the cores as primitives.
        cores: their names.
        ranges: of the tensors that `operands` names.
    """
    pairs: dict[str, ir.Value] = {}
    for node, index in operands(graph, cores):
        name = operand(node, index).name or ""
        if name not in pairs:
            pairs[name] = pair_on(graph, node, index, affine(ranges[name].low, ranges[name].high, "int8"))
        node.replace_input_with(index, pairs[name])


def _forbidden(core: ir.Node, kernel: Int8Attention) -> str | None:
    shapes = [dims(value) for value in core.inputs[:3]]
    sizes = {shape[-1] for shape in shapes if shape is not None}
    if len(sizes) != 1 or not sizes <= set(kernel.head_sizes):
        able, found = ", ".join(map(str, kernel.head_sizes)), "/".join(sorted(map(str, sizes)))
        return f"INT8 attention is fused with head sizes of {able} only, not {found}"
    tokens = [shape[-2] for shape in shapes if shape is not None]
    if not all(isinstance(n, int) and n <= kernel.tokens for n in tokens):
        return f"INT8 attention is fused up to {kernel.tokens} tokens only, not {max(tokens, key=lambda n: n or 0)}"
    if tokens[0] != tokens[1]:
        return "fewer queries than keys: TensorRT-RTX was seen to lose its INT8 kernel with one query"
    if core.attributes.get_float("scale", 1.0) != 1.0:
        return "its scale could not be folded, and would stand between q's codes and the product"
    if not _read_in_int8(core.outputs[0]):
        return "what reads it is not quantized: INT8 attention is fused with its reader's pair only"
    return None


def _read_in_int8(value: ir.Value) -> bool:
    """Whether a quantization is all that reads a value, whatever moves it before."""
    readers = [use.node for use in value.uses()]
    if len(readers) == 1 and readers[0].op_type in _MOVING:
        return _read_in_int8(readers[0].outputs[0])
    return bool(readers) and all(node.op_type == "QuantizeLinear" for node in readers)
