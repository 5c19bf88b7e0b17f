"""BF16: float32's range in 16 bits, so nothing overflows; 8 bits of precision instead of 24."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir

from vitdeploy.artifact.quantization import HalfPrecision
from vitdeploy.graph.model import Graph, array, operand
from vitdeploy.graph.structure import Structure
from vitdeploy.quantize.half import convert
from vitdeploy.quantize.placement import kept_by
from vitdeploy.quantize.qdq import place_before


def quantize(graph: Graph, structure: Structure, keep: tuple[str, ...], *, typed: bool) -> HalfPrecision:
    """Bring the raised `graph` to bfloat16, in place; no data is needed.

        x ─ MatMul(W)   ─▶   x ─ Cast bf16 ─ … MatMul(W bf16) … ─ Cast float32     typed: all in bf16 but the edges
        x ─ MatMul(W)   ─▶   x ─ MatMul(W bf16 ─ Cast float32)                     else: the engine does the rest

    Not typed, weights are half as large, and the numbers are those that the engine rounds to anyhow. OpenVINO runs a
    typed graph as well, but with casts around every LayerNormalization, whose statistics ONNX defines in float32.

    Args:
        graph: raised and folded.
        structure: its linears.
        keep: roles or names of linears that stay in float32, where the graph says what does.
        typed: whether the types in the graph decide what is computed in which.

    Raises:
        QuantizeError: a `keep` entry matches nothing.
    """
    kept = kept_by(structure, keep)
    nodes = {linear.name: linear.nodes for linear in structure.linears}
    if typed:
        convert(graph, {node for name in kept for node in nodes[name]}, ir.DataType.BFLOAT16)
    else:
        _store(graph, {node for name in nodes if name not in kept for node in nodes[name]})
    return HalfPrecision(dtype="bfloat16", scope="all" if typed else "weights", float32=kept)


def _store(graph: Graph, names: set[str]) -> None:
    for node in [n for n in graph.nodes if n.name in names and n.op_type in ("MatMul", "Conv")]:
        old, tape = operand(node, 1), ir.tape.Tape()
        halved = np.asarray(array(old), ml_dtypes.bfloat16)
        weight = tape.initializer(ir.tensor(halved, name=f"{node.name}/weight_bf16"))
        result = tape.op("Cast", [weight], {"to": ir.DataType.FLOAT}, name=f"{node.name}/weight_float")
        node.replace_input_with(1, place_before(graph, tape, node, old, result))
