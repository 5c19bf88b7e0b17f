"""Remove antialiasing where nothing gets smaller."""

from __future__ import annotations

import onnx_ir as ir

from vitdeploy.graph.model import Graph, dims
from vitdeploy.graph.one_image import one_image
from vitdeploy.passes import Pass, PassResult


class DropAntialias(Pass):
    """Remove the antialiasing of each cubic Resize whose result is never smaller than its input.

        positions (1, 192, 14, 14) ─ Resize(antialias) to (14, 14) or more   ─▶   Resize

    Antialiasing widens the filter by as much as an axis shrinks, so otherwise both forms give the same numbers, and
    TensorRT takes no antialiasing. Refused: a Resize that makes something smaller for the smallest images, one whose
    result has no known size, and other filters, which treat borders in another way with antialiasing.

    Attributes:
        smallest: height and width of the smallest images.
    """

    smallest: tuple[int, int]

    def apply(self, graph: Graph) -> PassResult:
        """Remove it; `fired` counts the operators."""
        smoothed = [n for n in graph.nodes if n.op_type == "Resize" and n.attributes.get_int("antialias")]
        if not smoothed:
            return PassResult(0)
        with one_image(graph, self.smallest):
            reasons = {node: _find_reason(node) for node in smoothed}
        for node in (node for node, reason in reasons.items() if reason is None):
            node.attributes["antialias"] = ir.AttrInt64("antialias", 0)
        refused = {node.name or "": reason for node, reason in reasons.items() if reason is not None}
        return PassResult(len(smoothed) - len(refused), refused)


def _find_reason(resize: ir.Node) -> str | None:
    """Return why the antialiasing has to stay, or None."""
    before, after = dims(resize.inputs[0]), dims(resize.outputs[0])
    if resize.attributes.get_string("mode", "nearest") != "cubic":
        return "its filter is not cubic"
    if before is None or after is None or None in (*before, *after):
        return "the size of its result is not known"
    if any(new < old for old, new in zip(before, after, strict=True) if old is not None and new is not None):
        return f"it makes {list(before)} smaller, {list(after)}, for the smallest images"
    return None
