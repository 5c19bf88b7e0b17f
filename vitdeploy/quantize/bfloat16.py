"""BF16: the range of float32 in 16 bits, with 8 bits of precision instead of 24."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir

from vitdeploy.artifact.quantization import HalfPrecision
from vitdeploy.graph.model import Graph, array, operand
from vitdeploy.graph.structure import Structure
from vitdeploy.quantize.box_arithmetic import find_box_arithmetic
from vitdeploy.quantize.half import convert, find_statistics
from vitdeploy.quantize.placement import match_keep
from vitdeploy.quantize.qdq import insert_before
from vitdeploy.quantize.token_choices import find_token_choices


def quantize(graph: Graph, structure: Structure, keep: tuple[str, ...], *, typed: bool) -> HalfPrecision:
    """Convert the raised `graph` to bfloat16, in place. No data is needed.

        x ─ MatMul(W)   ─▶   x ─ Cast bf16 ─ … MatMul(W bf16) … ─ Cast float32     typed: bf16 between input and output
        x ─ MatMul(W)   ─▶   x ─ MatMul(W bf16 ─ Cast float32)                     else: the engine does the rest

    Without `typed`, weights take half the space. The engine would round them to the same numbers anyway. OpenVINO runs
    a typed graph too, but with casts around every LayerNormalization, whose statistics ONNX defines in float32.

    Args:
        graph: raised and folded.
        structure: its linears.
        keep: roles or names of linears that stay in float32.
        typed: whether the engine computes in the types that the graph declares.

    Raises:
        QuantizeError: a `keep` entry matches nothing.
    """
    rules = match_keep(structure, keep)
    nodes = {linear.name: linear.nodes for linear in structure.linears}
    if typed:
        boxes = find_box_arithmetic(graph)
        float32 = {node for name in rules for node in nodes[name]} | set(find_statistics(graph)) | set(boxes)
        float32 |= set(find_token_choices(graph))
        convert(graph, float32, ir.DataType.BFLOAT16)
    else:
        _store_weights(graph, {node for name in nodes if name not in rules for node in nodes[name]})
    return HalfPrecision(dtype="bfloat16", scope="all" if typed else "weights", float32=rules)


def _store_weights(graph: Graph, names: set[str]) -> None:
    for node in [n for n in graph.nodes if n.name in names and n.op_type in ("MatMul", "Conv")]:
        old, tape = operand(node, 1), ir.tape.Tape()
        numbers = np.asarray(array(old), ml_dtypes.bfloat16)
        weight = tape.initializer(ir.tensor(numbers, name=f"{node.name}/weight_bf16"))
        result = tape.op("Cast", [weight], {"to": ir.DataType.FLOAT}, name=f"{node.name}/weight_float")
        node.replace_input_with(1, insert_before(graph, tape, node, old, result))
