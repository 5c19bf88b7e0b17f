"""Fold a constant factor behind a LayerNormalization into its affine part."""

from __future__ import annotations

import math

import onnx_ir as ir

from vitdeploy.graph.model import Graph, array, constant, dims, only_consumer
from vitdeploy.passes import Pass, PassResult
from vitdeploy.session import Array


class FoldNormScale(Pass):
    """What outlier migration multiplies after a LayerNorm costs nothing once it is inside.

        x ─ LayerNormalization(γ, β) ─ Mul s   ─▶   x ─ LayerNormalization(γ·s, β·s)

    A LayerNorm whose output something else reads too is left alone, and so is a factor that varies over tokens.
    """

    def apply(self, graph: Graph) -> PassResult:
        """Fold every such factor."""
        fired = 0
        for norm in [n for n in graph.nodes if n.op_type == "LayerNormalization" and len(n.inputs) > 1]:
            multiply = only_consumer(norm.outputs[0], "Mul")
            if multiply is None or any(v is not None and constant(v) is None for v in norm.inputs[1:]):
                continue
            factor = constant(next((v for v in multiply.inputs if v is not norm.outputs[0]), None))
            shape = dims(norm.outputs[0])
            rank = len(shape) if shape is not None else None
            if factor is None or not _one_a_channel(factor.numpy().shape, array(norm.inputs[1]).shape, rank):
                continue
            _rewrite(graph, norm, multiply, factor.numpy().reshape(-1))
            fired += 1
        return PassResult(fired)


def _one_a_channel(factor: tuple[int, ...], scale: tuple[int, ...], rank: int | None) -> bool:
    """Whether a factor of this shape is one number, or one for each entry of a LayerNorm's 1-D scale.

    One of a higher rank than the norm's would add an axis to the result.
    """
    if len(factor) > 1 and (rank is None or len(factor) > rank):
        return False
    return math.prod(factor) == 1 or (len(scale) == 1 and math.prod(factor) == factor[-1] == scale[0])


def _rewrite(graph: Graph, norm: ir.Node, multiply: ir.Node, factor: Array) -> None:
    tape = ir.tape.Tape()
    affine: list[ir.Value | None] = []
    # Exporters share equal constants between nodes: the folded ones are new.
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
