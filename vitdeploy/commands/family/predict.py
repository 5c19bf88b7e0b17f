"""`vitdeploy predict` of a family: masks of what points and boxes name."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import NoReturn

import numpy as np

from vitdeploy.artifact import Artifact
from vitdeploy.commands.predict import FailedImage, Predictions
from vitdeploy.data.images import open_image
from vitdeploy.data.point_prompts import Prompt
from vitdeploy.data.preprocess import to_rgb
from vitdeploy.errors import DataError, UsageError
from vitdeploy.escaping import replace_undecodable
from vitdeploy.evidence.predictions import MaskRuns
from vitdeploy.progress import Progress
from vitdeploy.render.picture_folder import PictureFolder
from vitdeploy.runtime.artifact_session import refuse_decoder
from vitdeploy.runtime.deployed import Prediction
from vitdeploy.runtime.segmenter import Segment, Segmenter
from vitdeploy.session import Array
from vitdeploy.tasks.promptable_masks import describe_mask

Corners = tuple[float, float, float, float]
_KIND = "promptable-masks"
_POINTS = "Give --points X,Y;X,Y with pixels of the image; X,Y,0 is a point beside the object."


def parse_prompts(points: Sequence[str], boxes: Sequence[str]) -> list[Prompt]:
    """Return the prompts of `--points` and `--box`: each option is one, and with both kinds they go in pairs.

    Raises:
        UsageError: a text is not in their form, or there are several of both in different numbers.
    """
    if not points and not boxes:
        raise UsageError(
            "a promptable model needs a prompt", fix="Give --points X,Y or --box X0,Y0,X1,Y1, in pixels of the image."
        )
    if points and boxes and len(points) != len(boxes):
        raise UsageError(
            f"{len(points)} --points and {len(boxes)} --box make no pairs",
            fix="Give one --box for each --points, or only one kind of them.",
        )
    parsed = [_parse_points(text) for text in points] or [Prompt()] * len(boxes)
    corners: Sequence[Corners | None] = [_parse_box(text) for text in boxes] or [None] * len(points)
    return [Prompt(one.points, one.foreground, box) for one, box in zip(parsed, corners, strict=True)]


def refuse_prompts(artifact: Artifact) -> NoReturn:
    """Refuse points and boxes for an artifact that is no family.

    Raises:
        UsageError: always.
    """
    refuse_decoder(artifact, "predict")
    raise UsageError(
        f"{artifact.path} takes images, and no points or boxes",
        fix="Leave out --points and --box, or give a family: the folder that export writes of SAM.",
    )


def predict_prompts(
    segmenter: Segmenter, images: Sequence[Path], prompts: Sequence[Prompt], progress: Progress, *, save: Path | None
) -> Predictions:
    """Segment what the prompts name, in each image. An image that fails does not stop the others.

    Args:
        segmenter: the open family.
        images: image files.
        prompts: in pixels of each upright image.
        progress: gets the step.
        save: a folder for a picture of each answer; None writes none.

    Raises:
        DataError: none of the images has an answer.
        UsageError: `save` cannot be written, or is in the family, or a picture would replace an image.
    """
    folder = None if save is None else PictureFolder(save, [str(image) for image in images], segmenter.family.path)
    predictions: list[Prediction] = []
    failed: list[FailedImage] = []
    with progress.step(f"Segment {len(images):,} images", len(images)) as advance:
        for number, path in enumerate(images):
            name = replace_undecodable(str(path))
            try:
                predictions.append(_predict(segmenter, path, prompts, folder, number))
            except DataError as error:
                message = error.message if name in error.message else f"{name}: {error.message}"
                failed.append(FailedImage(image=name, message=message, fix=error.fix))
            advance(1)
    if failed and not predictions:
        raise DataError(failed[0].message, fix=failed[0].fix)
    return Predictions(predictions=tuple(predictions), failed=tuple(failed))


def _predict(
    segmenter: Segmenter, path: Path, prompts: Sequence[Prompt], folder: PictureFolder | None, number: int
) -> Prediction:
    image = to_rgb(open_image(path))
    segments = segmenter.segment(image, prompts)
    instances = tuple(describe_mask(one.mask, one.score, index) for index, one in enumerate(segments))
    saved = None
    if folder is not None:
        from vitdeploy.render.pictures.instances import draw_instances

        shown = [one for one in instances if one.area]
        picture = draw_instances(image, _number_pixels(segments), (0, 0), shown)
        saved = replace_undecodable(str(folder.write_picture(number, picture)))
    return Prediction(
        image=replace_undecodable(str(path)),
        task=_KIND,
        instances=instances,
        masks=tuple(_compress(one.mask) for one in segments),
        saved=saved,
    )


def _number_pixels(segments: Sequence[Segment]) -> Array:
    """Return for each pixel the number of the mask that covers it, from 1 on; the first one where several do."""
    numbers = np.zeros(segments[0].mask.shape, dtype=np.int64)
    shown = [one for one in segments if one.mask.any()]
    for number, one in reversed(list(enumerate(shown, start=1))):
        numbers[one.mask] = number
    return numbers


def _compress(mask: Array) -> MaskRuns:
    """Return the run lengths of a mask in COCO's order."""
    flat = mask.T.ravel()
    counts = [len(list(run)) for _, run in groupby(flat.tolist())]
    return MaskRuns(size=(mask.shape[0], mask.shape[1]), counts=tuple(([0] if flat[0] else []) + counts))


def _parse_points(text: str) -> Prompt:
    points: list[tuple[float, float]] = []
    foreground: list[bool] = []
    for part in text.split(";"):
        numbers = _parse_numbers(part)
        if numbers is None or len(numbers) not in (2, 3) or numbers[2:] not in ([], [0.0], [1.0]):
            raise UsageError(f"--points {text!r} has no point in {part!r}", fix=_POINTS)
        points.append((numbers[0], numbers[1]))
        foreground.append(numbers[2:] != [0.0])
    return Prompt(tuple(points), tuple(foreground))


def _parse_box(text: str) -> Corners:
    numbers = _parse_numbers(text)
    if numbers is None or len(numbers) != 4:
        raise UsageError(
            f"--box {text!r} is no box", fix="Give left, top, right and bottom in pixels: --box X0,Y0,X1,Y1."
        )
    return numbers[0], numbers[1], numbers[2], numbers[3]


def _parse_numbers(text: str) -> list[float] | None:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        return None
    return numbers if np.isfinite(numbers).all() else None
