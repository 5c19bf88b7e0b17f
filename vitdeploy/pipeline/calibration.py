"""Calibration images: batches to take ranges from, and batches to judge a precision on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from vitdeploy.data.dataset import named_batches
from vitdeploy.data.example_inputs import ExampleInputs
from vitdeploy.data.labels import Label
from vitdeploy.data.opening import open_dataset
from vitdeploy.data.preprocess import to_input
from vitdeploy.data.synthetic import natural_image
from vitdeploy.errors import DataError, QuantizeError
from vitdeploy.recipe import DataSpec, InputForm, Preprocess
from vitdeploy.session import Array, Inputs

if TYPE_CHECKING:
    from vitdeploy.quantize import Calibration

JUDGING_IMAGES = 256
"""Images that a precision is judged on before it is chosen: those that gave the ranges, and as many again."""

MOST_JUDGING_IMAGES = 2048
"""Images that it is judged on where they take little time: of 256 images, one is 0.4 points."""

SYNTHETIC_IMAGES = 16
"""Synthetic images, if no data is given. They only check for overflow, which any image shows."""


class JudgingBatch(NamedTuple):
    """Images to judge a precision on.

    Attributes:
        inputs: of the graph, in its form.
        labels: of the images; None if there are none that fit the model.
        pixels: the same images as uint8 NCHW at the size of the model.
        further: the inputs beside the image, where there are any.
    """

    inputs: Inputs
    labels: list[Label] | None
    pixels: Array
    further: Mapping[str, Array]


JudgingBatches = Callable[[], Iterator[JudgingBatch]]
"""A function whose every call streams the batches again."""


@dataclass(frozen=True)
class GraphInputs:
    """The inputs of a graph: how the image is prepared, and examples of the others.

    Attributes:
        image: the name of the image.
        preprocess: the model's preprocessing.
        form: the form in which the graph takes images.
        examples: of the other inputs, used in turn where the data has no values.
    """

    image: str
    preprocess: Preprocess
    form: InputForm
    examples: ExampleInputs = field(default_factory=ExampleInputs)

    def make(self, pixels: Array, given: Mapping[str, Array], start: int) -> Inputs:
        """Return the inputs for a batch of images, of which the first is number `start`."""
        images = to_input(pixels, self.preprocess, self.form)
        if not self.examples:
            return images
        return {self.image: images, **self.examples.take(len(images), start), **given}


def open_images(
    data: DataSpec, names: tuple[str, ...] | None, inputs: GraphInputs, size: int
) -> tuple[Calibration, JudgingBatches | None]:
    """Open the calibration images of a recipe, to take ranges from and to judge on. Both uses stream them.

    Without data, the calibration images are synthetic, and there are none to judge on.

    Args:
        data: the recipe's data.
        names: the names of the model's classes, if they are known.
        inputs: the inputs of the graph.
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
        return _synthetic(inputs, size), None
    open_any = partial(
        open_dataset, data.calibration, inputs.preprocess, need_labels=False, split="calibration",
        inputs=inputs.examples.inputs,
    )  # fmt: skip
    try:
        dataset = open_any(labels=names)
        labelled = dataset.labelled
    except DataError:  # the folders are not classes of the model, but the images can be used
        dataset = open_any(labels=None)
        labelled = False
    images = min(len(dataset), data.calibration_images)
    count = images // size
    if count == 0:
        raise QuantizeError(
            f"{data.calibration} has {images} images, a batch needs {size}", fix="Add images, or lower --batch."
        )

    def calibrate() -> Iterable[Inputs]:
        for number, batch in enumerate(named_batches(dataset, size, limit=count * size)):
            if number < count and len(batch.images) == size:
                yield inputs.make(batch.images, batch.further, number * size)

    def digest() -> Iterator[int]:
        return (digest for batch in named_batches(dataset, size, limit=count * size) for digest in batch.digests())

    def judge() -> Iterator[JudgingBatch]:
        for number, batch in enumerate(named_batches(dataset, size, limit=MOST_JUDGING_IMAGES)):
            if len(batch.images) == size:
                feeds = inputs.make(batch.images, batch.further, number * size)
                further = dict(feeds) if isinstance(feeds, Mapping) else {}
                further.pop(inputs.image, None)
                yield JudgingBatch(feeds, batch.labels if labelled else None, batch.images, further)

    return Calibration(calibrate, count, count * size, data.calibration, dataset.digest, digests=digest), judge


def _synthetic(inputs: GraphInputs, size: int) -> Calibration:
    from vitdeploy.quantize import Calibration

    count = max(1, SYNTHETIC_IMAGES // size)

    def stream() -> Iterable[Inputs]:
        images = (natural_image(seed, inputs.preprocess, size) for seed in range(count))
        return (inputs.make(pixels, {}, seed * size) for seed, pixels in enumerate(images))

    return Calibration(stream, count, count * size, "synthetic", "", synthetic=True)
