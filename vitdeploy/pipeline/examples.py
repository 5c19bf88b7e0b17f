"""Example images with the reference's outputs. Every later graph, and what was compiled, is compared with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitdeploy.data.array_files import read_npz
from vitdeploy.data.preprocess import to_input
from vitdeploy.data.synthetic import LOOKS, Look, natural_image
from vitdeploy.errors import DataError, ExportError
from vitdeploy.graph.parity import Example, compare, explain_difference
from vitdeploy.recipe import Batch, InputForm, Preprocess
from vitdeploy.runtime.reference import open_reference
from vitdeploy.session import Array, Session, is_finite
from vitdeploy.sources import LoadedModel

_LARGE_BATCH = 8
"""From this size on, a static batch is compared on three looks instead of four, to save time."""
_MOST_IMAGES = 16
"""The size of the largest batch to compare, if the stated maximum is larger, unless the typical size is."""
_FEWEST_BATCHES = 2
_MOST_BYTES = 256 << 20
"""The size of the stored outputs, unless two batches need more. A segmentation model gives megabytes for each image."""


@dataclass(frozen=True)
class Examples:
    """Batches of images (`pixels`: uint8 NCHW) with the reference's outputs, and the images in words."""

    input_name: str
    preprocess: Preprocess
    pixels: tuple[Array, ...]
    outputs: tuple[dict[str, Array], ...]
    names: tuple[str, ...]

    def pairs(self, form: InputForm = "normalized") -> list[Example]:
        """Return inputs in the form that a graph takes, with the expected outputs."""
        inputs = [to_input(pixels, self.preprocess, form) for pixels in self.pixels]
        return [Example(*parts) for parts in zip(inputs, self.outputs, self.names, strict=True)]


def make_examples(model: LoadedModel, preprocess: Preprocess, batch: Batch) -> Examples:
    """Run the FP32 reference on images of several looks; in several batch sizes if the batch is dynamic.

    Raises:
        ExportError: the model itself gives NaN or infinity, or other numbers when it runs again.
    """
    pixels: list[Array] = []
    outputs: list[dict[str, Array]] = []
    names: list[str] = []
    with open_reference(model, threads=None, timed=False) as reference:
        for seed, (size, look) in enumerate(_plan(batch)):
            images = sum(map(len, pixels))
            if len(pixels) >= _FEWEST_BATCHES and _bytes(outputs) * (1 + size / images) > _MOST_BYTES:
                continue
            pixels.append(natural_image(seed, preprocess, size, look))
            outputs.append(_run(reference, model.input_name, to_input(pixels[-1], preprocess, "normalized"), look))
            names.append(look.name)
        again = _run(reference, model.input_name, to_input(pixels[0], preprocess, "normalized"), LOOKS[0])
    reason = explain_difference(compare(outputs[0], again, batch=len(pixels[0])))
    if reason is not None:
        raise ExportError(
            f"the model gives other numbers when it runs again on the same images: {reason}",
            fix="Switch off dropout, and remove random numbers and counters from its forward().",
        )
    return Examples(model.input_name, preprocess, tuple(pixels), tuple(outputs), tuple(names))


def traced_size(batch: Batch) -> int:
    """Return the batch size to trace. Exporters specialise a dynamic batch of 1, so a larger one is traced."""
    return batch.opt if batch.static else max(batch.opt, min(2, batch.max))


def _plan(batch: Batch) -> list[tuple[int, Look]]:
    """Return sizes and looks of the batches to compare; the first one is traced.

    A dynamic batch is compared in its smallest size, a typical one, and its largest (or a large one).
    """
    plain, bright, dark, contrast = LOOKS
    if batch.static:
        looks = LOOKS if batch.opt < _LARGE_BATCH else LOOKS[:3]
        return [(batch.opt, look) for look in looks]
    traced = traced_size(batch)
    largest = min(batch.max, max(_MOST_IMAGES, 2 * batch.opt))
    middle = batch.opt if batch.min < batch.opt < largest else (batch.min + largest) // 2
    smallest = [(batch.min, look) for look in (bright, dark, contrast)]
    others = [(size, look) for size, look in ((middle, bright), (largest, plain)) if size not in (batch.min, traced)]
    return [(traced, plain), *smallest, *others]


def _run(reference: Session, input_name: str, images: Array, look: Look) -> dict[str, Array]:
    outputs = reference.run({input_name: images})
    if not is_finite(outputs):
        raise ExportError(
            f"the model itself gives NaN or infinity for {look.name}", fix="Check its weights and preprocessing."
        )
    return outputs


def _bytes(outputs: list[dict[str, Array]]) -> int:
    return sum(value.nbytes for batch in outputs for value in batch.values())


def save_examples(path: Path, examples: Examples, form: InputForm) -> None:
    """Write the images with the reference's outputs, so that a device without PyTorch can check itself.

    The first batch is stored as the graph takes it, for programs that read it (`input`, `output.NAME`). The others are
    pixels, which take a quarter of the space.
    """
    path.parent.mkdir()
    image, outputs, _ = examples.pairs(form)[0]
    arrays: dict[str, Any] = {"input": image, **{f"output.{name}": value for name, value in outputs.items()}}
    for number, pixels in enumerate(examples.pixels[1:], start=1):
        arrays |= {f"case{number}.pixels": pixels, f"case{number}.name": np.array(examples.names[number])}
        arrays |= {f"case{number}.output.{name}": value for name, value in examples.outputs[number].items()}
    np.savez(path, **arrays)


def load_examples(path: Path, preprocess: Preprocess, form: InputForm) -> list[Example]:
    """Read a file of `save_examples`: images as the graph takes them, with the reference's outputs.

    Raises:
        DataError: it is damaged.
    """
    fix = "Export the artifact again."
    arrays = read_npz(path, fix)
    if "input" not in arrays:
        raise DataError(f"{path} has no array `input`", fix=fix)
    return list(_read_examples(arrays, preprocess, form))


def _read_examples(arrays: Mapping[str, Array], preprocess: Preprocess, form: InputForm) -> Iterator[Example]:
    yield Example(arrays["input"], _with_prefix(arrays, "output."), LOOKS[0].name)
    number = 1
    while (pixels := arrays.get(f"case{number}.pixels")) is not None:
        outputs = _with_prefix(arrays, f"case{number}.output.")
        yield Example(to_input(pixels, preprocess, form), outputs, str(arrays.get(f"case{number}.name", "")))
        number += 1


def _with_prefix(arrays: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
