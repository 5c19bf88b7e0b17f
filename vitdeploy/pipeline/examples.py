"""Example images with the reference's outputs. Every later graph is compared with them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitdeploy.data.array_files import read_npz
from vitdeploy.data.preprocess import to_input
from vitdeploy.data.synthetic import natural_image
from vitdeploy.errors import DataError, ExportError
from vitdeploy.recipe import Batch, InputForm, Preprocess
from vitdeploy.runtime.reference import open_reference
from vitdeploy.session import Array, is_finite
from vitdeploy.sources import LoadedModel


@dataclass(frozen=True)
class Examples:
    """Batches of images (`pixels`: uint8 NCHW) with the reference's outputs."""

    input_name: str
    preprocess: Preprocess
    pixels: tuple[Array, ...]
    outputs: tuple[dict[str, Array], ...]

    def pairs(self, form: InputForm = "normalized") -> list[tuple[Array, dict[str, Array]]]:
        """Return inputs in the form that a graph takes, with the expected outputs."""
        inputs = [to_input(pixels, self.preprocess, form) for pixels in self.pixels]
        return list(zip(inputs, self.outputs, strict=True))


def make_examples(model: LoadedModel, preprocess: Preprocess, batch: Batch) -> Examples:
    """Run the FP32 reference on images with natural statistics; in two batch sizes if the batch is dynamic.

    Raises:
        ExportError: the model itself gives NaN or infinity.
    """
    sizes = [batch.opt] if batch.static else _two_sizes(batch)
    pixels = [natural_image(seed, preprocess, size) for seed, size in enumerate(sizes)]
    with open_reference(model, threads=None) as reference:
        inputs = [{model.input_name: to_input(images, preprocess, "normalized")} for images in pixels]
        outputs = [reference.run(feeds) for feeds in inputs]
    if not all(is_finite(o) for o in outputs):
        raise ExportError("the model itself gives NaN or infinity", fix="Check its weights and preprocessing.")
    return Examples(model.input_name, preprocess, tuple(pixels), tuple(outputs))


def traced_size(batch: Batch) -> int:
    """Return the batch size to trace. Exporters specialise a dynamic batch of 1, so a larger one is traced."""
    return batch.opt if batch.static else max(batch.opt, min(2, batch.max))


def _two_sizes(batch: Batch) -> list[int]:
    """Return the size to trace and another one."""
    traced = traced_size(batch)
    return [traced, batch.min if batch.min != traced else batch.max]


def save_example(path: Path, examples: Examples, form: InputForm) -> None:
    """Write the first input with the reference's outputs, so that a device without PyTorch can check itself."""
    path.parent.mkdir()
    image, outputs = examples.pairs(form)[0]
    arrays: dict[str, Any] = {"input": image, **{f"output.{name}": value for name, value in outputs.items()}}
    np.savez(path, **arrays)


def load_example(path: Path) -> tuple[Array, dict[str, Array]]:
    """Read a file of `save_example`: the input, and the reference's outputs by name.

    Raises:
        DataError: it is damaged.
    """
    fix = "Export the artifact again."
    arrays = read_npz(path, fix)
    if "input" not in arrays:
        raise DataError(f"{path} has no array `input`", fix=fix)
    outputs = {name.removeprefix("output."): value for name, value in arrays.items() if name.startswith("output.")}
    return arrays["input"], outputs
