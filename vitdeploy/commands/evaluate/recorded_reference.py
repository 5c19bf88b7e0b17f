"""A file with the reference's answers to labelled data, for a comparison on another machine.

A device has no PyTorch. The reference answers on a machine with PyTorch, and the file replaces it on the device, where
the artifact answers the same samples. The file has a digest of every sample's label and pixels, so that a comparison
of different samples is noticed.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from vitdeploy.artifact import Manifest, atomic_file
from vitdeploy.commands.evaluate.parts import SamplePlaces
from vitdeploy.commands.evaluate.units import Unit
from vitdeploy.data.array_files import read_array
from vitdeploy.data.dataset import Dataset, digest_image
from vitdeploy.data.labels import Label
from vitdeploy.errors import DataError, MeasureError
from vitdeploy.frozen import describe_unread
from vitdeploy.limits import MAX_DATA_BYTES
from vitdeploy.session import Array
from vitdeploy.tasks import PerSample, Values, find

SCHEMA = 4
_ABOUT, _ANSWER, _VALUE, _SAMPLE = "about.json", "answer", "value", "sample"
_PLACES = "places"
_FIX = "Make one with `vitdeploy eval DIR --data DATA --save-reference FILE`."


class _Versioned(BaseModel):
    """The schema of a file, read before the fields that depend on it."""

    version: int


class About(BaseModel):
    """The model, the data, the preprocessing and the task of the answers, and the number of samples.

    All but the name of the task are digests. `code` is of what the model computes without its weights; empty if it is
    not known. `options` is of all options of the task.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")
    version: int = SCHEMA
    name: str
    task: str
    options: str
    model: str
    code: str
    preprocess: str
    data: str
    samples: int


_COMPARED = {
    "model": "model", "task": "task", "options": "set of task options", "preprocess": "preprocessing", "data": "data",
}  # fmt: skip
"""Fields of `About` that must be equal, and their names for people."""


def describe_reference(name: str, manifest: Manifest, dataset: Dataset, samples: int) -> About:
    """Return what the answers of the reference of an artifact to a dataset are about."""
    task = find(manifest.recipe.task)
    return About(
        name=name,
        task=task.name,
        options=_digest_json(task.model_dump(mode="json")),
        model=manifest.model.digest,
        code=manifest.model.code,
        preprocess=_digest_json(manifest.preprocess.model_dump(mode="json")),
        data=dataset.digest,
        samples=samples,
    )


class Recorder:
    """Writes answers to a file one by one, so that maps of thousands of images need no memory.

    Use it in a `with` block, at whose end the file is still open.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._zip = zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED)
        self._finite: list[Array] = []
        self._pixels: list[int] = []
        self._labels: list[int] = []
        self._places: list[int] = []

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._zip.close()

    def add(self, unit: Unit, statistics: PerSample) -> None:
        """Add the answers to the samples of a unit."""
        self._places += unit.places
        for image, label, answer in zip(unit.batch.images, unit.batch.labels, statistics.answers, strict=True):
            _write(self._zip, f"{_ANSWER}/{len(self._labels)}", np.asarray(answer))
            self._pixels.append(digest_image(image))
            self._labels.append(_label_digest(label))
        self._finite.append(statistics.finite)

    def finish(self, name: str, manifest: Manifest, dataset: Dataset, values: Values) -> About:
        """Write the statistics of all samples, and return what the answers are about."""
        about = describe_reference(name, manifest, dataset, len(self._labels))
        for key, value in values.items():
            _write(self._zip, f"{_VALUE}/{key}", value)
        samples = {
            "finite": np.concatenate(self._finite),
            "pixels": np.array(self._pixels, np.uint64),
            "labels": np.array(self._labels, np.uint64),
            _PLACES: np.array(self._places, np.uint64),
        }
        for key, value in samples.items():
            _write(self._zip, f"{_SAMPLE}/{key}", value)
        self._zip.writestr(_ABOUT, about.model_dump_json())
        return about


class RecordedReference:
    """A side of the comparison that repeats the answers in a file, in their order.

    Use it in a `with` block. `about` names the model and the data.

    Args:
        path: the file.
        place: the part of the data that is compared; None: all of it.

    Raises:
        DataError: there is no such file, it is not a saved reference, or it has another schema.
    """

    def __init__(self, path: Path, place: SamplePlaces | None = None) -> None:
        try:
            if path.exists() and not path.is_file():
                raise DataError(f"{path} is not a plain file", fix=_FIX)
            self._zip = zipfile.ZipFile(path)
            _check_sizes(self._zip)
            about = self._zip.read(_ABOUT)
            if _Versioned.model_validate_json(about).version != SCHEMA:
                raise DataError(
                    f"{path} was written by another version of vitdeploy", fix="Use the same version on both machines."
                )
            self.about = About.model_validate_json(about)
            names = [name for name in self._zip.namelist() if name.startswith(f"{_VALUE}/")]
            self._values = {name[len(_VALUE) + 1 : -4]: _read(self._zip, name[:-4]) for name in names}
            self._finite, self._pixels, self._labels, self._places = (
                _read(self._zip, f"{_SAMPLE}/{key}") for key in ("finite", "pixels", "labels", _PLACES)
            )
        except FileNotFoundError:
            raise DataError(f"there is no {path}", fix=_FIX) from None
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, ValidationError) as error:
            raise DataError(f"{path} is not a saved reference: {describe_unread(error)}", fix=_FIX) from None
        self._next, self._end = (0, self.about.samples) if place is None else self._find(place)
        self._first = self._next
        self.other_pixels = 0
        """The number of images that have other pixels here than they had for the reference."""
        self.finite: list[Array] = []

    def __enter__(self) -> RecordedReference:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._zip.close()

    def check_about(self, manifest: Manifest, dataset: Dataset) -> None:
        """Check that the answers are of this model, preprocessing, task and dataset.

        Raises:
            MeasureError: one of them is another.
        """
        saved, expected = self.about, describe_reference(self.about.name, manifest, dataset, self.about.samples)
        fix = "Save the reference again, with this artifact and this data."
        for field, name in _COMPARED.items():
            if getattr(saved, field) != getattr(expected, field):
                raise MeasureError(f"the saved reference is of another {name}", fix=fix)
        if saved.code and expected.code and saved.code != expected.code:  # an older artifact does not know it
            raise MeasureError("the saved reference is of another code of the model", fix=fix)

    def answer_unit(self, unit: Unit, size: int) -> PerSample:  # noqa: ARG002  as sides that run
        """Return the answers to the next samples.

        Raises:
            MeasureError: these are other samples than the reference answered, or they are in another order.
        """
        images, labels = unit.batch.images, unit.batch.labels
        span = slice(self._next, self._next + len(labels))
        if [_label_digest(label) for label in labels] != self._labels[span].tolist():
            raise self._other_samples()
        digests = np.array([digest_image(image) for image in images], np.uint64)
        self.other_pixels += int((digests != self._pixels[span]).sum())
        answers = [self.read_answer(number) for number in range(span.start, span.stop)]
        self._next = span.stop
        return PerSample({}, answers, self._finite[span])

    def read_answer(self, number: int) -> Array:
        """Return the answer to a sample."""
        return _read(self._zip, f"{_ANSWER}/{number}")

    def list_arrays(self) -> list[str]:
        """Return the names of the arrays that have a row for each sample."""
        groups = (f"{_VALUE}/", f"{_SAMPLE}/")
        return [name.removesuffix(".npy") for name in self._zip.namelist() if name.startswith(groups)]

    def read_array(self, name: str) -> Array:
        """Return an array with a row for each sample."""
        return _read(self._zip, name)

    def values(self) -> Values:
        """Return the statistics of the samples.

        Raises:
            MeasureError: the file has answers to more samples.
        """
        if self._next != self._end:
            raise self._other_samples()
        return {name: value[self._first : self._end] for name, value in self._values.items()}

    def _find(self, place: SamplePlaces) -> tuple[int, int]:
        """Return the number of the first answer to a part of the data, and of the first after it."""
        start = int(np.searchsorted(self._places, place.start))
        stop = len(self._places) if place.stop is None else int(np.searchsorted(self._places, place.stop))
        return start, stop if place.most is None else min(stop, start + place.most)

    def _other_samples(self) -> MeasureError:
        return MeasureError(
            f"the saved reference answered {self.about.samples} samples, and the samples here are not the same",
            fix="Use the same --limit for both, and data without damaged images.",
        )


def join_references(parts: Sequence[Path], out: Path) -> None:
    """Join the answers to parts of the data, in the order of the data, to one file.

    Raises:
        DataError: a part is no saved reference.
        OSError: `out` cannot be written.
    """
    with ExitStack() as stack:
        opened = [stack.enter_context(RecordedReference(part)) for part in parts]
        temporary = stack.enter_context(atomic_file(out))
        file = stack.enter_context(zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED))
        number = 0
        for part in opened:
            for own in range(part.about.samples):
                _write(file, f"{_ANSWER}/{number}", part.read_answer(own))
                number += 1
        for name in opened[0].list_arrays():
            _write(file, name, np.concatenate([part.read_array(name) for part in opened]))
        file.writestr(_ABOUT, opened[0].about.model_copy(update={"samples": number}).model_dump_json())


def describe_other_pixels(count: int, samples: int) -> str:
    """Return a note if some images had other pixels for a recorded reference; else an empty string."""
    if not count:
        return ""
    return (
        f"{count} of {samples} images have other pixels here than for the saved reference, because another version of "
        "Pillow decodes or scales them; the drop includes this difference"
    )


def _digest_json(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _label_digest(label: Label) -> int:
    """Return a digest of the contents of a label, without the name of its file."""
    if isinstance(label, int):
        return digest_image(np.array(label, np.int64))
    values = [getattr(label, field.name) for field in fields(label) if field.name != "name"]
    # As an array, None would be the address of an object, which is another one in the next process.
    arrays = [np.zeros(0) if value is None else np.asarray(value) for value in values]
    return digest_image(np.array([digest_image(array) for array in arrays], np.uint64))


def _write(file: zipfile.ZipFile, name: str, array: Array) -> None:
    with file.open(f"{name}.npy", "w", force_zip64=True) as member:
        np.lib.format.write_array(member, array, allow_pickle=False)


def _read(file: zipfile.ZipFile, name: str) -> Array:
    """Read an array whose header describes as many bytes as there are.

    Raises:
        DataError: it is damaged.
    """
    entry = file.getinfo(f"{name}.npy")
    with file.open(entry) as member:
        return read_array(Path(str(file.filename)), member, entry.file_size, _FIX)


def _check_sizes(file: zipfile.ZipFile) -> None:
    """Refuse what does not fit into memory: answers are read one by one, all other arrays at once.

    Raises:
        DataError: something is too large.
    """
    limit, together = MAX_DATA_BYTES.value, 0
    for entry in file.infolist():
        single = entry.filename.startswith(f"{_ANSWER}/")
        together += 0 if single else entry.file_size
        if max(together, entry.file_size) > limit:
            raise DataError(f"{file.filename} is larger than {limit:,} bytes once unpacked", fix=MAX_DATA_BYTES.fix)
