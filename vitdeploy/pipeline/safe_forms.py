"""Forms of a target-ready graph that compute the same in another way, for a compiler that gives wrong numbers.

A compiler that miscompiles one form of a graph often gets another right. The forms are written at export, because a
device has neither onnx nor torch. They are tried in the order of this list; the first one that holds parity is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vitdeploy import frozen
from vitdeploy.artifact import PassRecord
from vitdeploy.graph.structure import Structure

if TYPE_CHECKING:
    from vitdeploy.graph.model import Graph
    from vitdeploy.passes import Pass

_LEVELS = (2, 0)
"""Lower optimization levels. TensorRT's default is 3; below it, it compiles no kernels of its own where it has ready
ones, and at 0 it takes the first that works (developer guide, "Builder Optimization Level")."""

_DEFAULT_LEVEL = 3


@dataclass(frozen=True)
class SafeForm:
    """A form of one target-ready graph that computes the same.

    Attributes:
        name: `separate-qkv`, `baked-positions`, `fp32-scores`, `fp32-block-N`, `level-N` or `fp32`.
        note: what differs from the plain form, for the manifest and for people.
        rewrites: the passes that make its graph; none for `level-N`, which builds the plain graph.
        optimization_level: the level to build with; None: that of the plain form.
        block: the number of the block that it changes; None: it changes the whole model.
    """

    name: str
    note: str
    rewrites: tuple[Pass, ...] = ()
    optimization_level: int | None = None
    block: int | None = None

    @property
    def has_graph(self) -> bool:
        """True if it has a graph of its own."""
        return bool(self.rewrites)

    def rewrite(self, graph: Graph, structure: Structure) -> Rewritten:
        """Return the form's graph. The plain graph stays as it is, and both share their weights in memory."""
        from vitdeploy import passes
        from vitdeploy.graph.model import Graph
        from vitdeploy.graph.risky_forms import find_risky_forms

        copy = Graph(graph.model.clone())
        records = tuple(passes.run(self.rewrites, copy))
        names = [node.name or "" for node in copy.nodes]
        structure = structure.locate_attention(names).locate_parts(names)
        structure = frozen.replace(structure, risky_forms=find_risky_forms(copy, structure))
        return Rewritten(copy, structure, records)


@dataclass(frozen=True)
class Rewritten:
    """The graph of a safe form.

    Attributes:
        graph: the target-ready graph.
        structure: its sites and linears: those of the plain graph, with the nodes that this graph has.
        passes: records of the passes that made it.
    """

    graph: Graph
    structure: Structure
    passes: tuple[PassRecord, ...]


@dataclass(frozen=True)
class SafeForms:
    """The safe forms of a graph.

    Attributes:
        forms: those that apply, in the order in which they are tried.
        left_out: the name of each other form, and why it does not apply.
    """

    forms: tuple[SafeForm, ...]
    left_out: Mapping[str, str]

    def find(self, name: str) -> SafeForm | None:
        """Return the form of this name, or None."""
        return next((form for form in self.forms if form.name == name), None)


def list_safe_forms(graph: Graph, structure: Structure, *, optimization_level: int | None = None) -> SafeForms:
    """Return the safe forms of a target-ready graph, in the order in which they are tried.

    Args:
        graph: lowered to plain operators, quantized or not. It is not changed.
        structure: its sites and linears.
        optimization_level: the level that the plain form is built with; None: TensorRT's default.
    """
    applies: list[SafeForm] = []
    left_out: dict[str, str] = {}
    for form, reason in _possible_forms(graph, structure, optimization_level):
        if not reason and form.block is None and form.has_graph:
            reason = _find_reason(form, graph, structure)
        if reason:
            left_out[form.name] = reason
        else:
            applies.append(form)
    return SafeForms(tuple(applies), left_out)


def _possible_forms(
    graph: Graph, structure: Structure, optimization_level: int | None
) -> Iterator[tuple[SafeForm, str]]:
    """Yield every form in order, each with a reason why it does not apply, if that is known already."""
    from vitdeploy.graph.blocks import find_blocks
    from vitdeploy.passes import order
    from vitdeploy.passes.bake_positions import BakePositions
    from vitdeploy.passes.separate_qkv import SeparateQkv
    from vitdeploy.passes.widen_nodes import WidenNodes
    from vitdeploy.passes.widen_scores import WidenScores

    casts = _describe_casts(graph)
    wide = "" if casts else "the graph computes in FP32 already"
    yield SafeForm("separate-qkv", "q, k and v are products that are not merged", order.securing(SeparateQkv())), ""
    yield (
        SafeForm("baked-positions", "rotary positions are products with constants", order.securing(BakePositions())),
        "",
    )
    yield SafeForm("fp32-scores", "scores and softmax compute in FP32", order.securing(WidenScores())), wide
    for block in find_blocks(graph, structure) if casts else ():
        rewrites, note = order.securing(WidenNodes(only=block.nodes)), f"{block.name} computes in FP32; {casts}"
        yield SafeForm(f"fp32-block-{block.number}", note, rewrites, block=block.number), ""
    for level in _LEVELS:
        lower = level < (_DEFAULT_LEVEL if optimization_level is None else optimization_level)
        reason = "" if lower else f"it is built at level {optimization_level}"
        yield SafeForm(f"level-{level}", f"built at optimization level {level}", optimization_level=level), reason
    yield SafeForm("fp32", f"everything computes in FP32; {casts}", order.securing(WidenNodes())), wide


def _find_reason(form: SafeForm, graph: Graph, structure: Structure) -> str:
    """Return why a rewrite changes nothing, or an empty string if it changes something."""
    rewrite, *_ = form.rewrite(graph, structure).passes
    if rewrite.fired:
        return ""
    reasons = {refusal.reason for refusal in rewrite.refused}
    return "; ".join(sorted(reasons)) or _NOTHING_TO_DO[form.name]


_NOTHING_TO_DO = {
    "separate-qkv": "no two linears read the same value",
    "baked-positions": "no query or key is rotated by its position",
    "fp32-scores": "no attention computes its scores in half precision",
    "fp32": "nothing computes in half precision",
}


def _describe_casts(graph: Graph) -> str:
    """Return which weights a form in FP32 casts up; empty if the graph has none in half precision."""
    from vitdeploy.graph.casts import HALF_TYPES

    types = {value.dtype for node in graph.nodes for value in node.outputs}
    half = [dtype.name.replace("FLOAT", "FP").replace("BFP", "BF") for dtype in HALF_TYPES if dtype in types]
    if not half:
        return ""
    has_pairs = any(node.op_type == "QuantizeLinear" for node in graph.nodes)
    rounding = "; its Q/DQ pairs round as before" if has_pairs else ""
    return f"casts {' and '.join(half)} weights up{rounding}"
