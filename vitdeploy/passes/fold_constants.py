"""Compute everything that does not depend on the image at export time."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from vitdeploy.graph.model import Graph, array, constant, operand
from vitdeploy.passes import Pass, PassResult
from vitdeploy.passes._constant_parts import fold_constant_parts
from vitdeploy.passes._known_sizes import fold_fixed_sizes
from vitdeploy.passes._optimizer import optimize
from vitdeploy.passes._reshape_sizes import solve_reshapes

_LARGEST_RESULT_ELEMENTS = 1 << 24
"""64 MiB of float32. Swin's bias tables fit (49 x 49 x heads x windows), a whole embedding matrix does not."""

_LARGEST_FILL_ELEMENTS = 1 << 18
"""The map of positions on which Swin numbers its windows fits: 56 x 56, or 256 x 256 for images of 1,024 pixels."""


class FoldConstants(Pass):
    """Fold shape arithmetic and bias tables, and remove operators that do nothing.

        Shape ─▶ Gather ─▶ Concat ─▶ Reshape          Reshape(·, [1, 197, 192])
        table ─▶ Gather ─▶ Transpose ─▶ Add      ─▶   Add(·, bias)
        Pad by nothing ─▶ Reshape                     Reshape
        prompt ─▶ text tower ─▶ MatMul                MatMul(·, text features)

    By default the optimizer folds small tensors only. Swin then computes its relative position bias at run time, and
    TensorRT fuses 2 of its 12 attentions instead of 12. What the optimizer cannot evaluate is run once in ONNX Runtime.
    Refused: results of more than 64 MiB.
    """

    def apply(self, graph: Graph) -> PassResult:
        """Fold; `fired` counts the nodes that are gone."""
        before = graph.model.graph.num_nodes()
        RemoveUnusedNodesPass()(graph.model)  # or values that nothing reads would be computed
        while True:  # one known shape makes others known; this ends because each round removes nodes
            optimize(graph.model, _LARGEST_RESULT_ELEMENTS)
            graph.adopt_constants()
            if _fill_shapes(graph) + _drop_pads(graph) + fold_fixed_sizes(graph) + solve_reshapes(graph):
                continue
            computed, too_large = fold_constant_parts(graph, 4 * _LARGEST_RESULT_ELEMENTS)
            if not computed:
                break
        return PassResult(max(0, before - graph.model.graph.num_nodes()), too_large)


def _fill_shapes(graph: Graph) -> int:
    """Replace each small `ConstantOfShape` of a known shape by its value. Return how many there were.

    The optimizer leaves them alone to keep models small. In the padding arithmetic of a legacy Swin export they hide
    that nothing is padded, and so every shape behind the Pad.
    """
    filled = 0
    for node in [n for n in graph.nodes if n.op_type == "ConstantOfShape"]:
        shape = constant(node.inputs[0])
        if shape is None or np.prod(shape.numpy()) > _LARGEST_FILL_ELEMENTS:
            continue
        value = node.attributes.get("value")
        fill = np.zeros(1, np.float32) if value is None else value.as_tensor().numpy()
        tape = ir.tape.Tape()
        filled_tensor = tape.initializer(ir.tensor(np.full(shape.numpy(), fill), name=f"{node.name}/value"))
        result = tape.op("Identity", [filled_tensor], name=f"{node.name}/filled")  # folded away in the next round
        graph.replace([node], tape, node.outputs[0], result)
        filled += 1
    return filled


def _drop_pads(graph: Graph) -> int:
    """Replace each Pad that adds nothing by an Identity. Return how many there were.

    Swin pads to whole windows even where there is nothing to pad. Such a Pad costs a layer, and shape inference loses
    the batch size at it.
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
