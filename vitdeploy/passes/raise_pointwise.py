"""Replace every 1×1 convolution by the linear that it is."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.channel_moves import to_first, to_last
from vitdeploy.graph.model import Graph, array, constant, dims, operand
from vitdeploy.passes import Pass, PassResult


class RaisePointwise(Pass):
    """Replace a convolution whose kernel is 1×1 by a linear over the channels, with the moves around it.

        x (B, K, H, W) ─ Conv(W, b)   ─▶   x ─ Transpose (B, H, W, K) ─ MatMul(Wᵀ) ─ Add b ─ Transpose (B, N, H, W)

    What holds for linears then holds for it too: it is counted, takes factors and batch norms, and is quantized in
    every form. Most weights of hybrids are in such convolutions (97 % of CoAtNet's). Convolutions that read the same
    value share the Transpose before them. `LowerPointwise` makes convolutions of those that still have both moves.

    Left alone: a convolution with groups, strides or padding, one whose numbers are computed, and one that reads the
    image itself, which preprocessing is folded into.
    """

    def apply(self, graph: Graph) -> PassResult:
        """Raise every 1×1 convolution."""
        images = set(graph.model.graph.inputs)
        convolutions = [node for node in graph.nodes if _is_pointwise(node) and node.inputs[0] not in images]
        last: dict[ir.Value, ir.Value] = {}
        for node in convolutions:
            _rewrite(graph, node, last)
        return PassResult(len(convolutions))


def _is_pointwise(node: ir.Node) -> bool:
    if node.op_type != "Conv" or node.domain != "":
        return False
    weight, attributes = constant(node.inputs[1]), node.attributes
    has_bias = len(node.inputs) > 2 and node.inputs[2] is not None
    if weight is None or (has_bias and constant(node.inputs[2]) is None) or dims(node.inputs[0]) is None:
        return False
    is_kernel_one = len(weight.shape) > 2 and all(size == 1 for size in weight.numpy().shape[2:])
    is_plain = attributes.get_int("group", 1) == 1 and set(attributes.get_ints("strides", ())) <= {1}
    is_unpadded = set(attributes.get_ints("pads", ())) <= {0}  # auto_pad adds nothing to a kernel of 1 at stride 1
    return is_kernel_one and is_plain and is_unpadded


def _rewrite(graph: Graph, node: ir.Node, last: dict[ir.Value, ir.Value]) -> None:
    """Replace the convolution. `last` holds the values that have been moved to channels last already."""
    tape, x, name = ir.tape.Tape(), operand(node, 0), (node.name or "").removesuffix("/Conv")
    shape, dtype = dims(x) or (), x.type
    rank, weight = len(shape), array(node.inputs[1])
    moved_shape = tuple(shape[axis] for axis in to_last(rank))
    if x not in last:
        last[x] = tape.op("Transpose", [x], {"perm": to_last(rank)}, name=f"{x.name}/channels_last")
        last[x].shape, last[x].type = ir.Shape(moved_shape), dtype
    columns = np.ascontiguousarray(weight.reshape(weight.shape[:2]).T)
    result = tape.op("MatMul", [last[x], tape.initializer(ir.tensor(columns, name=f"{name}.weight_t"))], name=node.name)
    result.shape, result.type = ir.Shape((*moved_shape[:-1], weight.shape[0])), dtype
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        product = result
        result = tape.op("Add", [product, node.inputs[2]], name=f"{name}/Add")
        result.shape, result.type = product.shape, dtype
    result = tape.op("Transpose", [result], {"perm": to_first(rank)}, name=f"{name}/channels_first")
    graph.replace([node], tape, node.outputs[0], result)
