"""Images in a folder: one sub-folder per class, or (without labels) any images."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from vitdeploy.data.dataset import Sample, shuffled
from vitdeploy.data.labels import Label
from vitdeploy.data.preprocess import open_image, pixels
from vitdeploy.errors import DataError
from vitdeploy.recipe import Preprocess

if TYPE_CHECKING:
    from PIL.Image import Image

Known = TypeVar("Known")
"""What is known about an image before it is opened: a class, the file of a mask."""

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".gif"}
_DAMAGED_SHARE = 0.01
_HASHED_BYTES = 2 << 30  # beyond, names and sizes stand for the contents: hashing ImageNet takes longer than using it
_CHUNK_BYTES = 1 << 20


class FolderDataset(Generic[Known]):
    """A Dataset over image files, read one at a time.

    Args:
        spec: DATA as the user wrote it.
        root: the folder that all names are relative to.
        files: images, each with what is known about it.
        preprocess: what the model wants.
        classes: class names in the order of the indices.
        label: the label of an opened image, from what is known about it; a label that does not serve is an error.
    """

    def __init__(
        self,
        spec: str,
        root: Path,
        files: Sequence[tuple[Path, Known]],
        preprocess: Preprocess,
        classes: tuple[str, ...] | None,
        label: Callable[[Path, Image, Known], Label | None],
    ) -> None:
        self.spec = spec
        self.labelled = all(known is not None for _, known in files)
        self.classes = classes
        self.skipped: list[str] = []
        self.digest = _digest(root, files)
        self._files = files
        self._preprocess = preprocess
        self._label = label

    def __len__(self) -> int:
        return len(self._files)

    def __iter__(self) -> Iterator[Sample]:
        self.skipped.clear()
        for index in shuffled(len(self)):
            path, known = self._files[index]
            try:
                image = open_image(path)
            except DataError as error:
                self._skip(error)
                continue
            yield Sample(pixels(image, self._preprocess), self._label(path, image, known))

    def _skip(self, error: DataError) -> None:
        self.skipped.append(error.message)
        if len(self.skipped) > max(1, _DAMAGED_SHARE * len(self)):
            raise DataError(
                f"{self.spec}: {len(self.skipped)} of {len(self)} images cannot be read, the last one: {error.message}",
                fix="Replace or remove them.",
            )


def open_folder(
    spec: str, root: Path, preprocess: Preprocess, names: tuple[str, ...] | None
) -> FolderDataset[int | None]:
    """The images below `root`. With one sub-folder per class they have labels, without sub-folders they have none.

    A sub-folder's class is the index of its name among the model's class `names` if all are there; the number, if all
    are numbers; else their order.

    Raises:
        DataError: no images, or a class that the model does not have.
    """
    folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    loose = images_in(p for p in root.iterdir() if p.is_file())
    files: list[tuple[Path, int | None]]
    if folders and not loose:
        indices = _class_indices(spec, [f.name for f in folders], names)
        files = [(path, indices[f.name]) for f in folders for path in images_in(f.rglob("*"))]
        classes = names if names and set(indices) <= set(names) else _names(indices)
    else:
        files = [(path, None) for path in images_in(root.rglob("*"))]
        classes = None
    check_any(spec, files)
    return FolderDataset(spec, root, files, preprocess, classes, lambda _path, _image, known: known)


def check_any(spec: str, files: Sequence[object]) -> None:
    """Raise when there are no images."""
    if not files:
        raise DataError(f"{spec} has no images in it", fix=f"Put images there: {', '.join(sorted(SUFFIXES))}.")


def images_in(paths: Iterator[Path]) -> list[Path]:
    """The image files among `paths`, in a fixed order."""
    return sorted(p for p in paths if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))


def _class_indices(spec: str, folders: list[str], names: tuple[str, ...] | None) -> dict[str, int]:
    if names and len(set(names)) == len(names) and set(folders) <= set(names):
        return {folder: names.index(folder) for folder in folders}
    if all(folder.isdecimal() for folder in folders):
        indices = {folder: int(folder) for folder in folders}
    else:
        indices = {folder: index for index, folder in enumerate(folders)}
    highest = max(indices, key=lambda folder: indices[folder])
    if names and indices[highest] >= len(names):
        raise DataError(
            f"{spec}: class {highest!r} has index {indices[highest]}, the model has {len(names)} classes",
            fix="Name the sub-folders by the model's labels or class indices.",
        )
    return indices


def _names(indices: dict[str, int]) -> tuple[str, ...] | None:
    """The folders' names as class names, if they are all classes from 0 on."""
    by_index = sorted(indices, key=lambda folder: indices[folder])
    return tuple(by_index) if [indices[f] for f in by_index] == list(range(len(by_index))) else None


def _digest(root: Path, files: Sequence[tuple[Path, object]]) -> str:
    """sha256 over names, contents and labels; a label that is a file counts with its contents."""
    sizes = [path.stat().st_size for path, _ in files]
    contents = sum(sizes) < _HASHED_BYTES
    sha = hashlib.sha256()
    for (path, known), size in zip(files, sizes, strict=True):
        label = f"file of {known.stat().st_size}" if isinstance(known, Path) else known
        sha.update(f"{path.relative_to(root).as_posix()}:{size}:{label};".encode(errors="surrogateescape"))
        for file in (path, known) if contents else ():
            if isinstance(file, Path):
                with file.open("rb") as stream:
                    while chunk := stream.read(_CHUNK_BYTES):
                        sha.update(chunk)
    return sha.hexdigest()
