"""Fix the batch size of a graph whose batch varies."""

from __future__ import annotations

import onnx_ir as ir

from vitdeploy.graph.model import Graph
from vitdeploy.passes import Pass, PassResult


class FixBatch(Pass):
    """Give the first dimension of each input a fixed size, so that shapes become constants.

        image [batch, 3, 224, 224]   ─▶   image [1, 3, 224, 224]

    Fires once for each input whose first dimension varies. Left alone: all other dimensions, and a batch that is fixed
    already, even to another size.
    """

    batch: int

    def apply(self, graph: Graph) -> PassResult:
        """Fix the batch, and infer all other shapes again, because those in the file still have a batch that varies."""
        fired = 0
        for value in graph.model.graph.inputs:
            if value.shape is not None and len(value.shape) and not isinstance(value.shape[0], int):
                value.shape = ir.Shape([self.batch, *value.shape[1:]])
                fired += 1
        if fired:
            graph.infer_shapes_anew()
        return PassResult(fired)
