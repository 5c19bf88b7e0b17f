"""Fix the height and width of a graph whose image size varies."""

from __future__ import annotations

import onnx_ir as ir

from vitdeploy.graph.model import Graph
from vitdeploy.passes import Pass, PassResult

_IMAGE_RANKS = (4, 5)  # NCHW, and NTCHW for clips


class FixSize(Pass):
    """Give the image a fixed height and width, so that the number of tokens becomes a constant.

        image [batch, 3, height, width]   ─▶   image [batch, 3, 224, 320]

    Fires once for each input NCHW or NTCHW of which one of the two varies. Left alone: the other axes, a side that is
    fixed already, even to another size, and a side that may go on varying, for which None is given.
    """

    height: int | None
    width: int | None

    def apply(self, graph: Graph) -> PassResult:
        """Fix both sides, and infer all other shapes again, because those in the file still name the old sides."""
        fired = 0
        for value in graph.model.graph.inputs:
            if value.shape is None or len(value.shape) not in _IMAGE_RANKS:
                continue
            sides = [
                side if isinstance(side, int) or given is None else given
                for side, given in zip(value.shape[-2:], (self.height, self.width), strict=True)
            ]
            if sides != list(value.shape[-2:]):
                value.shape = ir.Shape([*value.shape[:-2], *sides])
                fired += 1
        if fired:
            graph.infer_shapes_anew()
        return PassResult(fired)
