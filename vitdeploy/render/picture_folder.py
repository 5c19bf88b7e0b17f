"""A folder of answers: a picture or a vector for each image, under names that stay inside of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vitdeploy.artifact import MANIFEST, atomic_file
from vitdeploy.artifact.layout import FAMILY
from vitdeploy.errors import UsageError
from vitdeploy.escaping import is_shown
from vitdeploy.session import Array

if TYPE_CHECKING:
    from PIL.Image import Image

_RESERVED = r'/\:*?"<>|'  # no file has them in its name on some system
_MAX_LETTERS = 48  # a letter takes up to 4 bytes, and a name up to 255; a temporary name needs 40 more
_COMPRESSION = 3  # of 9: three times as fast as Pillow's default, and files that are 10 % larger
_PICTURE, _VECTOR = ".png", ".npy"
_ELSEWHERE = "Choose another folder with --save."


class PictureFolder:
    """Files in one folder, each written whole or not at all.

    A file in the folder is replaced only if it has the name of a picture that is written.

    Args:
        folder: made if it does not exist.
        images: the names of all images, in order. Each gives its file the name: `a/cat.jpg` gives `cat.png` or
            `cat.npy`, and a second cat `cat-2.png`.
        artifact: the folder of the artifact, which must stay as it is.

    Raises:
        UsageError: the folder cannot be made, it is an artifact, or a picture would replace one of the images.
    """

    def __init__(self, folder: Path, images: Sequence[str], artifact: Path) -> None:
        self.folder = folder
        self._names = make_names(images)
        place, source = _resolve(folder), _resolve(artifact)
        if place == source or source in place.parents or any((folder / name).exists() for name in (MANIFEST, FAMILY)):
            raise UsageError(f"--save {folder} is in an artifact", fix="Choose a folder outside of it.")
        sources = {_resolve(Path(image)): image for image in images}
        for path in (_resolve(folder / (name + suffix)) for name in self._names for suffix in (_PICTURE, _VECTOR)):
            if path in sources:
                raise UsageError(f"--save {folder} would replace the image {sources[path]}", fix=_ELSEWHERE)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = "it is a file" if isinstance(error, FileExistsError) else error.strerror
            raise UsageError(f"--save {folder} cannot be made: {reason}", fix=_ELSEWHERE) from None

    def write_picture(self, number: int, picture: Image) -> Path:
        """Write the picture of image `number` as PNG, and return its path.

        Raises:
            UsageError: it cannot be written.
        """
        return self._write(number, _PICTURE, lambda path: picture.save(path, "PNG", compress_level=_COMPRESSION))

    def write_vector(self, number: int, vector: Array) -> Path:
        """Write the vector of image `number` as .npy, and return its path.

        Raises:
            UsageError: it cannot be written.
        """

        def save(path: Path) -> None:
            with path.open("wb") as file:
                np.save(file, vector, allow_pickle=False)

        return self._write(number, _VECTOR, save)

    def _write(self, number: int, suffix: str, save: Callable[[Path], None]) -> Path:
        path = self.folder / (self._names[number] + suffix)
        try:
            with atomic_file(path) as temporary:
                save(temporary)
        except OSError as error:
            reason = error.strerror or error
            raise UsageError(f"{path} cannot be written: {reason}", fix="Check the disk and its permissions.") from None
        return path


def make_names(images: Sequence[str]) -> list[str]:
    """Return a name for the file of each image: its own without suffix, made safe, numbered where there are several.

    Upper and lower case count as equal, because some file systems take them for one name.
    """
    used: set[str] = set()
    numbers: dict[str, int] = {}
    names = []
    for image in images:
        letters = (c if is_shown(c) and c not in _RESERVED else "_" for c in Path(image).stem[:_MAX_LETTERS])
        stem = "".join(letters).strip(" .-") or "image"
        candidate, key = stem, stem.casefold()
        while candidate.casefold() in used:
            numbers[key] = numbers.get(key, 1) + 1
            candidate = f"{stem}-{numbers[key]}"
        used.add(candidate.casefold())
        names.append(candidate)
    return names


def _resolve(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError):  # a loop of links, or a name that no file can have
        return path.absolute()
