"""Fold a constant factor behind a LayerNormalization into its scale and bias."""

from __future__ import annotations

import math

import onnx_ir as ir

from vitdeploy.graph.model import Graph, array, constant, dims, only_consumer
from vitdeploy.passes import Pass, PassResult
from vitdeploy.session import Array


class FoldNormScale(Pass):
    """Fold the factor that outlier migration puts behind a LayerNorm into its scale and bias.

        x ─ LayerNormalization(γ, β) ─ Mul s   ─▶   x ─ LayerNormalization(γ·s, β·s)

    Left alone: a LayerNorm whose output another node reads too, or whose mean or deviation is read, and a factor that
    varies over tokens.
    """

    def apply(self, graph: Graph) -> PassResult:
        """Fold every such factor."""
        fired = 0
        for norm in [n for n in graph.nodes if n.op_type == "LayerNormalization" and len(n.inputs) > 1]:
            multiply = only_consumer(norm.outputs[0], "Mul")
            reads_statistics = any(output.uses() or output.is_graph_output() for output in norm.outputs[1:])
            if (
                multiply is None
                or reads_statistics
                or any(v is not None and constant(v) is None for v in norm.inputs[1:])
            ):
                continue
            factor = constant(next((v for v in multiply.inputs if v is not norm.outputs[0]), None))
            shape = dims(norm.outputs[0])
            rank = len(shape) if shape is not None else None
            if factor is None or not _is_per_channel(factor.numpy().shape, array(norm.inputs[1]).shape, rank):
                continue
            _rewrite(graph, norm, multiply, factor.numpy().reshape(-1))
            fired += 1
        return PassResult(fired)


def _is_per_channel(factor: tuple[int, ...], scale: tuple[int, ...], rank: int | None) -> bool:
    """Return whether a factor of this shape is one number, or one number for each entry of the norm's 1-D scale.

    A factor of a higher rank than the norm's output would add an axis to the result, so it does not count.
    """
    if len(factor) > 1 and (rank is None or len(factor) > rank):
        return False
    return math.prod(factor) == 1 or (len(scale) == 1 and math.prod(factor) == factor[-1] == scale[0])


def _rewrite(graph: Graph, norm: ir.Node, multiply: ir.Node, factor: Array) -> None:
    tape = ir.tape.Tape()
    affine: list[ir.Value | None] = []
    # The old constants stay as they are: exporters share equal constants between nodes.
    for label, value in zip(("scale", "bias"), norm.inputs[1:], strict=False):
        if value is None:
            affine.append(None)
            continue
        numbers = array(value)
        folded = (numbers * factor).astype(numbers.dtype)
        affine.append(tape.initializer(ir.tensor(folded, name=f"{norm.name}/{label}_folded")))
    attributes = {k: a.value for k, a in norm.attributes.items() if a.value is not None}
    result = tape.op("LayerNormalization", [norm.inputs[0], *affine], attributes, name=norm.name)
    graph.replace([norm, multiply], tape, multiply.outputs[0], result)
