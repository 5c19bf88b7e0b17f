"""Compute at export time what does not depend on the image."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnxscript import optimizer

from vitdeploy.graph.model import Graph, array, constant, operand
from vitdeploy.passes import Pass, PassResult
from vitdeploy.passes._known_sizes import fix_sizes
from vitdeploy.passes._reshape_sizes import solve_reshapes

_LARGEST_RESULT_ELEMENTS = 1 << 24
"""64 MiB of float32: bias tables of Swin (49 x 49 x heads x windows) fit, a whole embedding matrix is left alone."""


_LARGEST_FILL_ELEMENTS = 1 << 18
"""A map of the pixels that Swin numbers its windows on (56 x 56, at 1,024 pixels 256 x 256) fits."""


class FoldConstants(Pass):
    """Shape arithmetic, bias tables and identities away.

        Shape ─▶ Gather ─▶ Concat ─▶ Reshape          Reshape(·, [1, 197, 192])
        table ─▶ Gather ─▶ Transpose ─▶ Add      ─▶   Add(·, bias)
        Pad by nothing ─▶ Reshape                     Reshape

    The optimizer's default keeps tensors above a small size unfolded. Swin then computes its relative-position bias
    at run time, and TensorRT fuses 2 of 12 attentions instead of 12.
    """

    def apply(self, graph: Graph) -> PassResult:
        """Fold; `fired` counts the nodes that went."""
        before = graph.model.graph.num_nodes()
        while True:  # a shape that becomes known makes others known; each round takes nodes away, so this ends
            optimizer.optimize_ir(
                graph.model, input_size_limit=_LARGEST_RESULT_ELEMENTS, output_size_limit=_LARGEST_RESULT_ELEMENTS
            )
            if not _fill_shapes(graph) + _drop_pads(graph) + fix_sizes(graph) + solve_reshapes(graph):
                break
        return PassResult(max(0, before - graph.model.graph.num_nodes()))


def _fill_shapes(graph: Graph) -> int:
    """Replace each small `ConstantOfShape` of a known shape by its value; how many there were.

    The optimizer leaves them to keep models small. In the padding arithmetic of a legacy Swin export they hide that
    nothing is padded, and with it every shape that follows.
    """
    filled = 0
    for node in [n for n in graph.nodes if n.op_type == "ConstantOfShape"]:
        shape = constant(node.inputs[0])
        if shape is None or np.prod(shape.numpy()) > _LARGEST_FILL_ELEMENTS:
            continue
        value = node.attributes.get("value")
        fill = np.zeros(1, np.float32) if value is None else value.as_tensor().numpy()
        tape = ir.tape.Tape()
        whole = tape.initializer(ir.tensor(np.full(shape.numpy(), fill), name=f"{node.name}/value"))
        result = tape.op("Identity", [whole], name=f"{node.name}/filled")  # folded away in the next round
        graph.replace([node], tape, node.outputs[0], result)
        filled += 1
    return filled


def _drop_pads(graph: Graph) -> int:
    """Make each Pad by nothing an Identity; how many there were.

    Swin pads to whole windows even where there is nothing to pad. It costs a layer, and shape inference loses the batch
    at it.
    """
    dropped = 0
    for node in [n for n in graph.nodes if n.op_type == "Pad" and n.domain == "" and len(n.inputs) > 1]:
        if constant(node.inputs[1]) is None or array(node.inputs[1]).any():
            continue
        tape = ir.tape.Tape()
        result = tape.op("Identity", [operand(node, 0)], name=f"{node.name}/dropped")  # folded away in the next round
        graph.replace([node], tape, node.outputs[0], result)
        dropped += 1
    return dropped
