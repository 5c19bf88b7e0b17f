"""What a model answered on labelled data, sample by sample, in a file: so that two machines can be compared as a pair.

A device has no PyTorch. The reference answers where PyTorch is, the artifact where it runs, and both files say which
samples they are about: data, labels, and the pixels that each was shown.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitdeploy.artifact import Manifest, atomic_file
from vitdeploy.data.dataset import Dataset
from vitdeploy.errors import ArtifactError, DataError, MeasureError
from vitdeploy.session import Array

SCHEMA = 1
_VALUE = "value."


@dataclass(frozen=True)
class Answers:
    """The answers of one model to n samples.

    Attributes:
        name: of the session, such as "pytorch-fp32".
        task: its kind.
        model: digest of the model's weights.
        data: digest of the dataset.
        skipped: samples that could not be read.
        values: metric -> a number for each sample, shape (n,).
        prediction: what the model said, shape (n, …).
        labels: shape (n,).
        pixels: a digest of the uint8 image of each sample, uint64, shape (n,).
    """

    name: str
    task: str
    model: str
    data: str
    skipped: int
    values: Mapping[str, Array]
    prediction: Array
    labels: Array
    pixels: Array


def pixel_digests(images: Array) -> list[int]:
    """A digest of each image of a batch, 64 bits."""
    return [int.from_bytes(hashlib.blake2b(image.tobytes(), digest_size=8).digest(), "little") for image in images]


def save(path: Path, answers: Answers) -> None:
    """Write the file, whole or not at all.

    Raises:
        ArtifactError: it cannot be written there.
    """
    told = {
        "schema": SCHEMA,
        **{key: getattr(answers, key) for key in ("name", "task", "model", "data", "skipped")},
    }
    values = {f"{_VALUE}{name}": value for name, value in answers.values.items()}
    known = {"prediction": answers.prediction, "labels": answers.labels, "pixels": answers.pixels}
    arrays: dict[str, Any] = {"about": np.array(json.dumps(told)), **known, **values}
    assert not any(array.dtype.hasobject for array in arrays.values()), "nothing is unpickled when it is read"
    try:
        with atomic_file(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)
    except OSError as error:
        raise ArtifactError(
            f"{path} cannot be written: {error.strerror}", fix="Save the reference elsewhere."
        ) from None


def load(path: Path) -> Answers:
    """Read the file.

    Raises:
        DataError: no such file, another form, or another schema.
    """
    fix = "Make one with `vitdeploy eval DIR --data DATA --save-reference FILE`."
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        told = json.loads(str(arrays.pop("about")))
        if told.pop("schema") != SCHEMA:
            raise DataError(f"{path} is of another schema", fix="Use the same version of vitdeploy on both sides.")
        values = {name.removeprefix(_VALUE): arrays.pop(name) for name in list(arrays) if name.startswith(_VALUE)}
        return Answers(**told, **arrays, values=values)
    except FileNotFoundError:
        raise DataError(f"there is no {path}", fix=fix) from None
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise DataError(f"{path} is no saved reference: {str(error).partition(chr(10))[0]}", fix=fix) from None


def check_about(reference: Answers, manifest: Manifest, dataset: Dataset) -> None:
    """Refuse a reference of another model, task or data.

    Raises:
        MeasureError: it is; a paired comparison would compare what does not belong together.
    """
    fix = "Save the reference again, of this artifact and this data."
    for what, known, wanted in (
        ("model", reference.model, manifest.model.digest),
        ("task", reference.task, manifest.recipe.task.kind),
        ("data", reference.data, dataset.digest),
    ):
        if known != wanted:
            raise MeasureError(f"the saved reference is about another {what}", fix=fix)


def check_same_samples(reference: Answers, labels: Array, pixels: Array) -> str:
    """A note when images were decoded differently; nothing when all were shown the same.

    Raises:
        MeasureError: other samples, or in another order.
    """
    if len(labels) != len(reference.labels) or not np.array_equal(labels, reference.labels):
        raise MeasureError(
            f"the saved reference is about {len(reference.labels)} samples, these {len(labels)} are other ones",
            fix="Use the same --limit for both, and data without damaged images.",
        )
    differ = int((pixels != reference.pixels).sum())
    if differ == 0:
        return ""
    return (
        f"{differ} of {len(pixels)} images have other pixels here than the reference was shown: another version of "
        "Pillow decodes or scales them; the drop includes that"
    )
