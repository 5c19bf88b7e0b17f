"""Calibration images for ranges, and images to judge a precision on."""

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
"""On which a precision is judged before it is chosen: those that ranges were taken from, and as many that were not."""

SYNTHETIC_IMAGES = 16
"""Made up where no data is given and ranges are only checked, not used: enough to show what overflows on any image."""

JudgingBatches = Callable[[], Iterator[tuple[Array, list[Label] | None]]]
"""Streams batches anew at each call: images in the graph's form, and their labels or None."""


def open_calibration(data: DataSpec, preprocess: Preprocess, form: InputForm, size: int) -> Calibration:
    """Return calibration batches, streamed; of made-up images where the recipe names no data.

    Args:
        data: of the recipe.
        preprocess: what the model wants.
        form: in which the graph takes images.
        size: of a batch.

    Raises:
        DataError: the data is missing or of another form.
        QuantizeError: there are fewer images than a batch needs.
    """
    from vitdeploy.quantize import Calibration

    if data.calibration is None:
        return _synthetic(preprocess, form, size)
    dataset = open_dataset(data.calibration, preprocess, labels=None, need_labels=False, split="calibration")
    images = min(len(dataset), data.calibration_images)
    count = images // size
    if count == 0:
        raise QuantizeError(
            f"{data.calibration} has {images} images, a batch needs {size}", fix="Add images, or lower --batch."
        )

    def stream() -> Iterable[Array]:
        for number, (batch, _) in enumerate(batches(dataset, size, limit=count * size)):
            if number < count and len(batch) == size:
                yield to_input(batch, preprocess, form)

    return Calibration(stream, count, count * size, data.calibration, dataset.digest)


def judging_batches(
    spec: str, preprocess: Preprocess, names: tuple[str, ...] | None, form: InputForm, size: int
) -> JudgingBatches:
    """Return what streams batches to judge a precision on.

    Labels count where the data has them and they can be the model's class indices.

    Args:
        spec: DATA of the command line.
        preprocess: what the model wants.
        names: the model's classes, where they are known.
        form: in which the graph takes images.
        size: of a batch.
    """
    try:
        dataset = open_dataset(spec, preprocess, labels=names, need_labels=False, split="calibration")
        labelled = dataset.labelled
    except DataError:  # the folders are no classes of the model: images all the same
        dataset = open_dataset(spec, preprocess, labels=None, need_labels=False, split="calibration")
        labelled = False

    def stream() -> Iterator[tuple[Array, list[Label] | None]]:
        for images, labels in batches(dataset, size, limit=JUDGING_IMAGES):
            if len(images) == size:
                yield to_input(images, preprocess, form), labels if labelled else None

    return stream


def _synthetic(preprocess: Preprocess, form: InputForm, size: int) -> Calibration:
    from vitdeploy.quantize import Calibration

    count = max(1, SYNTHETIC_IMAGES // size)

    def stream() -> Iterable[Array]:
        return (to_input(natural_image(seed, preprocess, size), preprocess, form) for seed in range(count))

    return Calibration(stream, count, count * size, "synthetic", "", synthetic=True)
