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
from vitdeploy.recipe import Preprocess, Recipe
from vitdeploy.session import Array

if TYPE_CHECKING:
    from vitdeploy.quantize import Calibration


JUDGED_IMAGES = 256
"""On which a precision is judged before it is chosen: those that ranges were taken from, and as many that were not."""


SYNTHETIC_IMAGES = 16
"""Made up where no data is given and ranges are only checked, not used: enough to show what overflows on any image."""


def calibration(recipe: Recipe, preprocess: Preprocess) -> Calibration:
    """Stream calibration batches in the graph's own batch size; of made-up images, where the recipe names no data."""
    from vitdeploy.quantize import Calibration

    if recipe.data.calibration is None:
        return _synthetic(recipe, preprocess)
    dataset = open_dataset(recipe.data.calibration, preprocess, labels=None, need_labels=False, split="calibration")
    size = 1 if recipe.target.batch.min == 1 else recipe.target.batch.min
    images = min(len(dataset), recipe.data.calibration_images)
    count = images // size
    if count == 0:
        raise QuantizeError(
            f"{recipe.data.calibration} has {images} images, a batch needs {size}", fix="Add images, or lower --batch."
        )

    def stream() -> Iterable[Array]:
        for number, (batch, _) in enumerate(batches(dataset, size, limit=count * size)):
            if number < count and len(batch) == size:
                yield to_input(batch, preprocess, recipe.target.input)

    return Calibration(stream, count, count * size, recipe.data.calibration, dataset.digest)


def judged(
    recipe: Recipe, preprocess: Preprocess, names: tuple[str, ...] | None
) -> Callable[[], Iterator[tuple[Array, list[Label] | None]]]:
    """Batches to judge a precision on, anew at each call: images in the graph's form, and their labels or None.

    Labels count where the data has them and they can be the model's class indices.
    """
    spec, size = recipe.data.calibration, recipe.target.batch.min
    assert spec is not None
    try:
        dataset = open_dataset(spec, preprocess, labels=names, need_labels=False, split="calibration")
        labelled = dataset.labelled
    except DataError:  # the folders are no classes of the model: images all the same
        dataset = open_dataset(spec, preprocess, labels=None, need_labels=False, split="calibration")
        labelled = False

    def stream() -> Iterator[tuple[Array, list[Label] | None]]:
        for images, labels in batches(dataset, size, limit=JUDGED_IMAGES):
            if len(images) == size:
                yield to_input(images, preprocess, recipe.target.input), labels if labelled else None

    return stream


def _synthetic(recipe: Recipe, preprocess: Preprocess) -> Calibration:
    from vitdeploy.quantize import Calibration

    size = recipe.target.batch.min
    count = max(1, SYNTHETIC_IMAGES // size)

    def stream() -> Iterable[Array]:
        return (
            to_input(natural_image(seed, preprocess, size), preprocess, recipe.target.input) for seed in range(count)
        )

    return Calibration(stream, count, count * size, "synthetic", "", synthetic=True)
