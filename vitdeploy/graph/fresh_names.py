"""Names for new nodes, constants and values that nothing else in a graph has."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir


class FreshNames:
    """The names in use, collected when the first fresh one is asked for. Names that are gone stay."""

    def __init__(self) -> None:
        self._nodes: set[str] = set()
        self._values: set[str] = set()

    def name_node(self, model: ir.Model, name: str) -> str:
        """Return `name` for a node or constant, with a number behind it if another one has it, and reserve it."""
        self._collect(model)
        return _reserve(name, self._nodes, model)

    def name_value(self, model: ir.Model, name: str) -> str:
        """Return `name` for a computed value, with a number behind it if another one has it, and reserve it."""
        self._collect(model)
        return _reserve(name, self._values, model)

    def free(self, model: ir.Model, nodes: Iterable[ir.Node], reused: ir.Value | None) -> None:
        """Let the names of `nodes` and of their outputs be used again, except for that of the value `reused`."""
        self._collect(model)
        for node in nodes:
            self._nodes.discard(node.name or "")
            self._values.difference_update(v.name for v in node.outputs if v.name and v is not reused)

    def forget(self) -> None:
        """Collect the names anew for the next fresh one, because something else has named or removed nodes."""
        self._nodes.clear()
        self._values.clear()

    def _collect(self, model: ir.Model) -> None:
        if self._nodes or self._values:
            return
        for node in model.graph.all_nodes():
            self._nodes.add(node.name or "")
            self._values.update(v.name for v in node.outputs if v.name)
        self._values.update(v.name for v in model.graph.inputs if v.name)


def _reserve(name: str, used: set[str], model: ir.Model) -> str:
    fresh, number = name, 0
    while fresh in used or fresh in model.graph.initializers:
        number += 1
        fresh = f"{name}_{number}"
    used.add(fresh)
    return fresh
