"""Which of a model's outputs a task reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vitdeploy.errors import DataError
from vitdeploy.session import Array


def listed(outputs: Mapping[str, Array]) -> str:
    """`logits (1, 10), hidden (1, 5, 8)`, for messages."""
    return ", ".join(f"{name} {value.shape}" for name, value in outputs.items()) or "nothing"


def chosen(
    outputs: Mapping[str, Array], named: str | None, preferred: Sequence[str], dims: int, what: str, fix: str
) -> Array:
    """The output `named` by the user; else the first of the `preferred` names; else the first one of `dims` dimensions.

    Raises:
        DataError: there is no such output, or it has another number of dimensions than `what` says.
    """
    if named is not None and named not in outputs:
        raise DataError(f"the model has no output {named!r}, it gives {listed(outputs)}", fix="Correct task.output.")
    fitting = [name for name, value in outputs.items() if value.ndim == dims]
    name = named or next((n for n in (*preferred, *fitting) if n in fitting), None)
    if name is None or outputs[name].ndim != dims:
        raise DataError(f"no output is {what}: the model gives {listed(outputs)}", fix=fix)
    return outputs[name]
