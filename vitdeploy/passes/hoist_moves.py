"""Move equal Transposes of the parts of a value before the nodes that take the parts."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.model import Graph, array, constant, dims, only_consumer, operand
from vitdeploy.passes import Pass, PassResult


class HoistMoves(Pass):
    """Move the Transposes of q, k and v before the Split that makes them, where `MergeMoves` can merge them.

        qkv ─ Split ─┬ Transpose ─ q                         ┌ q
                     ├ Transpose ─ k   ─▶   qkv ─ Transpose ─ Split ─ k
                     └ Transpose ─ v                         └ v

    Channels-first models split (heads, size, tokens) and turn each part. OpenVINO would take these moves into its
    products and not fuse them then. PyTorch's older exporter writes a Slice for each part. Left alone: Transposes that
    differ, values and parts that something else reads too, and slices whose axes are not constant.
    """

    def apply(self, graph: Graph) -> PassResult:
        """Hoist the Transposes of the parts of every value."""
        fired = 0
        wholes = {operand(n, 0) for n in graph.nodes if n.op_type in ("Slice", "Split") and n.domain == ""}
        for whole in sorted(wholes, key=lambda value: value.name or ""):
            takers = [use.node for use in whole.uses()]
            perm = _find_common_perm(whole, takers)
            if perm:
                _hoist(graph, whole, takers, list(perm))
                fired += 1
        return PassResult(fired)


def _find_common_perm(whole: ir.Value, takers: list[ir.Node]) -> tuple[int, ...] | None:
    """Return the permutation that every part of a value gets; None if they differ or something else reads it."""
    if whole.is_graph_output() or not all(use.idx == 0 and _takes_parts(use.node) for use in whole.uses()):
        return None
    if any(taker.graph is not whole.graph for taker in takers):
        return None  # in a branch of an If
    moves = [only_consumer(part, "Transpose") for taker in takers for part in taker.outputs]
    perms = {None if move is None else tuple(move.attributes.get_ints("perm", ())) for move in moves}
    return perms.pop() if len(perms) == 1 else None


def _takes_parts(node: ir.Node) -> bool:
    """Return whether a node takes parts of its first input along axes that are known."""
    if node.domain != "" or node.op_type not in ("Slice", "Split") or dims(node.inputs[0]) is None:
        return False
    return node.op_type == "Split" or (len(node.inputs) > 3 and constant(node.inputs[3]) is not None)


def _hoist(graph: Graph, whole: ir.Value, takers: list[ir.Node], perm: list[int]) -> None:
    tape = ir.tape.Tape()
    shape = dims(whole) or ()
    moved = tape.op("Transpose", [whole], {"perm": perm}, name=f"{takers[0].name}/Transpose")
    moved.shape, moved.type = ir.Shape([shape[axis] for axis in perm]), whole.type
    graph.insert_before(graph.find_first(takers), tape)
    for taker in takers:
        taker.replace_input_with(0, moved)
        if taker.op_type == "Split":
            axis = taker.attributes.get_int("axis", 0) % len(perm)
            taker.attributes["axis"] = ir.AttrInt64("axis", perm.index(axis))
        else:
            axes = np.array([perm.index(int(axis) % len(perm)) for axis in array(taker.inputs[3])], np.int64)
            taker.replace_input_with(3, graph.initializer(axes, f"{taker.name}/axes"))
        for part in taker.outputs:
            _drop_move(graph, part)


def _drop_move(graph: Graph, part: ir.Value) -> None:
    """Let what reads the Transpose behind a part read the part itself."""
    move = only_consumer(part, "Transpose")
    assert move is not None
    result = move.outputs[0]
    part.shape, part.type = result.shape, result.type
    if result.is_graph_output():
        part.name = result.name  # an output keeps its name
    ir.convenience.replace_all_uses_with(result, part, replace_graph_outputs=True)
    graph.model.graph.remove(move, safe=True)
