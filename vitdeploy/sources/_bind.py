"""Inputs beside the image that the user fixes: `--bind NAME=VALUE`. They become constants of the model."""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy.data.array_files import read_npz
from vitdeploy.errors import SourceError
from vitdeploy.plain_files import expand_home
from vitdeploy.plugins import did_you_mean
from vitdeploy.session import Array

if TYPE_CHECKING:
    from torch import nn

_MOST_SHOWN = 8
"""An input with more numbers is given as a file, in the flag that an error suggests."""
_FIX = "Give numbers, such as --bind size=[[640,640]], or --bind NAME=FILE.npz."


@dataclass(frozen=True)
class Input:
    """An input of a model beside the image: its name, its type as NumPy has it, and its shape; None: it varies."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        sizes = ", ".join("batch" if i == 0 and n is None else "?" if n is None else str(n) for i, n in self._sizes)
        return f"{self.name} ({self.dtype.name}, [{sizes}])"

    @property
    def _sizes(self) -> Iterable[tuple[int, int | None]]:
        return enumerate(self.shape)

    def suggest(self, size: tuple[int, int] | None = None) -> str:
        """Return the flag to type: zeros of its shape; height and width of the image for two integers."""
        shape = tuple(side or 1 for side in self.shape)
        if math.prod(shape) > _MOST_SHOWN:
            return f"--bind {self.name}=FILE.npz"
        value = np.zeros(shape, self.dtype)
        if size is not None and shape[-1:] == (2,) and self.dtype.kind in "iu":
            value[...] = size
        return f"--bind {self.name}={str(value.tolist()).replace(' ', '')}"


def read_binds(raw: Mapping[str, Any]) -> dict[str, Array]:
    """Return the arrays of the recipe's `bind`: a number, nested lists of numbers, or a file.

    Raises:
        SourceError: a value is no array of numbers.
        DataError: a file cannot be read.
    """
    return {name: _read(name, value) for name, value in raw.items()}


def check_names(model: str, binds: Iterable[str], known: Sequence[str]) -> None:
    """Refuse a name that the model has no input of.

    Raises:
        SourceError: there is one; the message has the nearest input.
    """
    for name in binds:
        if name not in known:
            listed = ", ".join(known) or "none beside the image"
            raise SourceError(
                f"{model} has no input {name!r} to bind{did_you_mean(name, list(known))}", fix=f"It has: {listed}."
            )


def fit_array(value: Array, place: Input) -> Array:
    """Return a bound value with the type and rank of the input; a missing axis of the batch is added.

    Raises:
        SourceError: the numbers do not fit the type, or the shape is another one.
    """
    kinds = {"f": "fiu", "i": "iu", "u": "iu", "b": "b"}
    converted = value.astype(place.dtype)
    exact = place.dtype.kind == "f" or np.array_equal(converted, value)
    if value.dtype.kind not in kinds.get(place.dtype.kind, "") or not exact:
        raise SourceError(
            f"--bind {place.name} is {value.dtype.name}, and the input takes {place}", fix=f"Give {place.dtype.name}."
        )
    if converted.ndim == len(place.shape) - 1 and place.shape[0] in (1, None):
        converted = converted[None]
    if converted.ndim == len(place.shape) and converted.ndim and converted.shape[0] == 1 and place.shape[0] is not None:
        converted = np.repeat(converted, place.shape[0], axis=0)  # one for all images of a batch
    fits = converted.ndim == len(place.shape) and all(
        want in (None, have) for have, want in zip(converted.shape, place.shape, strict=True)
    )
    if not fits:
        raise SourceError(
            f"--bind {place.name} has the shape {list(value.shape)}, and the input takes {place}",
            fix=f"Give that shape: {place.suggest()}.",
        )
    return converted


def fit_examples(value: Array, place: Input) -> Array:
    """Return examples of an input that stays open with its type: (examples, …).

    Raises:
        SourceError: the numbers do not fit the type, the shape is another one, or the input has no axis for the batch.
    """
    kinds = {"f": "fiu", "i": "iu", "u": "iu", "b": "b"}
    converted = value.astype(place.dtype)
    if value.dtype.kind not in kinds.get(place.dtype.kind, "") or (
        place.dtype.kind != "f" and not np.array_equal(converted, value)
    ):
        raise SourceError(
            f"the examples of {place.name} are {value.dtype.name}, and the input takes {place}",
            fix=f"Give {place.dtype.name}.",
        )
    if len(place.shape) == value.ndim - 1:
        raise SourceError(
            f"the input {place} has no axis for the batch, so it cannot have a value for each image",
            fix=f"Fix it: {place.suggest()}.",
        )
    if len(place.shape) != value.ndim or any(
        want not in (None, have) for have, want in zip(value.shape[1:], place.shape[1:], strict=True)
    ):
        raise SourceError(
            f"the examples of {place.name} have the shape {list(value.shape)}, and the input takes {place}",
            fix="Give that shape, with the axis of examples in place of the batch.",
        )
    return converted


def explain_unbound(image: str, others: Sequence[Input], size: tuple[int, int] | None) -> tuple[str, str]:
    """Return what is wrong with a model that needs more than an image, and the flags that fix it.

    Args:
        image: the name of the input for images.
        others: the inputs that are not fixed.
        size: height and width of the image.
    """
    needed, are = " and ".join(map(str, others)), "is" if len(others) == 1 else "are"
    flags = " ".join(other.suggest(size) for other in others)
    return (
        f"beside the image {image!r} it needs {needed}, which {are} not given",
        f"Fix {'it' if len(others) == 1 else 'them'} with {flags}, or keep {'it' if len(others) == 1 else 'them'} open "
        f"with {suggest_open([other.name for other in others])}.",
    )


def suggest_open(names: Iterable[str]) -> str:
    """Return the flags that keep inputs open."""
    return " ".join(f"--examples {name}=FILE.npz" for name in names)


def read_parameters(module: nn.Module) -> dict[str, bool]:
    """Return the parameters of `forward` by name: True for those without default."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(module.forward).parameters.values()
    return {p.name: p.default is inspect.Parameter.empty for p in parameters if p.kind in named}


def bind_module(
    model: str,
    module: nn.Module,
    raw: Mapping[str, Any],
    image: str | None = None,
    open_names: Collection[str] = (),
    input_name: str = "input",
) -> nn.Module:
    """Return a module that takes images and the open inputs, with the other parameters of its `forward` fixed.

    Args:
        model: the model in messages.
        module: the model.
        raw: see `read_binds`.
        image: the parameter that takes the image; None: the first one that is neither fixed nor open.
        open_names: the parameters that stay inputs.
        input_name: what the artifact calls the image.

    Raises:
        SourceError: there is no such parameter, or one without default is missing.
    """
    parameters = read_parameters(module)
    given = [*raw, *open_names]
    first = next((name for name in parameters if name not in given), "")
    image = image or (first if open_names or first != next(iter(parameters), "") else None)
    parameters.pop(image or first, None)
    check_names(model, given, list(parameters))
    missing = [name for name, is_required in parameters.items() if is_required and name not in given]
    if missing:
        flags = " ".join(f"--bind {name}=VALUE" for name in missing)
        it = "it" if len(missing) == 1 else "them"
        raise SourceError(
            f"{model} needs {' and '.join(missing)} beside the image {image or first!r}, which "
            f"{'is' if len(missing) == 1 else 'are'} not given",
            fix=f"Fix {it}: {flags}, with numbers or FILE.npz. Or keep {it} open: {suggest_open(missing)}.",
        )
    if input_name in open_names:
        raise SourceError(
            f"{model} has an input {input_name!r} beside the image, which is what the image is called",
            fix="Rename that parameter of forward().",
        )
    from vitdeploy.sources._bound import Bound, Open

    if open_names:
        return Open(module, read_binds(raw), str(image), input_name)
    return Bound(module, read_binds(raw), image) if raw else module


def digest_binds(digest: str, binds: Mapping[str, Array]) -> str:
    """Return the sha256 of a model's digest and of bound values."""
    if not binds:
        return digest
    sha = hashlib.sha256(digest.encode())
    for name, value in sorted(binds.items()):
        sha.update(f"{name}:{value.dtype}:{value.shape};".encode() + value.tobytes())
    return sha.hexdigest()


def _read(name: str, value: Any) -> Array:
    if isinstance(value, str):
        return _read_file(name, expand_home(value))
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError):  # rows of different lengths; an integer beyond 64 bits
        array = np.empty(0, object)
    if array.dtype.kind not in "fiub" or not array.size:
        raise SourceError(f"--bind {name}={value!r} is no array of numbers", fix=_FIX)
    return array.astype(np.float32) if array.dtype.kind == "f" else array


def _read_file(name: str, path: Path) -> Array:
    if path.suffix.lower() != ".npz":
        raise SourceError(f"--bind {name}={path} is neither numbers nor a file .npz", fix=_FIX)
    arrays = read_npz(path, _FIX)
    if name in arrays or len(arrays) == 1:
        return arrays.get(name, next(iter(arrays.values())))
    raise SourceError(f"{path} has no array {name!r}, but {', '.join(arrays)}", fix="Save it with that name.")
