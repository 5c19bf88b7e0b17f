"""Fold a constant factor behind a LayerNormalization into its affine part."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.model import Graph, constant, only_consumer
from vitdeploy.passes import Pass, PassResult


class FoldNormScale(Pass):
    """What outlier migration multiplies after a LayerNorm costs nothing once it is inside.

        x ─ LayerNormalization(γ, β) ─ Mul s   ─▶   x ─ LayerNormalization(γ·s, β·s)

    A LayerNorm whose output something else reads too is left alone.
    """

    def apply(self, graph: Graph) -> PassResult:
        """Fold every such factor."""
        fired = 0
        for norm in [n for n in graph.nodes if n.op_type == "LayerNormalization" and len(n.inputs) > 1]:
            scale = constant(norm.inputs[1])
            multiply = only_consumer(norm.outputs[0], "Mul")
            if multiply is None or scale is None:
                continue
            other = next((v for v in multiply.inputs if v is not norm.outputs[0]), None)
            factor = constant(other)
            if factor is None or factor.size not in (1, scale.size) or factor.shape[-1:] not in ((1,), tuple(scale.shape)):
                continue
            _rewrite(graph, norm, multiply, factor.numpy().reshape(-1))
            fired += 1
        return PassResult(fired)


def _rewrite(graph: Graph, norm: ir.Node, multiply: ir.Node, factor: np.ndarray) -> None:  # type: ignore[type-arg]
    tape = ir.tape.Tape()
    affine = []
    # Exporters share equal constants between nodes: the folded ones are new.
    for label, value in zip(("scale", "bias"), norm.inputs[1:], strict=False):
        tensor = constant(value)
        assert tensor is not None
        folded = (tensor.numpy() * factor).astype(np.float32)
        affine.append(tape.initializer(ir.tensor(folded, name=f"{norm.name}/{label}_folded")))
    attributes = {k: a.value for k, a in norm.attributes.items() if a.value is not None}
    result = tape.op("LayerNormalization", [norm.inputs[0], *affine], attributes, name=norm.name)
    graph.replace([norm, multiply], tape, multiply.outputs[0], result)
