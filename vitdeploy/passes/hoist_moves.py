"""Move equal Transposes behind a Split to one Transpose before it."""

from __future__ import annotations

import onnx_ir as ir

from vitdeploy.graph.model import Graph, dims, only_consumer, operand
from vitdeploy.passes import Pass, PassResult


class HoistMoves(Pass):
    """Move the Transposes of q, k and v before the Split that makes them, where `MergeMoves` can merge them.

        qkv ─ Split ─┬ Transpose ─ q                       ┌ q
                     ├ Transpose ─ k   ─▶   qkv ─ Transpose ─ Split ─ k
                     └ Transpose ─ v                       └ v

    Channels-first models split (heads, size, tokens) and turn each part. OpenVINO would take these moves into its
    products and not fuse them then. Left alone: Transposes that differ, and parts that something else reads too.
    """

    def apply(self, graph: Graph) -> PassResult:
        """Hoist the Transposes of every such Split."""
        fired = 0
        for split in [node for node in graph.nodes if node.op_type == "Split" and node.domain == ""]:
            moves = [only_consumer(part, "Transpose") for part in split.outputs]
            perms = {None if move is None else tuple(move.attributes.get_ints("perm", ())) for move in moves}
            if len(perms) == 1 and (perm := perms.pop()) and dims(operand(split, 0)) is not None:
                _hoist(graph, split, [move for move in moves if move is not None], list(perm))
                fired += 1
        return PassResult(fired)


def _hoist(graph: Graph, split: ir.Node, moves: list[ir.Node], perm: list[int]) -> None:
    tape, x = ir.tape.Tape(), operand(split, 0)
    shape = dims(x) or ()
    moved = tape.op("Transpose", [x], {"perm": perm}, name=f"{split.name}/Transpose")
    moved.shape, moved.type = ir.Shape([shape[axis] for axis in perm]), x.type
    graph.insert_before(split, tape)
    split.replace_input_with(0, moved)
    axis = split.attributes.get_int("axis", 0) % len(perm)
    split.attributes["axis"] = ir.AttrInt64("axis", perm.index(axis))
    for part, move in zip(split.outputs, moves, strict=True):
        result = move.outputs[0]
        part.shape = result.shape
        if result.is_graph_output():
            part.name = result.name  # an output keeps its name
        ir.convenience.replace_all_uses_with(result, part, replace_graph_outputs=True)
        graph.model.graph.remove(move, safe=True)
