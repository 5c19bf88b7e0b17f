"""Images in `.tar` shards, in the form of WebDataset: files with one base name are one sample, `1.jpg` and `1.cls`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from vitdeploy.data._digest import SampleDigest
from vitdeploy.data._encoded import EncodedDataset, match_labels
from vitdeploy.data._folder import SUFFIXES
from vitdeploy.data._tar_index import Member, list_members
from vitdeploy.data.dataset import Order
from vitdeploy.errors import DataError
from vitdeploy.limits import MAX_IMAGE_BYTES
from vitdeploy.plain_files import open_plain
from vitdeploy.recipe import Preprocess
from vitdeploy.session import Array

_CLASS, _JSON = "cls", "json"
_LABEL_KEYS = ("label", "cls")
_MAX_LABEL_BYTES = 1 << 20
_PIECE_BYTES = 1 << 20
_DIGITS = 9
_RENAME = "Give each sample a name of its own."
_FIX = "Put a file KEY.cls with a class index beside each KEY.jpg, or a KEY.json with a label."


@dataclass
class _Sample:
    """A sample in a shard: its key, its image, its label, and the extensions of all of its files."""

    shard: int
    key: str
    image: Member | None = None
    label: int | None = None
    class_file: Member | None = None
    json_file: Member | None = None
    extensions: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Image:
    """The place of an image: the number of its shard, and the file in it."""

    shard: int
    member: Member


class TarDataset(EncodedDataset):
    """A Dataset over the images in uncompressed tars, each read by its place."""

    def __init__(
        self,
        spec: str,
        shards: Sequence[Path],
        images: Sequence[_Image],
        labels: Array | None,
        preprocess: Preprocess,
        classes: tuple[str, ...] | None,
        order: Order,
        digest: str,
    ) -> None:
        names = [image.member.name for image in images]
        if len(set(names)) < len(names):
            prefixes = _name_shards(shards)
            names = [f"{prefixes[image.shard]}/{image.member.name}" for image in images]
        super().__init__(spec, names, labels, preprocess, classes, order, digest)
        self._shards = shards
        self._images = images

    def _read_contents(self, indices: Sequence[int]) -> Iterator[bytes | DataError]:
        for index in indices:
            image = self._images[index]
            if image.member.size > MAX_IMAGE_BYTES.value:
                message = f"{self._describe_place(index)} has {image.member.size:,} bytes"
                yield DataError(message, fix=MAX_IMAGE_BYTES.fix)
                continue
            with open_plain(self._shards[image.shard]) as file:
                yield _read(file, image.member)

    def _describe_place(self, index: int) -> str:
        image = self._images[index]
        return f"{self._shards[image.shard]}: {image.member.name}"


def open_shards(
    spec: str,
    shards: Sequence[Path],
    preprocess: Preprocess,
    names: tuple[str, ...] | None,
    classes: int | None,
    *,
    need_labels: bool,
) -> TarDataset:
    """Open the images in `.tar` shards. The order of the data is that of the shards, and of the files in them.

    Args:
        spec: DATA as the user wrote it.
        shards: the files.
        preprocess: the model's preprocessing.
        names: the model's class names.
        classes: the number of the model's classes, if it is known.
        need_labels: True if a sample without a label is an error.

    Raises:
        DataError: a shard is damaged or has no images, two files have one key, or a label is missing or wrong.
    """
    images: list[_Image] = []
    stored: list[int | None] = []
    for number, shard in enumerate(shards):
        before = len(images)
        for sample in _list_samples(number, shard, need_labels=need_labels):
            if sample.image is None:
                if sample.class_file is not None:
                    extensions = ", ".join(sample.extensions)
                    raise DataError(f"{shard}: the sample {sample.key} has no image, but {extensions}", fix=_FIX)
                continue  # a note beside the samples
            if need_labels and sample.label is None:
                raise DataError(f"{shard}: the sample {sample.key} has no label", fix=_FIX)
            images.append(_Image(number, sample.image))
            stored.append(sample.label)
        if len(images) == before:
            raise DataError(f"{shard} has no images in it", fix=f"Put images there: {', '.join(sorted(SUFFIXES))}.")
    labels: Array | None = None
    order: Order = "indices"
    known = [label for label in stored if label is not None]
    if len(known) == len(stored):
        order, labels, _ = match_labels(spec, np.array(known, np.int64), None, names, classes)
    digest = _digest(shards, images, [None] * len(images) if labels is None else labels.tolist())
    return TarDataset(spec, shards, images, labels, preprocess, None, order, digest)


def _name_shards(shards: Sequence[Path]) -> list[str]:
    """Return the path of each shard below the folder that all have in common."""
    paths = [shard.absolute() for shard in shards]
    common = os.path.commonpath([path.parent for path in paths])
    return [path.relative_to(common).as_posix() for path in paths]


def _list_samples(number: int, shard: Path, *, need_labels: bool) -> Iterator[_Sample]:
    """Yield the samples of a shard: neighbouring files whose path is the same up to the first dot of the name.

    Raises:
        DataError: two samples or two images have one key, or a label is wrong and labels are needed.
    """
    with open_plain(shard) as file:
        current: _Sample | None = None
        keys: set[str] = set()
        for member in list_members(shard, file):
            folder, _, base = member.name.rpartition("/")
            stem, _, extension = base.partition(".")
            if not stem:  # a hidden file
                continue
            key = f"{folder}/{stem}" if folder else stem
            if current is None or key != current.key:
                if current is not None:
                    yield _label(current, shard, file, need_labels=need_labels)
                if key in keys:
                    raise DataError(
                        f"{shard}: two samples have the key {key}", fix="Give each sample a name of its own."
                    )
                keys.add(key)
                current = _Sample(number, key)
            _add(current, member, extension.lower(), shard)
        if current is not None:
            yield _label(current, shard, file, need_labels=need_labels)


def _add(sample: _Sample, member: Member, extension: str, shard: Path) -> None:
    """Add a file to its sample."""
    is_image = f".{extension}" in SUFFIXES
    if extension in sample.extensions or (is_image and sample.image is not None):
        other = sample.image.name if is_image and sample.image is not None else f"another .{extension}"
        raise DataError(f"{shard}: {member.name} and {other} have the key {sample.key}", fix=_RENAME)
    sample.extensions += (extension,)
    if is_image:
        sample.image = member
    elif extension == _CLASS:
        sample.class_file = member
    elif extension == _JSON:
        sample.json_file = member


def _label(sample: _Sample, shard: Path, file: BinaryIO, *, need_labels: bool) -> _Sample:
    """Read the label of a whole sample. A `.cls` wins over a label in a `.json`.

    Raises:
        DataError: it is wrong, and labels are needed.
    """
    member = sample.class_file or sample.json_file
    if member is None:
        return sample
    parse = _parse_index if sample.class_file is not None else _parse_json
    try:
        sample.label = parse(f"{shard}: {member.name}", _read_label(shard, file, member))
    except DataError:
        if need_labels:
            raise
    return sample


def _read_label(shard: Path, file: BinaryIO, member: Member) -> bytes:
    if member.size > _MAX_LABEL_BYTES:
        raise DataError(f"{shard}: {member.name} has {member.size:,} bytes, too many for a label", fix=_FIX)
    return _read(file, member).strip()


def _parse_index(where: str, text: bytes) -> int:
    if not text.isdigit() or len(text) > _DIGITS:
        raise DataError(f"{where} is {text[:20].decode(errors='replace')!r}, not a class index", fix=_FIX)
    return int(text)


def _parse_json(where: str, text: bytes) -> int | None:
    """Return the label in a `.json`; None if it has none."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        raise DataError(f"{where} is not readable JSON", fix=_FIX) from None
    values = [content[key] for key in _LABEL_KEYS if key in content] if isinstance(content, dict) else []
    if not values or values[0] is None:
        return None
    if isinstance(values[0], bool) or not isinstance(values[0], int):
        raise DataError(f"{where} has the label {str(values[0])[:20]!r}, not a class index", fix=_FIX)
    return _parse_index(where, str(values[0]).encode())


def _read(file: BinaryIO, member: Member) -> bytes:
    file.seek(member.offset)
    return file.read(member.size)


def _digest(shards: Sequence[Path], images: Sequence[_Image], labels: Sequence[int | None]) -> str:
    """Return the digest of a folder with the same images, names and labels."""
    digest = SampleDigest()
    for image, label in zip(images, labels, strict=True):
        digest.add(image.member.name, image.member.size, label, _read_pieces(shards[image.shard], image.member))
    return digest.hexdigest()


def _read_pieces(shard: Path, member: Member) -> Iterator[bytes]:
    with open_plain(shard) as file:
        file.seek(member.offset)
        left = member.size
        while left > 0 and (piece := file.read(min(left, _PIECE_BYTES))):
            left -= len(piece)
            yield piece
