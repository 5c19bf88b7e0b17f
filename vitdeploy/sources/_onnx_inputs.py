"""Inputs of an ONNX graph beside the image: fixed ones become constants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitdeploy.errors import GraphError
from vitdeploy.session import Array
from vitdeploy.sources._bind import Input, check_names, explain_unbound, fit_array, read_binds

if TYPE_CHECKING:
    import onnx_ir as ir


def bind_inputs(
    path: Path,
    graph: ir.Graph,
    image: ir.Value,
    others: Sequence[ir.Value],
    raw: Mapping[str, Any],
    size: tuple[int, int] | None,
) -> dict[str, Array]:
    """Make constants of the inputs that the user fixes, in place. Return their values.

    Args:
        path: the file, for messages.
        graph: the graph.
        image: its input for images.
        others: its other inputs.
        raw: the recipe's `bind`.
        size: height and width of the image, for the flag that an error suggests.

    Raises:
        SourceError: there is no such input, or a value does not fit it.
        GraphError: an input is not fixed.
    """
    import onnx_ir as ir

    places = {str(value.name): _describe(value) for value in others}
    check_names(str(path), raw, list(places))
    if unbound := [place for name, place in places.items() if name not in raw]:
        needed, fix = explain_unbound(str(image.name), unbound, size)
        raise GraphError(f"{path}: {needed}", fix=fix)
    binds = {name: fit_array(value, places[name]) for name, value in read_binds(raw).items()}
    for value in others:
        array = binds[str(value.name)]
        graph.inputs.remove(value)
        value.const_value = ir.tensor(array, name=value.name)
        value.shape = ir.Shape(array.shape)
        graph.register_initializer(value)
    return binds


def _describe(value: ir.Value) -> Input:
    import numpy as np

    from vitdeploy.graph.model import dims

    dtype = np.dtype(value.dtype.numpy()) if value.dtype is not None else np.dtype(np.float32)
    return Input(str(value.name), dtype, tuple(dims(value) or ()))
