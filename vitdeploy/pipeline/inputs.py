"""The images that export works with: examples to compare numbers on, and calibration batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy.data.dataset import batches, open_dataset
from vitdeploy.data.labels import Label
from vitdeploy.data.preprocess import fed
from vitdeploy.data.synthetic import natural_image
from vitdeploy.errors import DataError, ExportError, QuantizeError
from vitdeploy.recipe import Batch, InputForm, Preprocess, Recipe
from vitdeploy.session import Array, Session, finite

if TYPE_CHECKING:
    from vitdeploy.quantize import Calibration

JUDGED_IMAGES = 256
"""On which a precision is judged before it is chosen: those that ranges were taken from, and as many that were not."""

SYNTHETIC_IMAGES = 16
"""Made up where no data is given and ranges are only checked, not used: enough to show what overflows on any image."""


@dataclass(frozen=True)
class Examples:
    """Batches of images with the reference's outputs: what every later graph is compared with.

    `pixels` are uint8 NCHW.
    """

    input_name: str
    preprocess: Preprocess
    pixels: tuple[Array, ...]
    outputs: tuple[dict[str, Array], ...]

    def pairs(self, form: InputForm = "normalized") -> list[tuple[Array, dict[str, Array]]]:
        """Inputs in the form that a graph takes, with the outputs it should give."""
        inputs = [fed(pixels, self.preprocess, form) for pixels in self.pixels]
        return list(zip(inputs, self.outputs, strict=True))


def examples(reference: Session, input_name: str, preprocess: Preprocess, batch: Batch) -> Examples:
    """Real-looking images and the reference's outputs; a dynamic batch is looked at in two sizes."""
    sizes = [batch.opt] if batch.static else _two_sizes(batch)
    pixels = [natural_image(seed, preprocess, size) for seed, size in enumerate(sizes)]
    outputs = [reference.run({input_name: fed(images, preprocess, "normalized")}) for images in pixels]
    if not all(finite(o) for o in outputs):
        raise ExportError("the model itself gives NaN or infinity", fix="Check its weights and preprocessing.")
    return Examples(input_name, preprocess, tuple(pixels), tuple(outputs))


def _two_sizes(batch: Batch) -> list[int]:
    """Traced first: above 1, because exporters specialise a batch of 1."""
    traced = max(batch.opt, min(2, batch.max))
    return [traced, batch.min if batch.min != traced else batch.max]


def save_example(path: Path, examples: Examples, form: InputForm) -> None:
    """The first verified input with the reference's outputs, so that a device without PyTorch can check itself."""
    path.parent.mkdir()
    image, outputs = examples.pairs(form)[0]
    arrays: dict[str, Any] = {"input": image, **{f"output.{name}": value for name, value in outputs.items()}}
    np.savez(path, **arrays)


def load_example(path: Path) -> tuple[Array, dict[str, Array]]:
    """The input that `save_example` kept, and the reference's outputs by name."""
    with np.load(path) as arrays:
        outputs = {name.removeprefix("output."): arrays[name] for name in arrays.files if name.startswith("output.")}
        return arrays["input"], outputs


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
                yield fed(batch, preprocess, recipe.target.input)

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
                yield fed(images, preprocess, recipe.target.input), labels if labelled else None

    return stream


def _synthetic(recipe: Recipe, preprocess: Preprocess) -> Calibration:
    from vitdeploy.quantize import Calibration

    size = recipe.target.batch.min
    count = max(1, SYNTHETIC_IMAGES // size)

    def stream() -> Iterable[Array]:
        return (fed(natural_image(seed, preprocess, size), preprocess, recipe.target.input) for seed in range(count))

    return Calibration(stream, count, count * size, "synthetic", "", synthetic=True)
