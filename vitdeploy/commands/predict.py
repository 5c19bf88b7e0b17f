"""`vitdeploy predict`: run an artifact on images, and go on where one is damaged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from vitdeploy.errors import DataError
from vitdeploy.evidence.predictions import Guess as Guess
from vitdeploy.progress import Progress, Silent
from vitdeploy.runtime.deployed import Deployed as Deployed
from vitdeploy.runtime.deployed import Prediction as Prediction
from vitdeploy.runtime.deployed import Unanswered
from vitdeploy.runtime.given_images import Image

_QUIET_IMAGES = 100  # they take seconds, so their answers are all that is printed


class FailedImage(BaseModel):
    """An image without an answer: what is wrong with it, and what to do."""

    model_config = ConfigDict(frozen=True)
    image: str
    message: str
    fix: str


class Predictions(BaseModel):
    """The answers to all images, in order, and the images that have none."""

    model_config = ConfigDict(frozen=True)
    predictions: tuple[Prediction, ...]
    failed: tuple[FailedImage, ...] = ()


def predict(
    deployed: Deployed,
    sources: Sequence[Image],
    progress: Progress,
    *,
    save: Path | None = None,
    inputs: Mapping[str, object] | None = None,
) -> Predictions:
    """Answer images. One that is damaged does not stop the others.

    Args:
        deployed: the open artifact.
        sources: the images, without folders and globs.
        progress: gets the steps.
        save: a folder for a picture of each answer, or for its vector; None writes nothing.
        inputs: the values of the inputs beside the image, by name.

    Raises:
        DataError: none of the images has an answer, an input is missing, or the outputs are not of the model's task.
        UsageError: `save` cannot be written, or is in the artifact, or a picture would replace an image.
    """
    folder = None if save is None else deployed.open_folder(save, sources)
    values = deployed.read_inputs(inputs or {}, len(sources))
    predictions: list[Prediction] = []
    failed: list[FailedImage] = []
    shown = progress if len(sources) > _QUIET_IMAGES else Silent()
    with shown.step(f"Answer {len(sources):,} images", len(sources)) as advance:
        for number, answer in enumerate(deployed.answer(sources, values)):
            try:
                if isinstance(answer, Unanswered):
                    raise answer.error
                predictions.append(answer.prediction if folder is None else deployed.save(answer, folder, number))
            except DataError as error:
                failed.append(FailedImage(image=answer.name, message=error.message, fix=error.fix))
            advance(1)
    if failed and not predictions:
        first, count = failed[0], len(failed)
        message = first.message if count == 1 else f"none of {count:,} images has an answer. The first: {first.message}"
        raise DataError(message, fix=first.fix)
    return Predictions(predictions=tuple(predictions), failed=tuple(failed))
