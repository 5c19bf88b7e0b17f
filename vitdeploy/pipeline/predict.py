"""Run an artifact on images, with the model's own preprocessing and labels."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel, ConfigDict

from vitdeploy import artifact as artifacts
from vitdeploy.data.preprocess import fed, open_image, pixels
from vitdeploy.errors import DataError, UsageError
from vitdeploy.pipeline.prove import open_session
from vitdeploy.session import Array

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

Image = str | Path | Array
_TOP = 5


class Guess(BaseModel):
    """A class with its probability (softmax of the logits)."""

    model_config = ConfigDict(frozen=True)
    index: int
    label: str
    probability: float


class Prediction(BaseModel):
    """The best classes for one image, best first."""

    model_config = ConfigDict(frozen=True)
    image: str
    top: tuple[Guess, ...]


class Deployed(AbstractContextManager["Deployed"]):
    """An opened artifact. Close it, or use it in a `with` block.

    Raises:
        ArtifactError: the folder is damaged.
        TargetUnavailable: it cannot run on this machine.
    """

    def __init__(self, path: str | Path, *, threads: int | None = None) -> None:
        self.artifact = artifacts.load(Path(path))
        self._session = open_session(self.artifact, threads)

    def run(self, images: Array) -> dict[str, Array]:
        """Outputs by name for NCHW `images` in the form that the artifact takes (`target.input` of its recipe).

        The batch must be one that the artifact serves.
        """
        return self._session.run({self.artifact.manifest.inputs[0].name: images})

    def predict(self, images: Image | Sequence[Image]) -> list[Prediction]:
        """The best classes of image files or (H, W, C) uint8 arrays.

        Raises:
            DataError: a file is no image, or is a folder.
            UsageError: the model is no classifier.
        """
        several = [images] if isinstance(images, (str, Path, np.ndarray)) else list(images)
        return [self._predict(image) for image in several]

    def close(self) -> None:
        """Free the engine."""
        self._session.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def _predict(self, image: Image) -> Prediction:
        manifest = self.artifact.manifest
        raw = image if isinstance(image, np.ndarray) else _opened(Path(image))
        batch = manifest.recipe.target.batch.min
        images = np.repeat(pixels(raw, manifest.preprocess)[None], batch, axis=0)
        outputs = self.run(fed(images, manifest.preprocess, manifest.recipe.target.input))
        logits = next((value[0] for value in outputs.values() if value.ndim == 2), None)
        if logits is None:
            shapes = ", ".join(f"{name} {value.shape}" for name, value in outputs.items())
            raise UsageError(
                f"the model gives {shapes}: it is no classifier", fix="Use vitdeploy.load(DIR).run(array)."
            )
        exponentials = np.exp(logits.astype(np.float64) - logits.max())
        probabilities = exponentials / exponentials.sum()
        best = np.argsort(-probabilities, kind="stable")[:_TOP]
        labels = manifest.labels
        top = tuple(
            Guess(
                index=int(i),
                label=labels[i] if labels is not None and i < len(labels) else str(i),
                probability=float(probabilities[i]),
            )
            for i in best
        )
        return Prediction(image="array" if isinstance(image, np.ndarray) else str(image), top=top)


def _opened(path: Path) -> PILImage:
    if path.is_dir():
        raise DataError(f"{path} is a folder, not an image", fix=f"Name its files: {path}/*")
    return open_image(path)
