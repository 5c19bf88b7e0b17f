"""Examples of the inputs that a model takes beside the image: a value for each sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vitdeploy.data.array_files import read_npz
from vitdeploy.errors import DataError
from vitdeploy.plain_files import expand_home
from vitdeploy.recipe import InputSpec, Preprocess
from vitdeploy.session import Array

_FIX = "Save it with numpy.savez(FILE, NAME=array), with an axis of examples in front."


@dataclass(frozen=True)
class FurtherInput:
    """An input beside the image: its name, its type as NumPy has it, and the shape of the value of one sample."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    def takes_images(self, preprocess: Preprocess) -> bool:
        """Return True if its values have the form of the model's images, so that images can be prepared for it."""
        return self.dtype == "float32" and self.shape == preprocess.sample_shape


@dataclass(frozen=True)
class ExampleInputs:
    """Examples by the name of the input, each (examples, …). There may be other numbers of them for each input."""

    arrays: Mapping[str, Array] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.arrays)

    @property
    def inputs(self) -> tuple[FurtherInput, ...]:
        """The inputs that these are examples of."""
        return tuple(FurtherInput(name, a.dtype.name, a.shape[1:]) for name, a in self.arrays.items())

    def take(self, count: int, start: int = 0) -> dict[str, Array]:
        """Return `count` examples of each input from number `start` on, in turn."""
        return {name: array[(start + np.arange(count)) % len(array)] for name, array in self.arrays.items()}


def read_examples(specs: Mapping[str, InputSpec]) -> ExampleInputs:
    """Read the files of the inputs that stay open.

    Raises:
        DataError: a file cannot be read, or has no examples of the stated type and shape.
    """
    return ExampleInputs({name: _read(name, spec) for name, spec in specs.items() if spec.examples is not None})


def find_array(name: str, path: Path, arrays: Mapping[str, Array], fix: str = _FIX) -> Array:
    """Return the array of this name in a file, or its only one.

    Raises:
        DataError: there is none.
    """
    if name not in arrays and len(arrays) != 1:
        raise DataError(f"{path} has no array {name!r}, but {', '.join(arrays) or 'none'}", fix=fix)
    return arrays.get(name, next(iter(arrays.values())))


def as_numbers(what: str, array: Array) -> Array:
    """Return an array of numbers, floats as float32.

    Raises:
        DataError: it has other values, or a number is not finite.
    """
    if array.dtype.kind not in "fiub" or not np.isfinite(array).all():
        raise DataError(f"{what} are {array.dtype} {list(array.shape)}, or not finite", fix="Give finite numbers.")
    return array.astype(np.float32) if array.dtype.kind == "f" else array


def fit_values(source: str, place: FurtherInput, array: Array, count: int) -> Array:
    """Return the values of an input for `count` samples with its type: (count, …).

    Raises:
        DataError: there is another number of values, or they have another type or shape.
    """
    what = f"{source}: the values of the input {place.name}"
    numbers = as_numbers(what, array)
    if numbers.shape != (count, *place.shape):
        raise DataError(
            f"{what} are {list(array.shape)}, and {count} samples need {[count, *place.shape]}",
            fix="Give a value for each sample.",
        )
    return cast_values(what, numbers, place.dtype)


def cast_values(what: str, numbers: Array, dtype: str) -> Array:
    """Return numbers with another type.

    Raises:
        DataError: it cannot hold them.
    """
    converted = numbers.astype(dtype)
    if converted.dtype.kind != "f" and not np.array_equal(converted, numbers):
        raise DataError(f"{what} are {numbers.dtype.name}, and the input takes {dtype}", fix=f"Give {dtype}.")
    return converted


def _read(name: str, spec: InputSpec) -> Array:
    path = expand_home(str(spec.examples))
    array = find_array(spec.array or name, path, read_npz(path, _FIX))
    what = f"the examples of the input {name} in {path}"
    if not array.ndim or not array.size:
        raise DataError(f"{what} are {list(array.shape)}, without an axis of examples, or none", fix=_FIX)
    array = as_numbers(what, array)
    if spec.dtype is not None:
        array = cast_values(what, array, spec.dtype)
    if spec.shape is not None and array.shape[1:] != spec.shape[1:]:
        raise DataError(
            f"{what} have the shape {list(array.shape[1:])} each, and the recipe says {list(spec.shape[1:])}", fix=_FIX
        )
    return array
