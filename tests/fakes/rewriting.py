"""A parsed model that can be looked through and changed: which node makes a value, which read it, and of which type."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

PASSED = ("QuantizeLinear", "DequantizeLinear", "Cast")
"""Operators that keep the numbers, but for rounding."""


class Rewriting:
    """A copy of a model, changed in place. `model` is the changed copy, with its nodes in order."""

    def __init__(self, model: Any) -> None:
        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        self.graph = self.model.graph
        inferred = onnx.shape_inference.infer_shapes(model)
        values = (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output)
        self._types = {value.name: value.type.tensor_type.elem_type for value in values}
        self._types |= {each.name: each.data_type for each in self.graph.initializer}
        self._widths = {v.name: v.type.tensor_type.shape.dim[-1].dim_value for v in values if _has_axes(v)}
        self.constants = {each.name for each in self.graph.initializer}
        self._count = len(self.graph.node) + len(self.graph.initializer)  # both only grow with each change
        self.index()

    def index(self) -> None:
        """Look at the nodes again after a change."""
        self.made_by = {output: node for node in self.graph.node for output in node.output}
        self.readers: dict[str, list[Any]] = {}
        for node in self.graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)

    def nodes(self, kind: str, within: str = "") -> Iterator[Any]:
        """All nodes of an operator, inside of the module `within` if one is named."""
        places = (f"{within}.", f"{within}/") if within else ("",)
        return (node for node in [*self.graph.node] if node.op_type == kind and node.name.startswith(places))

    def type_of(self, name: str) -> int:
        """The element type of a value, 0 if it is not known."""
        return int(self._types.get(name, 0))

    def width_of(self, name: str) -> int:
        """The size of the last axis of a value."""
        return int(self._widths[name])

    def origin(self, name: str, passed: Sequence[str] = PASSED) -> str:
        """The value before all operators that only pass numbers on."""
        while (node := self.made_by.get(name)) is not None and node.op_type in passed:
            name = node.input[0]
        return name

    def is_constant(self, name: str) -> bool:
        """True for weights, quantized ones too."""
        return self.origin(name) in self.constants

    def above(self, name: str, kind: str) -> list[Any]:
        """The nearest nodes of an operator that a value is computed from."""
        nearest, pending, visited = [], [name], set()
        while pending:
            node = self.made_by.get(pending.pop())
            if node is None or node.name in visited:
                continue
            visited.add(node.name)
            if node.op_type == kind:
                nearest.append(node)
            else:
                pending += node.input
        return nearest

    def constant(self, values: Any) -> str:
        """Add an initializer, and return its name."""
        name = self._fresh()
        self.graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def behind(self, node: Any, *steps: tuple[str, list[str], dict[str, Any]]) -> None:
        """Let what reads `node`'s first output read it through further operators: (kind, further inputs, attributes).

        The last one takes over the name of the output, so that everything else stays as it is.
        """
        last, name = node.output[0], self._fresh()
        node.output[0] = name
        self.insert_after(node, name, last, *steps)

    def before(self, node: Any, index: int, *steps: tuple[str, list[str], dict[str, Any]]) -> None:
        """Let `node` read its input through further operators."""
        name = self._fresh()
        place = [*self.graph.node].index(node)
        self._insert(place, node.input[index], name, steps)
        node.input[index] = name

    def insert_after(self, node: Any, first: str, last: str, *steps: tuple[str, list[str], dict[str, Any]]) -> None:
        """Compute `last` from `first` in a chain of operators, right behind `node`."""
        self._insert([*self.graph.node].index(node) + 1, first, last, steps)

    def _insert(
        self, place: int, first: str, last: str, steps: Sequence[tuple[str, list[str], dict[str, Any]]]
    ) -> None:
        for number, (kind, further, attributes) in enumerate(steps):
            output = last if number == len(steps) - 1 else self._fresh()
            made = helper.make_node(kind, [first, *further], [output], name=f"{output}/fake", **attributes)
            self.graph.node.insert(place + number, made)
            first = output
        self.index()

    def add_node(self, place: int, kind: str, inputs: list[str], output: str = "", **attributes: Any) -> str:
        """Add a node at this place in the list; return the name of its output."""
        output = output or self._fresh()
        self.graph.node.insert(place, helper.make_node(kind, inputs, [output], name=f"{output}/fake", **attributes))
        return output

    def shape_of_constant(self, name: str) -> tuple[int, ...]:
        """The shape of a weight."""
        [tensor] = [each for each in self.graph.initializer if each.name == self.origin(name)]
        return tuple(tensor.dims)

    def _fresh(self) -> str:
        self._count += 1
        return f"fake{self._count}"


def _has_axes(value: Any) -> bool:
    return bool(value.type.tensor_type.shape.dim)
