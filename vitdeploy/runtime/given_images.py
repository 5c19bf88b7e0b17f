"""The images and clips that a caller gives: files, folders, globs, arrays and Pillow images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Union

import numpy as np

from vitdeploy import artifact as artifacts
from vitdeploy.data.frames import check_frames, choose_frames, find_clip_folders, open_frames
from vitdeploy.data.image_files import find_images
from vitdeploy.data.images import open_image
from vitdeploy.data.preprocess import as_image
from vitdeploy.errors import ArtifactError, DataError
from vitdeploy.escaping import replace_undecodable
from vitdeploy.session import Array

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

Image = Union[str, Path, Array, "PILImage", tuple["Array | PILImage", ...]]
"""A file, a folder of images, a glob, a uint8 array (H, W) or (H, W, 3), or a Pillow image. For a model of clips: a
folder of frames, a uint8 array (frames, H, W[, 3]), or a tuple of frames."""

_CHANNELS = (1, 3)


def read_frames(folder: Path) -> int | None:
    """Return the number of frames that an artifact takes; None for single images, and for a folder that is damaged.

    It reads the manifest alone: what is wrong with the folder, opening it says.
    """
    try:
        return artifacts.load(folder, verify=False).manifest.preprocess.frames
    except ArtifactError:
        return None


def list_sources(images: Image | Sequence[Image], frames: int | None = None) -> list[Image]:
    """Return one or several images as a list, in which the files of folders and globs take their place.

    Args:
        images: the images.
        frames: the number of frames, for a model of clips: folders stand for clips then.

    Raises:
        DataError: a file is missing or a video, or a folder or glob has no image.
    """
    from PIL.Image import Image as PILImage

    if isinstance(images, (str, Path)):
        return list(find_images(images) if frames is None else find_clip_folders(images, frames))
    if isinstance(images, (np.ndarray, PILImage)):
        return [images]
    if frames is not None and images and all(_is_frame(image) for image in images):
        return [tuple(images)]  # type: ignore[arg-type]  # `_is_frame` says that each is an array or a Pillow image
    return [source for image in images for source in list_sources(image, frames)]


def open_sample(source: Image, frames: int | None) -> list[PILImage]:
    """Open an image, or the frames of a clip, evenly chosen.

    Raises:
        DataError: it is damaged, not an image, or a clip with too few frames.
    """
    if frames is None:
        return [_open(source)]
    if isinstance(source, (str, Path)):
        return open_frames(Path(source), frames)
    given: list[Image] = [source]
    if isinstance(source, tuple) or (isinstance(source, np.ndarray) and not _is_frame(source)):
        given = list(source)
    check_frames(name_source(source), len(given), frames)
    return [_open(given[number]) for number in choose_frames(len(given), frames)]


def name_source(source: Image) -> str:
    """Return what answers and messages call an image: its path, "array", "image" or "frames"."""
    if isinstance(source, (np.ndarray, tuple)):
        return "array" if isinstance(source, np.ndarray) else "frames"
    if isinstance(source, (str, Path)):
        return replace_undecodable(str(source))
    return replace_undecodable(str(getattr(source, "filename", "") or "image"))


def _is_frame(image: object) -> bool:
    """Return True for one image: a Pillow image, or an array (height, width) or (height, width, 1 or 3)."""
    from PIL.Image import Image as PILImage

    if isinstance(image, np.ndarray):
        return image.ndim == 2 or (image.ndim == 3 and image.shape[2] in _CHANNELS)
    return isinstance(image, PILImage)


def _open(source: Image) -> PILImage:
    if isinstance(source, np.ndarray):
        return as_image(source)
    if isinstance(source, (str, Path)):
        return open_image(Path(source))
    if isinstance(source, tuple):
        raise DataError("a tuple of frames is not one image", fix="Give one image, or several in a list.")
    try:
        source.load()
    except OSError as error:
        raise DataError(f"{name_source(source)} is damaged: {error}", fix="Replace the file.") from None
    return source
