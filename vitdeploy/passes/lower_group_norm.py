"""Lower each GroupNormalization to an operator that every target runs."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.model import Graph, constant, dims, operand
from vitdeploy.passes import Pass, PassResult

_REDEFINED = 21
"""From this opset on, the operator has a scale and a shift for each channel; before, for each group."""


class LowerGroupNorm(Pass):
    """Replace a norm over groups of channels by a norm of each group as one channel, and its affine part.

        x ─ GroupNormalization(γ, β)
     ─▶ x ─ Reshape (batch, groups, -1) ─ InstanceNormalization ─ Reshape as x ─ [Mul γ] ─ [Add β]

    OpenVINO 2026.4.1 crashes on two residual blocks with the operator, and it does not exist with this meaning at the
    opset that JetPack 6 reads. In float16 and bfloat16 the statistics are computed in float32, between two Casts, as
    the operator itself does (its stash_type): InstanceNormalization has no such attribute. A γ of ones and a β of zeros
    are not written. Left alone and refused: an input whose rank is not known, and an operator of opset 20 or older.
    """

    def apply(self, graph: Graph) -> PassResult:
        """Lower every group norm."""
        refused, fired = {}, 0
        for node in [n for n in graph.nodes if n.op_type == "GroupNormalization" and n.domain == ""]:
            if graph.opset < _REDEFINED:
                refused[node.name or ""] = f"at opset {graph.opset} it has a scale for each group, not for each channel"
            elif (shape := dims(operand(node, 0))) is None:
                refused[node.name or ""] = "the rank of its input is not known"
            else:
                _lower(graph, node, shape)
                fired += 1
        return PassResult(fired, refused)


def _lower(graph: Graph, node: ir.Node, shape: tuple[int | None, ...]) -> None:
    x, name, tape = operand(node, 0), node.name, ir.tape.Tape()
    groups = node.attributes.get_int("num_groups", 1)

    def ints(label: str, numbers: list[int]) -> ir.Value:
        return tape.initializer(ir.tensor(np.array(numbers, np.int64), name=f"{name}/{label}"))

    def floats(label: str, number: float) -> ir.Value:
        return tape.initializer(ir.tensor(np.full(groups, number, np.float32), name=f"{name}/{label}"))

    is_half = x.dtype not in (None, ir.DataType.FLOAT)
    wide = tape.op("Cast", [x], {"to": ir.DataType.FLOAT}, name=f"{name}/to_float") if is_half else x
    apart = tape.op("Reshape", [wide, ints("groups_shape", [0, groups, -1])], name=f"{name}/groups")
    normed = tape.op(
        "InstanceNormalization",
        [apart, floats("ones", 1.0), floats("zeros", 0.0)],
        {"epsilon": node.attributes.get_float("epsilon", 1e-5)},
        name=f"{name}/InstanceNormalization",
    )
    # Behind the first Reshape only the batch keeps its axis, so one more size may be left open.
    if sum(size is None for size in shape[1:]) <= 1:
        sizes = ints("shape", [0, *(-1 if size is None else size for size in shape[1:])])
    else:
        sizes = tape.op("Shape", [x], name=f"{name}/Shape")
    result = tape.op("Reshape", [normed, sizes], name=f"{name}/channels")
    if is_half:
        result = tape.op("Cast", [result], {"to": x.dtype}, name=f"{name}/to_half")
    for index, op_type, neutral in ((1, "Mul", 1.0), (2, "Add", 0.0)):
        vector = operand(node, index)
        if not _is_all(vector, neutral):
            factor = _for_each_channel(tape, vector, len(shape) - 2, f"{name}/{vector.name}")
            result = tape.op(op_type, [result, factor], name=f"{name}/{op_type}")
    node.outputs[0].type = x.type  # shape inference gives it none
    graph.replace([node], tape, node.outputs[0], result)


def _is_all(vector: ir.Value, number: float) -> bool:
    tensor = constant(vector)
    return tensor is not None and bool((np.asarray(tensor.numpy(), np.float32) == number).all())


def _for_each_channel(tape: ir.tape.Tape, vector: ir.Value, spatial: int, name: str) -> ir.Value:
    """Return a vector (channels,) as (channels, 1, …), with an axis of one for each of the `spatial` axes."""
    if spatial == 0:
        return vector
    tensor = constant(vector)
    if tensor is not None:
        numbers = tensor.numpy().reshape(tensor.size, *[1] * spatial)
        return tape.initializer(ir.tensor(numbers, dtype=tensor.dtype, name=name))
    axes = tape.initializer(ir.tensor(np.arange(1, 1 + spatial, dtype=np.int64), name=f"{name}/axes"))
    return tape.op("Unsqueeze", [vector, axes], name=name)
