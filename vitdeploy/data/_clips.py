"""Clips in a folder: one sub-folder per class with a folder of frames for each clip, or (without labels) any clips."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vitdeploy.data._folder import FolderDataset, index_classes, name_classes, refuse_splits
from vitdeploy.data.frames import clip_pixels, find_clips, list_frames, open_frames
from vitdeploy.errors import DataError
from vitdeploy.recipe import Preprocess
from vitdeploy.session import Array

if TYPE_CHECKING:
    from PIL.Image import Image

CLIP_FORMS = (
    "Give a folder with one sub-folder per class, and in it a folder of frames for each clip; or an .npz with clips "
    "(uint8, clips x frames x height x width x 3) and labels."
)


class ClipDataset(FolderDataset["int | None"]):
    """A Dataset over folders of frames, read one at a time. The image of a clip is its first frame."""

    def _list_files(self, path: Path) -> Sequence[Path]:
        return list_frames(path, self._frames)

    def _read(self, path: Path) -> tuple[Image, Array]:
        images = open_frames(path, self._frames)
        return images[0], clip_pixels(images, self._preprocess)

    @property
    def _frames(self) -> int:
        assert self._preprocess.frames is not None
        return self._preprocess.frames


def open_clips(
    spec: str, root: Path, preprocess: Preprocess, names: tuple[str, ...] | None, classes: int | None
) -> ClipDataset:
    """Open the clips below `root`. They have labels if they are in one sub-folder per class.

    Args:
        spec: DATA as the user wrote it.
        root: the folder.
        preprocess: the model's preprocessing, with the number of frames.
        names: the model's class names.
        classes: the number of the model's classes, if it is known.

    Raises:
        DataError: there are no clips, one has too few frames, or there is a class that the model does not have.
    """
    clips = find_clips(root)
    if not clips:
        raise DataError(f"{spec} has no folder with images in it", fix=CLIP_FORMS)
    if any(clip in (root, root / clip.name) for clip in clips):  # not in a folder of their class
        return ClipDataset(
            spec, root, [(clip, None) for clip in clips], preprocess, None, lambda _path, _image, index: index
        )
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    of_class = {folder.name: [clip for clip in clips if folder in clip.parents] for folder in folders}
    refuse_splits(spec, folders, names)
    order, indices = index_classes(spec, of_class, names, classes)
    files = [(clip, indices[name]) for name in indices for clip in of_class[name]]
    known = names if order == "labels" else name_classes(indices)
    return ClipDataset(spec, root, files, preprocess, known, lambda _path, _image, index: index, order)
