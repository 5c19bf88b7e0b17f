"""onnxscript's optimizer, in a time that grows with the number of nodes and not with its square."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import cache
from typing import Any

import onnx_ir as ir
from onnxscript import optimizer, rewriter

from vitdeploy.graph.exact_rules import demand_exact_constants

_MOST_PARTNERS = 64
"""Readers of one value among which partners are looked for. An image is cut into fewer pieces."""


def optimize(model: ir.Model, largest_elements: int) -> None:
    """Fold constants of at most `largest_elements`, and apply the optimizer's own rewrites."""
    _hasten_rules()
    demand_exact_constants()
    logger = logging.getLogger("onnxscript")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns of each operator that it does not fold, which `FoldConstants` does then
    try:
        optimizer.optimize_ir(model, input_size_limit=largest_elements, output_size_limit=largest_elements)
    finally:
        logger.setLevel(level)


@cache
def _hasten_rules() -> None:
    """Let rules that match several outputs look only where they can match.

    Such a rule (`SlicesSplit`: two Slices of one value) lists all nodes of the graph for each node, and tries all
    pairs: 6,000 nodes take 17 s. The optimizer has no option to leave rules out, so their matchers are exchanged.
    """
    for rule in getattr(rewriter, "_DEFAULT_REWRITE_RULES", ()):
        matcher = getattr(rule, "_matcher", None)
        pattern = getattr(matcher, "pattern", None)
        if pattern is not None and not pattern.has_single_output_node:
            rule._matcher = _PartnerMatcher(matcher)


class _PartnerMatcher:
    """Matches like another matcher, but looks for partners of a node only among the readers of its first input."""

    def __init__(self, inner: Any) -> None:
        self.pattern = inner.pattern
        self._inner = inner

    def match(self, model: ir.Model, graph: ir.Graph | ir.Function, node: ir.Node, **options: Any) -> Any:
        """Return the match of the pattern that begins at `node`, or one that failed."""
        first = self.pattern.output_nodes[0].op_identifier()
        source = node.inputs[0] if node.inputs else None
        fits = source is not None and first in (None, node.op_identifier())
        partners = list(source.consumers()) if fits and source is not None else []
        if len(partners) > _MOST_PARTNERS:
            partners = []
        return self._inner.match(model, _Partners(graph, partners), node, **options)


class _Partners:
    """A graph as a matcher sees it, with few nodes."""

    def __init__(self, graph: ir.Graph | ir.Function, nodes: list[ir.Node]) -> None:
        self.graph = graph if isinstance(graph, ir.Graph) else graph.graph
        self._nodes = nodes

    def __iter__(self) -> Iterator[ir.Node]:
        return iter(self._nodes)
