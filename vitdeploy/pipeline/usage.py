"""What a program needs to know to feed a compiled model itself, in C++ for example: tensors and preprocessing."""

from __future__ import annotations

from inspect import getdoc
from math import prod

from vitdeploy import tasks
from vitdeploy.artifact.manifest import Manifest, Tensor, TensorSpec, Usage
from vitdeploy.data.preprocess import size_before_crop
from vitdeploy.recipe import InputForm, Preprocess

_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "uint8": 1, "int8": 1, "int32": 4, "int64": 8}
_IMAGES = {
    "normalized": "(x / 255 - mean) / std of each channel",
    "pixels": "pixel values from 0 to 255, as float",
    "uint8": "pixel values from 0 to 255",
}


def usage(manifest: Manifest) -> Usage:
    """Describe the model in `manifest` for a reader without vitdeploy."""
    form, batch = manifest.recipe.target.input, manifest.recipe.target.batch
    colours = "RGB" if manifest.preprocess.channels > 1 else "grey"
    image = manifest.inputs[0]
    meaning = f"{colours} images: {_IMAGES[form]}"
    kind = manifest.recipe.task.kind or tasks.DEFAULT
    classes = len(manifest.labels) if manifest.labels is not None else None
    task = (getdoc(tasks.find(manifest.recipe.task)) or "").partition("\n")[0]
    meant = {o.name: _logits(o, classes) if kind == tasks.DEFAULT else "" for o in manifest.outputs}
    return Usage(
        inputs=(
            _tensor(image, "NCHW", meaning, batch.opt),
            *(_tensor(i, "row-major", "", batch.opt) for i in manifest.inputs[1:]),
        ),
        outputs=tuple(_tensor(output, "row-major", meant[output.name], batch.opt) for output in manifest.outputs),
        answers=f"{kind}: {task}",
        preprocessing=tuple(_steps(manifest.preprocess, form)),
        batch=str(batch),
        try_it=_trtexec(manifest) if manifest.target.kind == "tensorrt" else None,
    )


def _tensor(spec: TensorSpec, layout: str, meaning: str, batch: int) -> Tensor:
    sizes = [size if isinstance(size, int) else batch for size in spec.shape]
    dtype = "float32" if spec.dtype == "float" else spec.dtype  # as ONNX names it
    width = _BYTES.get(dtype)
    size = None if width is None else prod(sizes) * width
    return Tensor(name=spec.name, dtype=dtype, layout=layout, shape=spec.shape, bytes=size, meaning=meaning)


def _logits(spec: TensorSpec, classes: int | None) -> str:
    if len(spec.shape) == 2 and classes is not None and spec.shape[1] == classes:
        return "logits in the order of `labels`; softmax gives probabilities"
    return "logits; softmax gives probabilities" if len(spec.shape) == 2 else ""


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


def _trtexec(manifest: Manifest) -> str:
    image, batch = manifest.inputs[0], manifest.recipe.target.batch
    shape = "x".join(str(size if isinstance(size, int) else batch.opt) for size in image.shape)
    return "trtexec --loadEngine=engine.plan" + ("" if batch.static else f" --shapes={image.name}:{shape}")
