"""Calibration images: batches to take ranges from, and batches to judge a precision on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from vitdeploy.data.dataset import batches
from vitdeploy.data.labels import Label
from vitdeploy.data.opening import open_dataset
from vitdeploy.data.preprocess import to_input
from vitdeploy.data.synthetic import natural_image
from vitdeploy.errors import DataError, QuantizeError
from vitdeploy.recipe import DataSpec, InputForm, Preprocess
from vitdeploy.session import Array

if TYPE_CHECKING:
    from vitdeploy.quantize import Calibration

JUDGING_IMAGES = 256
"""Images that a precision is judged on before it is chosen: those that gave the ranges, and as many others."""

SYNTHETIC_IMAGES = 16
"""Images that are made up if no data is given. They only check for overflow, which shows on any image."""

JudgingBatches = Callable[[], Iterator[tuple[Array, list[Label] | None]]]
"""Streams batches anew at each call: images in the graph's form, and their labels or None."""


def open_images(
    data: DataSpec, preprocess: Preprocess, names: tuple[str, ...] | None, form: InputForm, size: int
) -> tuple[Calibration, JudgingBatches | None]:
    """Open the calibration images of a recipe once, for both uses; both are streamed.

    Without data, calibration images are made up, and there is nothing to judge on.

    Args:
        data: of the recipe.
        preprocess: of the model.
        names: of the model's classes, if they are known.
        form: in which the graph takes images.
        size: of a batch.

    Returns:
        Batches to take ranges from, and batches to judge a precision on. The latter have labels if the data has them
        and they can be the model's class indices.

    Raises:
        DataError: the data is missing or has another form.
        QuantizeError: there are fewer images than a batch needs.
    """
    from vitdeploy.quantize import Calibration

    if data.calibration is None:
        return _synthetic(preprocess, form, size), None
    try:
        dataset = open_dataset(data.calibration, preprocess, labels=names, need_labels=False, split="calibration")
        labelled = dataset.labelled
    except DataError:  # the folders are not classes of the model, but the images can be used
        dataset = open_dataset(data.calibration, preprocess, labels=None, need_labels=False, split="calibration")
        labelled = False
    images = min(len(dataset), data.calibration_images)
    count = images // size
    if count == 0:
        raise QuantizeError(
            f"{data.calibration} has {images} images, a batch needs {size}", fix="Add images, or lower --batch."
        )

    def calibrate() -> Iterable[Array]:
        for number, (batch, _) in enumerate(batches(dataset, size, limit=count * size)):
            if number < count and len(batch) == size:
                yield to_input(batch, preprocess, form)

    def judge() -> Iterator[tuple[Array, list[Label] | None]]:
        for batch, labels in batches(dataset, size, limit=JUDGING_IMAGES):
            if len(batch) == size:
                yield to_input(batch, preprocess, form), labels if labelled else None

    return Calibration(calibrate, count, count * size, data.calibration, dataset.digest), judge


def _synthetic(preprocess: Preprocess, form: InputForm, size: int) -> Calibration:
    from vitdeploy.quantize import Calibration

    count = max(1, SYNTHETIC_IMAGES // size)

    def stream() -> Iterable[Array]:
        return (to_input(natural_image(seed, preprocess, size), preprocess, form) for seed in range(count))

    return Calibration(stream, count, count * size, "synthetic", "", synthetic=True)
