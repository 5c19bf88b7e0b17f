"""`vitdeploy predict`: run an artifact on images, with the model's preprocessing and labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import ConfigDict

from vitdeploy import artifact as artifacts
from vitdeploy import tasks
from vitdeploy.data.geometry import is_padded, visible_area
from vitdeploy.data.images import open_image
from vitdeploy.data.preprocess import as_image, to_input, to_pixels, upright_size
from vitdeploy.errors import DataError
from vitdeploy.escaping import replace_undecodable
from vitdeploy.evidence.predictions import Answer
from vitdeploy.evidence.predictions import Guess as Guess
from vitdeploy.runtime.artifact_session import open_session
from vitdeploy.session import Array, Closing, is_finite

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

Image = str | Path | Array


class Prediction(Answer):
    """The model's answer to one image. `task` decides which fields are filled."""

    model_config = ConfigDict(frozen=True, extra="allow")
    image: str
    task: str


class Deployed(Closing):
    """An open artifact. Close it, or use it in a `with` block.

    Many threads may use it at the same time, and each gets the answers to its own images. On OpenVINO and ONNX Runtime
    their runs overlap. On TensorRT they take turns. After `close()` a call raises UsageError; runs that are under way
    still return their answers.

    Raises:
        ArtifactError: the folder is damaged.
        TargetUnavailable: it cannot run on this machine.
    """

    def __init__(self, path: str | Path, *, threads: int | None = None) -> None:
        self.artifact = artifacts.load(Path(path))
        self._session = open_session(self.artifact, threads)

    def run(self, images: Array) -> dict[str, Array]:
        """Run NCHW images in the form that the artifact takes (`target.input` of its recipe), and return the outputs.

        The artifact must accept the batch size.
        """
        return self._session.run({self.artifact.manifest.inputs[0].name: images})

    def predict(self, images: Image | Sequence[Image]) -> list[Prediction]:
        """Return the model's answers to image files or (H, W, C) uint8 arrays.

        Raises:
            DataError: a file is not an image, or the model's outputs are not those of its task.
        """
        sequence = [images] if isinstance(images, (str, Path, np.ndarray)) else list(images)
        return [self._predict(image) for image in sequence]

    def close(self) -> None:
        """Free the engine."""
        self._session.close()

    def _predict(self, image: Image) -> Prediction:
        manifest = self.artifact.manifest
        raw = as_image(image) if isinstance(image, np.ndarray) else _open(Path(image))
        batch = manifest.recipe.target.batch.min
        images = np.repeat(to_pixels(raw, manifest.preprocess)[None], batch, axis=0)
        results = self.run(to_input(images, manifest.preprocess, manifest.recipe.target.input))
        task = tasks.find(manifest.recipe.task)
        outputs = task.select_outputs(tasks.find_batched(results, batch))
        name = "array" if isinstance(image, np.ndarray) else replace_undecodable(str(image))
        if not is_finite(outputs):
            raise DataError(
                f"{name}: the model gives NaN or infinity",
                fix="Export it in a precision with a larger range, such as fp32.",
            )
        picture = upright_size(raw)
        view = visible_area(*picture, manifest.preprocess)
        padded = {"picture": picture} if is_padded(*picture, manifest.preprocess) else {}
        answer = task.describe(outputs, manifest.labels, view, **padded)
        return Prediction(image=name, task=task.name, **dict(answer))


def _open(path: Path) -> PILImage:
    if path.is_dir():
        raise DataError(f"{path} is a folder, not an image", fix=f"Give its files: {path}/*")
    return open_image(path)
