"""Choose the output of a model that a task reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from vitdeploy.errors import DataError
from vitdeploy.session import Array


def list_outputs(outputs: Mapping[str, Array]) -> str:
    """Return `logits (1, 10), hidden (1, 5, 8)`, for messages."""
    return ", ".join(f"{name} {value.shape}" for name, value in outputs.items()) or "nothing"


def stand_for(shapes: Mapping[str, tuple[int | str, ...]]) -> dict[str, Array]:
    """Return outputs of these shapes, to choose from by shape. Sizes that vary are 1; no memory is taken."""
    sizes = {name: tuple(s if isinstance(s, int) else 1 for s in shape) for name, shape in shapes.items()}
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape in sizes.items()}


def choose_output(
    outputs: Mapping[str, Array], requested: str | None, preferred: Sequence[str], dims: int, form: str, fix: str
) -> Array:
    """Return the output of `find_output`."""
    return outputs[find_output(outputs, requested, preferred, dims, form, fix)]


def find_output(
    outputs: Mapping[str, Array], requested: str | None, preferred: Sequence[str], dims: int, form: str, fix: str
) -> str:
    """Return the requested output's name; else the first preferred one; else the first with `dims` dimensions.

    Raises:
        DataError: there is no such output, or it does not have `dims` dimensions; the message names the `form`.
    """
    if requested is not None and requested not in outputs:
        raise DataError(
            f"the model has no output {requested!r}, it gives {list_outputs(outputs)}", fix="Correct task.output."
        )
    fitting = [name for name, value in outputs.items() if value.ndim == dims]
    name = requested or next((n for n in (*preferred, *fitting) if n in fitting), None)
    if name is None or outputs[name].ndim != dims:
        raise DataError(f"no output is {form}: the model gives {list_outputs(outputs)}", fix=fix)
    return name


def read_size(
    shapes: Mapping[str, tuple[int | str, ...]], requested: str | None, preferred: Sequence[str], dims: int, axis: int
) -> int | None:
    """Return the size of an axis of the output that `find_output` chooses; None if it varies, or there is none."""
    fitting = [name for name, shape in shapes.items() if len(shape) == dims]
    name = next((name for name in (requested, *preferred, *fitting) if name in fitting), None)
    size = None if name is None else shapes[name][axis]
    return size if isinstance(size, int) else None
