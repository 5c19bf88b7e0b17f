"""Clips: the frames that a model takes together, chosen evenly from those that there are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vitdeploy.data.image_files import (
    VIDEO_SUFFIXES,
    is_pattern,
    list_images,
    match_glob,
    natural_key,
    suggest_frames,
)
from vitdeploy.data.images import open_image
from vitdeploy.data.preprocess import to_pixels
from vitdeploy.errors import DataError
from vitdeploy.plain_files import expand_home
from vitdeploy.recipe import Preprocess
from vitdeploy.session import Array

if TYPE_CHECKING:
    from PIL.Image import Image


def choose_frames(count: int, frames: int) -> list[int]:
    """Return which `frames` of `count` frames a clip consists of: evenly spread, from the first one on.

    Frame i of the clip is number floor(i * count / frames), as the video processors of transformers choose them
    (`default_sample_indices_fn`).
    """
    return [number * count // frames for number in range(frames)]


def check_frames(name: str, count: int, frames: int) -> None:
    """Refuse a clip with fewer frames than the model takes.

    Raises:
        DataError: it has too few.
    """
    if count < frames:
        raise DataError(
            f"{name} has {count} frame{'s' * (count != 1)}, and the model takes clips of {frames}",
            fix=f"Give {frames} frames or more. Of more, {frames} are chosen evenly.",
        )


def clip_pixels(frames: Sequence[Image | Array], preprocess: Preprocess) -> Array:
    """Bring all frames of a clip to the model's size: uint8 (frames, planes, height, width); see `to_pixels`."""
    return np.stack([to_pixels(frame, preprocess) for frame in frames])


def middle_frame(pixels: Array) -> Array:
    """Return the frame in the middle of a clip (frames, planes, height, width); an image as it is."""
    return pixels[len(pixels) // 2] if pixels.ndim == 4 else pixels


def list_frames(folder: Path, frames: int) -> list[Path]:
    """Return the files of a clip's frames: `frames` of the images in a folder, in the order of their numbers.

    Raises:
        DataError: there are too few.
    """
    files = list_images(folder)
    check_frames(str(folder), len(files), frames)
    return [files[number] for number in choose_frames(len(files), frames)]


def open_frames(folder: Path, frames: int) -> list[Image]:
    """Open the frames of a clip.

    Raises:
        DataError: there are too few, or one is damaged.
    """
    return [open_image(file) for file in list_frames(folder, frames)]


def choose_from_array(name: str, clip: Array, frames: int) -> Array:
    """Return the frames of a clip that is an array (frames, height, width[, channels]).

    Raises:
        DataError: there are too few.
    """
    check_frames(name, len(clip), frames)
    return clip[choose_frames(len(clip), frames)]


def find_clip_folders(given: str | Path, frames: int) -> list[Path]:
    """Return the clips that a folder or a glob names: folders of frames.

    A folder with images in it is one clip, another one stands for all clips below it. A glob stands for the folders
    that it matches.

    Raises:
        DataError: there is no such folder, it is a file, or it has no images.
    """
    path = expand_home(str(given))
    takes, fix = f"the model takes clips of {frames} frames", "Give a folder of frames for each clip."
    if path.is_file():
        is_video = path.suffix.lower() in VIDEO_SUFFIXES
        message = f"{path} is {'a video' if is_video else 'one file'}, and {takes}"
        raise DataError(message, fix=suggest_frames(path) if is_video else fix)
    folders = [path] if path.is_dir() else [m for m in match_glob(path) if m.is_dir()] if is_pattern(path) else []
    if not folders:
        raise DataError(f"there is no folder {path}, and {takes}", fix=fix)
    clips = [clip for folder in folders for clip in ([folder] if list_images(folder) else find_clips(folder))]
    if not clips:
        raise DataError(f"{path} has no images in it, and {takes}", fix=fix)
    return sorted(dict.fromkeys(clips), key=natural_key)


def find_clips(folder: Path) -> list[Path]:
    """Return the folders with images directly in them: the given one, and all below it, in natural order.

    Hidden folders do not count, nor do links to folders.
    """
    clips: list[Path] = []
    folders = [folder]
    while folders:
        current = folders.pop()
        if list_images(current):
            clips.append(current)
        inner = (path for path in current.iterdir() if path.is_dir() and not path.is_symlink())
        folders += [path for path in inner if not path.name.startswith(".")]
    return sorted(clips, key=natural_key)
