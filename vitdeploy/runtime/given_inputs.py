"""The values that a caller gives for the inputs beside the image."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from vitdeploy.artifact import Artifact
from vitdeploy.data.array_files import read_npz
from vitdeploy.data.example_inputs import FurtherInput, as_numbers, cast_values, find_array
from vitdeploy.data.frames import clip_pixels
from vitdeploy.data.preprocess import normalize
from vitdeploy.errors import DataError
from vitdeploy.plain_files import expand_home
from vitdeploy.plugins import did_you_mean
from vitdeploy.recipe import Preprocess
from vitdeploy.runtime.artifact_session import describe_input, open_inputs
from vitdeploy.runtime.given_images import list_sources, open_sample
from vitdeploy.session import Array

_FORMS = "NAME=VALUE, or NAME=FILE.npz with a value for each image"


def read_given(artifact: Artifact, given: Mapping[str, object], count: int) -> dict[str, Array]:
    """Return the values of the inputs beside the image for `count` images: (count, …) by name.

    Args:
        artifact: the artifact.
        given: a value for each input: numbers, lists of numbers, an array, or a file `.npz`. It is one for all images,
            or one for each. For an input of the image's shape also image files, folders and globs.
        count: the number of images.

    Raises:
        DataError: an input is missing, is unknown, or its value has another type or shape.
    """
    places = {spec.name: describe_input(spec) for spec in open_inputs(artifact.manifest)}
    for name in given:
        if name not in places:
            known = ", ".join(places) or "none beside the image"
            raise DataError(
                f"{artifact.path} has no input {name!r}{did_you_mean(name, list(places))}", fix=f"It has: {known}."
            )
    if missing := [_describe(place) for name, place in places.items() if name not in given]:
        is_one = len(missing) == 1
        raise DataError(
            f"{artifact.path} takes {' and '.join(missing)} beside the image, which {'is' if is_one else 'are'} not "
            "given",
            fix=f"Give --input {_FORMS}.",
        )
    preprocess = artifact.manifest.preprocess
    return {name: _read(place, given[name], count, preprocess) for name, place in places.items()}


def _describe(place: FurtherInput) -> str:
    return f"{place.name} ({place.dtype}, {list(place.shape)})"


def _read_images(place: FurtherInput, images: str | Path, count: int, preprocess: Preprocess) -> Array:
    """Return images or clips for another input, prepared as those of the first: one for all, or one for each."""
    sources = list_sources(images, preprocess.frames)
    if len(sources) not in (1, count):
        raise DataError(
            f"--input {place.name}={images} has {len(sources)} {preprocess.sample_word}s, for {count} to answer",
            fix="Give one for all, or one for each, in the same order.",
        )
    pixels = [clip_pixels(open_sample(source, preprocess.frames), preprocess) for source in sources]
    values = np.stack([normalize(each if preprocess.frames else each[0], preprocess) for each in pixels])
    return np.broadcast_to(values, (count, *place.shape))


def _read(place: FurtherInput, value: object, count: int, preprocess: Preprocess) -> Array:
    what = f"the values of the input {place.name}"
    if isinstance(value, (str, Path)):
        path = expand_home(str(value))
        if path.suffix.lower() != ".npz" and place.takes_images(preprocess):
            return _read_images(place, value, count, preprocess)
        if path.suffix.lower() != ".npz":
            raise DataError(f"--input {place.name}={value} is neither numbers nor a file .npz", fix=f"Give {_FORMS}.")
        array = find_array(place.name, path, read_npz(path, f"Give {_FORMS}."), f"Give {_FORMS}.")
    else:
        try:
            array = np.asarray(value)
        except (ValueError, OverflowError):  # rows of different lengths; an integer beyond 64 bits
            array = np.empty(0, object)
    numbers = cast_values(what, as_numbers(what, array), place.dtype)
    if numbers.shape == place.shape:
        return np.broadcast_to(numbers, (count, *place.shape))
    if numbers.shape == (1, *place.shape):
        return np.broadcast_to(numbers[0], (count, *place.shape))
    if numbers.shape != (count, *place.shape):
        raise DataError(
            f"{what} have the shape {list(numbers.shape)}, and {count} image{'s' * (count != 1)} need "
            f"{list(place.shape)} for all, or {[count, *place.shape]}",
            fix=f"Give {_FORMS}.",
        )
    return numbers
