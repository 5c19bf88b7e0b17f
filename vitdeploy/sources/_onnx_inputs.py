"""Inputs of an ONNX graph beside the image: fixed ones become constants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitdeploy.data.example_inputs import ExampleInputs
from vitdeploy.errors import GraphError
from vitdeploy.session import Array
from vitdeploy.sources._bind import Input, check_names, explain_unbound, fit_array, fit_examples, read_binds

if TYPE_CHECKING:
    import onnx_ir as ir


_NONE = ExampleInputs()


def bind_inputs(
    path: Path,
    graph: ir.Graph,
    image: ir.Value,
    others: Sequence[ir.Value],
    raw: Mapping[str, Any],
    size: tuple[int, int] | None,
    examples: ExampleInputs = _NONE,
) -> tuple[dict[str, Array], ExampleInputs]:
    """Make constants of the inputs that the user fixes, in place. Return their values, and the examples of the others.

    The image becomes the first input. Open inputs get the shape of their examples.

    Args:
        path: the file, for messages.
        graph: the graph.
        image: its input for images.
        others: its other inputs.
        raw: the recipe's `bind`.
        size: height and width of the image, for the flag that an error suggests.
        examples: of the inputs that stay open.

    Raises:
        SourceError: there is no such input, or a value does not fit it.
        GraphError: an input is neither fixed nor open.
    """
    import onnx_ir as ir

    places = {str(value.name): _describe(value) for value in others}
    check_names(str(path), [*raw, *examples.arrays], list(places))
    if unbound := [place for name, place in places.items() if name not in raw and name not in examples.arrays]:
        needed, fix = explain_unbound(str(image.name), unbound, size)
        raise GraphError(f"{path}: {needed}", fix=fix)
    binds = {name: fit_array(value, places[name]) for name, value in read_binds(raw).items()}
    fitting = {name: fit_examples(array, places[name]) for name, array in examples.arrays.items()}
    for value in others:
        if value.name in fitting:
            assert value.shape is not None
            value.shape = ir.Shape([value.shape[0], *fitting[str(value.name)].shape[1:]])
            continue
        array = binds[str(value.name)]
        graph.inputs.remove(value)
        value.const_value = ir.tensor(array, name=value.name)
        value.shape = ir.Shape(array.shape)
        graph.register_initializer(value)
    if fitting:
        open_inputs = [value for value in graph.inputs if value.name in fitting]
        rest = [value for value in graph.inputs if value is not image and value.name not in fitting]
        graph.inputs[:] = [image, *open_inputs, *rest]
    names = [str(value.name) for value in graph.inputs if value.name in fitting]
    return binds, ExampleInputs({name: fitting[name] for name in names})


def _describe(value: ir.Value) -> Input:
    import numpy as np

    from vitdeploy.graph.model import dims

    dtype = np.dtype(value.dtype.numpy()) if value.dtype is not None else np.dtype(np.float32)
    return Input(str(value.name), dtype, tuple(dims(value) or ()))
