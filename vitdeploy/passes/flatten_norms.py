"""Normalise tokens of a grid as one list, which OpenVINO does in one kernel."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.model import Graph, constant, dims, operand
from vitdeploy.passes import Pass, PassResult

_LIST_RANK = 3


class FlattenNorms(Pass):
    """Put a Reshape to a list of tokens and back around each LayerNorm of a grid or of windows in a grid.

        x (B, H, W, C) ─ LayerNormalization(γ, β)
     ─▶ x (B, H, W, C) ─ Reshape (B, H · W, C) ─ LayerNormalization ─ Reshape (B, H, W, C) ─ Mul γ ─ Add β

    OpenVINO 2026.4.1 has a kernel for LayerNorms of three axes on CPUs. With more it takes a Reduce, a Subgraph and an
    RMS kernel. Scale and shift go behind the second Reshape, because there they become one kernel with what follows,
    such as rounding to INT8. Left alone: LayerNorms over more than the last axis, and those whose scale is computed.
    """

    def apply(self, graph: Graph) -> PassResult:
        """Flatten every such LayerNorm."""
        graph.infer_shapes()
        norms = [node for node in graph.nodes if node.op_type == "LayerNormalization" and _is_grid(node)]
        for node in norms:
            _flatten(graph, node)
        return PassResult(len(norms))


def _is_grid(norm: ir.Node) -> bool:
    shape = dims(operand(norm, 0))
    if shape is None or len(shape) <= _LIST_RANK or not shape[-1]:
        return False
    if norm.attributes.get_int("axis", -1) % len(shape) != len(shape) - 1 or len(norm.outputs) > 1:
        return False
    scale = constant(norm.inputs[1])
    return scale is not None and scale.shape.numpy() in ((shape[-1],), (1,), ())


def _flatten(graph: Graph, norm: ir.Node) -> None:
    x, scale, *bias = norm.inputs
    name, tape, shape = norm.name, ir.tape.Tape(), dims(x) or ()

    def ints(label: str, numbers: list[int]) -> ir.Value:
        return tape.initializer(ir.tensor(np.array(numbers, np.int64), name=f"{name}/{label}"))

    ones = np.ones(shape[-1] or 1, x.dtype.numpy() if x is not None and x.dtype is not None else np.float32)
    tokens = tape.op("Reshape", [x, ints("list/shape", [0, -1, shape[-1] or 0])], name=f"{name}/list")
    unit = tape.initializer(ir.tensor(ones, name=f"{name}/ones"))
    epsilon = norm.attributes.get_float("epsilon", 1e-5)
    normal = tape.op("LayerNormalization", [tokens, unit], {"axis": -1, "epsilon": epsilon}, name=f"{name}/normalise")
    if shape.count(None) > 1:
        sizes = tape.op("Shape", [x], name=f"{name}/grid/shape")
    else:
        sizes = ints("grid/shape", [-1 if n is None else n for n in shape])
    result = tape.op("Mul", [tape.op("Reshape", [normal, sizes], name=f"{name}/grid"), scale], name=f"{name}/scale")
    if bias and bias[0] is not None:
        result = tape.op("Add", [result, bias[0]], name=f"{name}/shift")
    graph.replace([norm], tape, norm.outputs[0], result)
