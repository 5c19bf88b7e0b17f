"""Images in a folder: one sub-folder per class, or (without labels) any images."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from vitdeploy.data._digest import MAX_HASHED_BYTES, SampleDigest
from vitdeploy.data.class_names import are_made_up, match
from vitdeploy.data.dataset import Order, Sample, refuse_damage, shuffle
from vitdeploy.data.images import open_image
from vitdeploy.data.labels import Label
from vitdeploy.data.preprocess import to_pixels
from vitdeploy.errors import DataError
from vitdeploy.escaping import replace_undecodable
from vitdeploy.plain_files import open_plain
from vitdeploy.recipe import Preprocess
from vitdeploy.session import Array

if TYPE_CHECKING:
    from PIL.Image import Image

LabelSource = TypeVar("LabelSource")
"""The source of an image's label, available before the image is opened: a class index, or the file of a mask."""

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".gif"}
_CHUNK_BYTES = 1 << 20
_RENAME = (
    "Rename it after the model's label, or name all folders by class index. If the model has other labels, export it "
    "with --labels FILE."
)
SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}


class FolderDataset(Generic[LabelSource]):
    """A Dataset over image files, read one at a time.

    Args:
        spec: DATA as the user wrote it.
        root: the folder that all names are relative to.
        files: images, each with the source of its label, or None.
        preprocess: the model's preprocessing.
        classes: class names in the order of the indices.
        make_label: makes a label from an image's path, the opened image and its label source.
        order: how the classes became indices; see `Dataset`.
    """

    def __init__(
        self,
        spec: str,
        root: Path,
        files: Sequence[tuple[Path, LabelSource]],
        preprocess: Preprocess,
        classes: tuple[str, ...] | None,
        make_label: Callable[[Path, Image, LabelSource], Label | None],
        order: Order = "indices",
    ) -> None:
        self.spec = spec
        self.labelled = all(source is not None for _, source in files)
        self.classes = classes
        self.order = order
        self.skipped: list[str] = []
        self.further: tuple[str, ...] = ()
        self._preprocess = preprocess
        self.digest = _digest(root, [(file, source) for path, source in files for file in self._list_files(path)])
        self._root = root
        self._files = files
        self._make_label = make_label

    def __len__(self) -> int:
        return len(self._files)

    def __iter__(self) -> Iterator[Sample]:
        return self.read()

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[Sample]:
        """Read the samples at these places of the fixed order; see `Dataset`."""
        self.skipped.clear()
        for place, index in enumerate(shuffle(len(self))[start:stop], start):
            path, source = self._files[index]
            try:
                image, pixels = self._read(path)
            except DataError as error:
                self.skipped.append(error.message)
                refuse_damage(self.spec, self.skipped, len(self))
                continue
            name = replace_undecodable(path.relative_to(self._root).as_posix())
            yield Sample(pixels, self._make_label(path, image, source), name, place=place)

    def _list_files(self, path: Path) -> Sequence[Path]:
        """Return the files that a sample is read from."""
        return (path,)

    def _read(self, path: Path) -> tuple[Image, Array]:
        """Return the image of a sample, and its pixels at the model's size.

        Raises:
            DataError: it is damaged.
        """
        image = open_image(path)
        return image, to_pixels(image, self._preprocess)


def open_folder(
    spec: str, root: Path, preprocess: Preprocess, names: tuple[str, ...] | None, classes: int | None = None
) -> FolderDataset[int | None]:
    """Open the images below `root`. They have labels if there is one sub-folder per class.

    If the model has class `names`, each sub-folder with images must have the name of one (see `ClassNames`), or all of
    them are class indices. Without names the order of sub-folders is assumed: alphabetical.

    Args:
        spec: DATA as the user wrote it.
        root: the folder.
        preprocess: the model's preprocessing.
        names: the model's class names.
        classes: the number of the model's classes, if it is known.

    Raises:
        DataError: there are no images, or there is a class that the model does not have.
    """
    folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    loose_images = filter_images(p for p in root.iterdir() if p.is_file())
    if not folders or loose_images:
        loose: list[tuple[Path, int | None]] = [(path, None) for path in filter_images(root.rglob("*"))]
        check_any(spec, loose)
        return FolderDataset(spec, root, loose, preprocess, None, lambda _path, _image, index: index)
    images = {folder.name: filter_images(folder.rglob("*")) for folder in folders}
    check_any(spec, [path for paths in images.values() for path in paths])
    refuse_splits(spec, folders, names)
    order, indices = index_classes(spec, images, names, classes)
    files: list[tuple[Path, int | None]] = [(path, indices[name]) for name in indices for path in images[name]]
    known = names if order == "labels" else name_classes(indices)
    return FolderDataset(spec, root, files, preprocess, known, lambda _path, _image, index: index, order)


def check_any(spec: str, files: Sequence[object]) -> None:
    """Raise a DataError if there are no images."""
    if not files:
        raise DataError(f"{spec} has no images in it", fix=f"Put images there: {', '.join(sorted(SUFFIXES))}.")


def filter_images(paths: Iterator[Path]) -> list[Path]:
    """Return the image files among `paths`, in a fixed order. Folders that are named like images are none."""
    return sorted(p for p in paths if p.suffix.lower() in SUFFIXES and not p.name.startswith(".") and not p.is_dir())


def refuse_splits(spec: str, folders: Sequence[Path], names: tuple[str, ...] | None) -> None:
    """Refuse folders that are parts of a data set, such as train/ and val/, and not classes."""
    parts = [folder.name for folder in folders]
    inner = [folder for folder in folders if any(p.is_dir() for p in folder.iterdir())]
    if {name.casefold() for name in parts} <= SPLITS and inner and not set(parts) <= set(names or ()):
        raise DataError(
            f"{spec} has the folders {', '.join(parts)}, which are parts of a data set and not classes",
            fix=f"Give one of them, such as {Path(spec) / parts[-1]}.",
        )


def index_classes(
    spec: str, images: Mapping[str, Sequence[Path]], names: tuple[str, ...] | None, classes: int | None
) -> tuple[Order, dict[str, int]]:
    """Return how sub-folders became class indices, and the index of each. Folders without images are left out."""
    filled = [name for name, paths in images.items() if paths]
    if names is not None and not are_made_up(names):
        if not all(name.isdecimal() for name in filled) or set(filled) <= set(names):
            return "labels", match(f"{spec}: folder", filled, names, _RENAME)
        classes = len(names)
    if all(name.isdecimal() for name in filled):
        indices = {name: int(name) for name in filled}
        highest = max(indices, key=lambda name: indices[name])
        if classes is not None and indices[highest] >= classes:
            raise DataError(
                f"{spec}: class {highest!r} has index {indices[highest]}, but the model has {classes} classes",
                fix="Name the sub-folders after the model's labels, or after class indices.",
            )
        return "indices", indices
    classes = len(names) if classes is None and names is not None else classes
    if classes is not None and len(images) != classes:
        raise DataError(
            f"{spec} has {len(images)} folders, and the model has {classes} classes without names: which folder is "
            "which class is not known",
            fix="Name the folders by class index, 0, 1, 2, …; or export the model with --labels FILE.",
        )
    return "alphabet", {name: index for index, name in enumerate(images) if images[name]}


def name_classes(indices: dict[str, int]) -> tuple[str, ...] | None:
    """The names of the folders as class names, if their indices are 0, 1, 2, … without a gap."""
    by_index = sorted(indices, key=lambda folder: indices[folder])
    return tuple(by_index) if [indices[f] for f in by_index] == list(range(len(by_index))) else None


def _digest(root: Path, files: Sequence[tuple[Path, object]]) -> str:
    """sha256 of names, contents and labels. A label that is a file counts with its contents."""
    sizes = [_plain_size(path) for path, _ in files]
    hash_contents = sum(sizes) < MAX_HASHED_BYTES
    digest = SampleDigest()
    for (path, source), size in zip(files, sizes, strict=True):
        label = f"file of {_plain_size(source)}" if isinstance(source, Path) else source
        contents = (file for file in (path, source) if isinstance(file, Path)) if hash_contents else ()
        digest.add(path.relative_to(root).as_posix(), size, label, chain.from_iterable(map(_read_pieces, contents)))
    return digest.hexdigest()


def _read_pieces(path: Path) -> Iterator[bytes]:
    with open_plain(path) as stream:
        while piece := stream.read(_CHUNK_BYTES):
            yield piece


def _plain_size(path: Path) -> int:
    """Return the size of a plain file in bytes. Anything else, such as a pipe, could block whoever opens it.

    Raises:
        DataError: it is not a plain file, or it is a link to nothing.
    """
    try:
        facts = path.stat()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}", fix="Replace or remove it.") from None
    if not stat.S_ISREG(facts.st_mode):
        raise DataError(f"{path} is not a plain file", fix="Replace or remove it.")
    return facts.st_size
