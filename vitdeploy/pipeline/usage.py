"""Descriptions of tensors and preprocessing, for programs that run a compiled model without vitdeploy."""

from __future__ import annotations

from inspect import getdoc
from math import prod

from vitdeploy import tasks
from vitdeploy.artifact.manifest import Manifest, Tensor, TensorSpec, Usage
from vitdeploy.data.preprocess import size_before_crop
from vitdeploy.recipe import InputForm, Preprocess
from vitdeploy.targets import Target

_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "uint8": 1, "int8": 1, "int32": 4, "int64": 8}
_IMAGES = {
    "normalized": "(x / 255 - mean) / std of each channel",
    "pixels": "pixel values from 0 to 255, as float",
    "uint8": "pixel values from 0 to 255",
}


def describe_usage(manifest: Manifest, target: Target) -> Usage:
    """Describe the inputs, outputs and preprocessing of the model in `manifest`."""
    form, batch = manifest.recipe.target.input, manifest.recipe.target.batch
    colours = "RGB" if manifest.preprocess.channels > 1 else "grey"
    image = manifest.inputs[0]
    meaning = f"{colours} images: {_IMAGES[form]}"
    command = target.command_to_try(image.name, image.shape, batch)
    task = tasks.find(manifest.recipe.task)
    summary = (getdoc(task) or "").partition("\n")[0]
    return Usage(
        inputs=(
            _tensor(image, "NCHW", meaning, batch.opt),
            *(_tensor(i, "row-major", "", batch.opt) for i in manifest.inputs[1:]),
        ),
        outputs=tuple(
            _tensor(output, "row-major", task.describe_output(output.shape, manifest.labels), batch.opt)
            for output in manifest.outputs
        ),
        answers=f"{task.name}: {summary}",
        preprocessing=tuple(_steps(manifest.preprocess, form)),
        batch=str(batch),
        try_it=command,
    )


def _tensor(spec: TensorSpec, layout: str, meaning: str, batch: int) -> Tensor:
    sizes = [size if isinstance(size, int) else batch for size in spec.shape]
    dtype = "float32" if spec.dtype == "float" else spec.dtype  # as ONNX names it
    width = _BYTES.get(dtype)
    size = None if width is None else prod(sizes) * width
    return Tensor(name=spec.name, dtype=dtype, layout=layout, shape=spec.shape, bytes=size, meaning=meaning)


def _steps(preprocess: Preprocess, form: InputForm) -> list[str]:
    height, width = preprocess.size
    colours = "RGB" if preprocess.channels > 1 else "one grey channel"
    steps = [f"decode to 8-bit {colours}"]
    tall, wide = size_before_crop(preprocess)
    how = "exactly" if preprocess.resize == "exact" else "as small as covers, keeping the aspect ratio,"
    steps.append(f"resize {how} {tall} x {wide} (height x width; {preprocess.interpolation}, antialiased)")
    if preprocess.resize == "shortest" or (tall, wide) != (height, width):
        steps.append(f"cut {height} x {width} out of the centre")
    if form == "normalized":
        mean, std = (", ".join(f"{value:g}" for value in values) for values in (preprocess.mean, preprocess.std))
        steps += ["divide by 255", f"subtract the mean ({mean}) and divide by the standard deviation ({std})"]
    return [*steps, "store as planes, channel by channel (NCHW)"]
