"""Descriptions of tensors and preprocessing, for programs that run a compiled model without vitdeploy."""

from __future__ import annotations

from inspect import getdoc
from math import prod

from vitdeploy import tasks
from vitdeploy.artifact.manifest import Manifest, Tensor, TensorSpec, Usage
from vitdeploy.data.geometry import size_before_crop
from vitdeploy.data.point_prompts import (
    BACKGROUND,
    BOTTOM_RIGHT,
    COORDINATES,
    EMPTY,
    FOREGROUND,
    LABELS,
    TOP_LEFT,
)
from vitdeploy.data.preprocess import fill_bytes
from vitdeploy.recipe import Batch, InputForm, Preprocess, SizeRange, format_size
from vitdeploy.runtime.artifact_session import takes_no_image, typical_shape
from vitdeploy.targets import Target

_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "uint8": 1, "int8": 1, "int32": 4, "int64": 8}
_IMAGES = {
    "normalized": "(x / 255 - mean) / std of each channel",
    "pixels": "pixel values from 0 to 255, as float",
    "uint8": "pixel values from 0 to 255",
}
_MASKS = {
    "pred_masks": "logits of three masks: above 0 is inside; they cover the encoder's input at a lower resolution",
    "iou_scores": "the intersection over union that the model expects of each mask",
    "object_score_logits": "above 0: there is an object",
}
_MASK = {
    "normalized": "1 where there is image and 0 where there is padding",
    "pixels": "255 where there is image and 0 where there is padding",
    "uint8": "255 where there is image and 0 where there is padding",
}


_VALUE = "a value for each image, as the model takes it; the examples of the export are in reference/example.npz"


def describe_usage(manifest: Manifest, target: Target) -> Usage:
    """Describe the inputs, outputs and preprocessing of the model in `manifest`."""
    form, batch = manifest.recipe.target.input, manifest.recipe.target.batch
    preprocess, sizes = manifest.preprocess, manifest.recipe.model.size_range
    colours = preprocess.channel_order.upper() if preprocess.channels > 1 else "grey"
    image = manifest.inputs[0]
    if takes_no_image(manifest):
        return _describe_decoder(manifest, target)
    mask = f"; one more plane is {_MASK[form]}" if preprocess.mask else ""
    samples = f"clips of {preprocess.frames} frames" if preprocess.frames else "images"
    meaning = f"{colours} {samples}: {_IMAGES[form]}{mask}"
    shape = typical_shape(image, batch, sizes)
    static = batch.static and sizes is None
    command = target.command_to_try(image.name, shape, static=static)
    low, high = (shape[2:], shape[2:]) if sizes is None else (sizes.min, sizes.max)
    shapes = () if static else ((batch.min, shape[1], *low), shape, (batch.max, shape[1], *high))
    task = tasks.find(manifest.recipe.task)
    summary = (getdoc(task) or "").partition("\n")[0]
    return Usage(
        inputs=(
            _tensor(image, _layout(preprocess), meaning, shape),
            *(_tensor(i, "row-major", _VALUE, _fill(i, batch, sizes)) for i in manifest.inputs[1:]),
        ),
        outputs=tuple(
            _tensor(o, "row-major", task.describe_output(o.shape, manifest.labels), _fill(o, batch, sizes))
            for o in manifest.outputs
        ),
        answers=f"{task.name}: {summary}",
        preprocessing=tuple(_steps(preprocess, form)),
        batch=str(batch),
        image_size="" if sizes is None else _describe_sizes(sizes, manifest.model.patch),
        post_processing=task.describe_reading({output.name: output.shape for output in manifest.outputs}),
        build_it=target.command_to_build(image.name, shapes),
        try_it=command,
    )


def _describe_decoder(manifest: Manifest, target: Target) -> Usage:
    """Describe the mask decoder of a family."""
    batch = manifest.recipe.target.batch
    height, width = manifest.preprocess.size
    meanings = {
        COORDINATES: f"x and y of each point in pixels of the encoder's input, {height} x {width} (height x width); a "
        "box is its top left and bottom right corner; 0 in empty slots",
        LABELS: f"{FOREGROUND}: on the object, {BACKGROUND}: beside it, {TOP_LEFT} and {BOTTOM_RIGHT}: corners of a "
        f"box, {EMPTY}: empty slot",
    }
    first = manifest.inputs[0]
    shape = typical_shape(first, batch, None)
    return Usage(
        inputs=tuple(
            _tensor(i, "row-major", meanings.get(i.name, f"the encoder's output {i.name}"), _fill(i, batch, None))
            for i in manifest.inputs
        ),
        outputs=tuple(_tensor(o, "row-major", _MASKS.get(o.name, ""), _fill(o, batch, None)) for o in manifest.outputs),
        answers="three masks of one object (whole, part, smaller part); that with the best score is the answer",
        preprocessing=("run the encoder of the family on the image; nothing is remembered from one image to the next",),
        batch=str(batch),
        try_it=target.command_to_try(first.name, shape, static=True),
    )


def _layout(preprocess: Preprocess) -> str:
    return "NTCHW" if preprocess.frames else "NCHW"


def _describe_sizes(sizes: SizeRange, patch: tuple[int, int] | None) -> str:
    multiples = "" if patch is None else f", both sides multiples of the patch, {format_size(patch)}"
    return f"{sizes} (height x width){multiples}"


def _fill(spec: TensorSpec, batch: Batch, sizes: SizeRange | None) -> tuple[int, ...] | None:
    """Return the shape at the batch to optimise for; None if it depends on the image size too."""
    if sizes is not None and not all(isinstance(size, int) for size in spec.shape[1:]):
        return None
    return tuple(size if isinstance(size, int) else batch.opt for size in spec.shape)


def _tensor(spec: TensorSpec, layout: str, meaning: str, shape: tuple[int, ...] | None) -> Tensor:
    dtype = "float32" if spec.dtype == "float" else spec.dtype  # as ONNX names it
    width = _BYTES.get(dtype)
    size = None if width is None or shape is None else prod(shape) * width
    return Tensor(name=spec.name, dtype=dtype, layout=layout, shape=spec.shape, bytes=size, meaning=meaning)


def _steps(preprocess: Preprocess, form: InputForm) -> list[str]:
    is_coloured = preprocess.channels > 1
    steps = [f"decode to 8-bit {'RGB' if is_coloured else 'one grey channel'}", *_placing_steps(preprocess)]
    if preprocess.channel_order == "bgr":
        steps.append("order the channels as blue, green, red")
    if form == "normalized":
        mean, std = (", ".join(f"{value:g}" for value in values) for values in (preprocess.mean, preprocess.std))
        steps += ["divide by 255", f"subtract the mean ({mean}) and divide by the standard deviation ({std})"]
    if preprocess.mask:
        steps.append(f"add a plane that is {_MASK[form]}")
    if preprocess.frames:
        chosen = f"choose {preprocess.frames} frames evenly: number floor(i x frames there are / {preprocess.frames})"
        steps = [f"{chosen}; then for each frame:", *steps]
        return [*steps, "store frame by frame, each as planes, channel by channel (NTCHW)"]
    return [*steps, "store as planes, channel by channel (NCHW)"]


def _placing_steps(preprocess: Preprocess) -> list[str]:
    """Describe resizing, cropping and padding."""
    height, width = preprocess.size
    if preprocess.resize == "letterbox":
        return [_describe_letterbox(preprocess), _describe_padding(preprocess)]
    tall, wide = size_before_crop(preprocess)
    how = "exactly" if preprocess.resize == "exact" else "as small as covers, keeping the aspect ratio,"
    steps = [f"resize {how} {tall} x {wide} (height x width; {_describe_filter(preprocess)})"]
    if tall < height or wide < width:
        steps.append(_describe_padding(preprocess))
    elif preprocess.resize == "shortest" or (tall, wide) != (height, width):
        steps.append(f"cut {height} x {width} out of the centre")
    return steps


def _describe_letterbox(preprocess: Preprocess) -> str:
    height, width = preprocess.size
    edges = {"shorter": preprocess.shortest_edge, "longer": preprocess.longest_edge}
    named = " and ".join(f"the {side} side to at most {edge}" for side, edge in edges.items() if edge)
    smaller = "" if preprocess.enlarge else ", only if it is larger"
    divisor, rounding = preprocess.size_divisor, preprocess.size_rounding
    multiple = f"; both sides multiples of {divisor}, rounded {rounding}" if divisor > 1 else ""
    return (
        f"resize, keeping the aspect ratio, {named or 'as large as fits'}{smaller}, within {height} x {width} (height "
        f"x width; {_describe_filter(preprocess)}{multiple})"
    )


def _describe_filter(preprocess: Preprocess) -> str:
    return f"{preprocess.interpolation}, {'antialiased' if preprocess.antialias else 'not antialiased'}"


def _describe_padding(preprocess: Preprocess) -> str:
    height, width = preprocess.size
    where = "on all sides" if preprocess.padding == "centre" else "at the right and the bottom"
    fill = ", ".join(map(str, fill_bytes(preprocess)[: preprocess.channels]))
    order = "blue, green, red" if preprocess.channel_order == "bgr" else "red, green, blue"
    return f"pad to {height} x {width} {where} with ({fill})" + (f" ({order})" if preprocess.channels > 1 else "")
