"""Mark values inside a parsed network as outputs, to compare them with what they should be."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

_READABLE = ("FLOAT", "HALF", "INT32", "INT64")
"""Types of which NumPy has the same. It has no bfloat16."""


def mark_outputs(network: Any, names: Collection[str]) -> list[str]:
    """Mark the values of a network that have these names; return those that became outputs.

    Left out are values that the parser has renamed or folded, those of shapes, and types that NumPy does not have.
    A value that is an output anyway is not marked again.
    """
    marked: list[str] = []
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        for number in range(layer.num_outputs):
            tensor = layer.get_output(number)
            if tensor is None or tensor.name not in names or tensor.name in marked or tensor.is_network_output:
                continue
            if tensor.dtype.name in _READABLE and not tensor.is_shape_tensor:
                network.mark_output(tensor)
                marked.append(tensor.name)
    return marked
