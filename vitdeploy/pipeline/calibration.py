"""Calibration images: batches to take ranges from, and batches to judge a precision on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from vitdeploy.data.dataset import batches, digest_image
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
"""Images that a precision is judged on before it is chosen: those that gave the ranges, and as many again."""

SYNTHETIC_IMAGES = 16
"""Synthetic images, if no data is given. They only check for overflow, which any image shows."""

JudgingBatches = Callable[[], Iterator[tuple[Array, list[Label] | None]]]
"""A function whose every call streams the batches again: images in the graph's form, and their labels or None."""


def open_images(
    data: DataSpec, preprocess: Preprocess, names: tuple[str, ...] | None, form: InputForm, size: int
) -> tuple[Calibration, JudgingBatches | None]:
    """Open the calibration images of a recipe, to take ranges from and to judge on. Both uses stream them.

    Without data, the calibration images are synthetic, and there are none to judge on.

    Args:
        data: the recipe's data.
        preprocess: the model's preprocessing.
        names: the names of the model's classes, if they are known.
        form: the form in which the graph takes images.
        size: the batch size.

    Returns:
        Batches to take ranges from, and batches to judge a precision on. Those to judge on have labels if the data has
        labels that can be class indices of the model.

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

    def digest() -> Iterator[int]:
        return (digest_image(image) for batch, _ in batches(dataset, size, limit=count * size) for image in batch)

    def judge() -> Iterator[tuple[Array, list[Label] | None]]:
        for batch, labels in batches(dataset, size, limit=JUDGING_IMAGES):
            if len(batch) == size:
                yield to_input(batch, preprocess, form), labels if labelled else None

    return Calibration(calibrate, count, count * size, data.calibration, dataset.digest, digests=digest), judge


def _synthetic(preprocess: Preprocess, form: InputForm, size: int) -> Calibration:
    from vitdeploy.quantize import Calibration

    count = max(1, SYNTHETIC_IMAGES // size)

    def stream() -> Iterable[Array]:
        return (to_input(natural_image(seed, preprocess, size), preprocess, form) for seed in range(count))

    return Calibration(stream, count, count * size, "synthetic", "", synthetic=True)
