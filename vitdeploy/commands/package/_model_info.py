"""`rt_info/model_info` of an IR: how OpenVINO's Model API and DL Streamer prepare images and read classes.

Both take images as BGR bytes (OpenCV's order), resize them without antialiasing, and compute

    y = (x − mean_values[channel]) / scale_values[channel]      x: 0 to 255

| resize_type               | what it does                                                     |
| standard                  | stretches the image to the input                                 |
| crop                      | cuts the largest centred part with the input's aspect ratio, and |
|                           | resizes it (always bilinear)                                     |
| fit_to_window_letterbox   | keeps the aspect ratio, and pads all sides with `pad_value`      |

If these keys cannot describe how the model prepares images, the section is left out, with a reason.

Sources: the parameters of `ImageModel` and `ClassificationModel` in openvino-model-api 0.4; "Model Info Section" in the
documentation of DL Streamer, with which nothing was run.
"""

from __future__ import annotations

from vitdeploy import tasks
from vitdeploy.artifact import Manifest
from vitdeploy.data.geometry import size_before_crop
from vitdeploy.data.picture import MAX_BYTE
from vitdeploy.data.preprocess import fill_bytes
from vitdeploy.recipe import Preprocess

_IMAGE_DIMS = 4
_COLOURS = 3  # Model API's input tensor has three channels
_FILTERS = {"nearest": "NEAREST", "bilinear": "LINEAR", "bicubic": "CUBIC"}


def describe_model(manifest: Manifest) -> tuple[dict[str, str], str]:
    """Return the keys and values of `model_info`, and an empty string; or none, and why there are none."""
    task = tasks.find(manifest.recipe.task)
    reading = task.describe_reading({output.name: output.shape for output in manifest.outputs})
    preprocess = manifest.preprocess
    if task.name != tasks.DEFAULT or reading is None or len(manifest.outputs) != 1:
        return {}, f"Model API has no model for outputs of this form (task {task.name})"
    if reading.activation != "softmax":
        return {}, "Model API's classes take a softmax, and this model's scores a sigmoid"
    if len(manifest.inputs) != 1 or len(manifest.inputs[0].shape) != _IMAGE_DIMS or preprocess.mask:
        return {}, "Model API feeds one image input"
    if preprocess.channels != _COLOURS:
        return {}, "Model API feeds three channels, and this model takes grey images"
    if manifest.recipe.model.size_range is not None:
        return {}, "Model API does not resize for a range of image sizes"
    geometry = _describe_geometry(preprocess)
    if not geometry:
        return (
            {},
            f"Model API crops or pads in another way than this model's preprocessing (resize: {preprocess.resize})",
        )
    return {
        "model_type": "Classification",
        "task_type": "classification",
        **({"labels": " ".join(_join_words(label) for label in manifest.labels)} if manifest.labels else {}),
        "topk": str(reading.top_k),
        "reverse_input_channels": str(preprocess.channel_order == "rgb"),
        **geometry,
        **_describe_arithmetic(manifest),
    }, ""


def _describe_arithmetic(manifest: Manifest) -> dict[str, str]:
    """Return mean and scale for bytes, unless both are inside the weights."""
    if manifest.recipe.target.input != "normalized":
        return {}
    mean, std = manifest.preprocess.mean, manifest.preprocess.std
    return {
        "mean_values": " ".join(f"{value * MAX_BYTE:.9g}" for value in mean),
        "scale_values": " ".join(f"{value * MAX_BYTE:.9g}" for value in std),
    }


def _describe_geometry(preprocess: Preprocess) -> dict[str, str]:
    """Return how images are resized, or nothing if Model API has no such way."""
    filters = {"interpolation_mode": _FILTERS.get(preprocess.interpolation, "LINEAR")}
    if preprocess.resize == "letterbox":
        (fill, *others) = set(fill_bytes(preprocess))
        fits = (
            not others
            and preprocess.padding == "centre"
            and preprocess.enlarge
            and preprocess.size_divisor == 1
            and not preprocess.shortest_edge
            and not preprocess.longest_edge
            and size_before_crop(preprocess) == preprocess.size
        )
        return {"resize_type": "fit_to_window_letterbox", "pad_value": str(fill), **filters} if fits else {}
    if size_before_crop(preprocess) != preprocess.size:
        return {}
    return {"resize_type": "standard", **filters} if preprocess.resize == "exact" else {"resize_type": "crop"}


def _join_words(label: str) -> str:
    """Return a label without spaces, because spaces separate labels."""
    return "_".join(label.split())
