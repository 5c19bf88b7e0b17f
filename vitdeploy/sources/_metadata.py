"""Facts about a model that its file carries as text beside the graph: class names, size, preprocessing."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vitdeploy.data.label_file import order_names
from vitdeploy.frozen import replace
from vitdeploy.recipe import Preprocess
from vitdeploy.sources import _image

_LABELS = ("names", "class_names", "id2label", "label_names", "labels", "classes", "categories", "class_to_idx")
_SIZES = ("imgsz", "image_size", "img_size", "input_size")
_MEANS, _STDS = ("mean", "image_mean"), ("std", "image_std")
_MOST_CHARACTERS = 4 << 20
_BYTES = 255.0
_GREY = (114, 114, 114)  # ultralytics pads with it
_RANGES = {  # NominalPixelRange of the ONNX standard (MetadataProps.md) -> mean and std for pixels from 0 to 1
    "NominalRange_0_255": (0.0, 1 / _BYTES),
    "Normalized_0_1": (0.0, 1.0),
    "Normalized_1_1": (0.5, 0.5),
}


@dataclass(frozen=True)
class FileFacts:
    """The facts in a file about its model.

    Attributes:
        labels: class names in the order of the outputs.
        size: height and width of the input.
        steps: keys of `Preprocess` that the file gives.
        read: the facts that it gives, in words.
    """

    labels: tuple[str, ...] | None = None
    size: tuple[int, int] | None = None
    steps: Mapping[str, Any] = field(default_factory=dict)
    read: tuple[str, ...] = ()

    def prepare(
        self, size: tuple[int, int], channels: int, frames: int | None = None
    ) -> tuple[Preprocess, dict[str, str]]:
        """Return the preprocessing for a model of this size and these channels, and what of it is only assumed.

        Args:
            size: height and width.
            channels: 1 or 3.
            frames: the number of frames of a clip; None for images.

        Returns:
            The preprocessing, and for each key that the file does not give the assumption in words.
        """
        steps = {key: value for key, value in self.steps.items() if key != "fill" or len(value) == channels}
        if any(len(steps[key]) != channels for key in ("mean", "std") if key in steps):
            steps = {key: value for key, value in steps.items() if key not in ("mean", "std")}
        statistics = "mean and std 0.5" if channels == 1 else "ImageNet's mean and std"
        assumed = {
            "mean": statistics,
            "interpolation": "bicubic interpolation",
            "resize": "the shortest side resized and the centre cropped",
        }
        assumed = {key: text for key, text in assumed.items() if key not in steps}
        return replace(_image.default_preprocess(size, channels), **steps, frames=frames), assumed


def read_metadata(entries: Mapping[str, str]) -> FileFacts:
    """Return the facts in the metadata of a file. What cannot be understood is left out.

    Known are the keys of ultralytics (`names`, `imgsz`, `task`), those of the ONNX standard for images
    (`Image.BitmapPixelFormat`, `Image.NominalPixelRange`), and usual names, such as `class_names` and `mean`.
    """
    values = {key: _parse(text) for key, text in entries.items() if len(text) <= _MOST_CHARACTERS}
    labels = next((names for key in _LABELS if (names := _names(values.get(key))) is not None), None)
    size = next((pair for key in _SIZES if (pair := _size(values.get(key))) is not None), None)
    steps = {**_ultralytics(entries), **_image_metadata(entries), **_statistics(values)}
    read = [f"{len(labels)} labels"] if labels else []
    read += [f"size {size[0]}x{size[1]}"] if size else []
    read += [name for name, key in (("mean and std", "mean"), ("the way to resize", "resize")) if key in steps]
    read += ["the order of the colours"] if "channel_order" in steps else []
    return FileFacts(labels, size, steps, tuple(read))


def _parse(text: str) -> Any:
    """Return the value that a text is: JSON, or a literal of Python, which ultralytics writes; else the text."""
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
    return text


def _names(value: Any) -> tuple[str, ...] | None:
    if isinstance(value, str):
        value = value.strip().splitlines() if "\n" in value.strip() else [part.strip() for part in value.split(",")]
        return order_names(value) if len(value) > 1 else None
    return order_names(value)


def _size(value: Any) -> tuple[int, int] | None:
    if isinstance(value, str) and (match := re.fullmatch(r"([0-9]{1,6})\s*[x,]\s*([0-9]{1,6})", value.strip())):
        value = [int(match[1]), int(match[2])]
    if isinstance(value, Mapping):
        value = [value.get("height"), value.get("width")]
    if isinstance(value, int) and not isinstance(value, bool):
        value = [value, value]
    if not isinstance(value, (list, tuple)) or len(value) not in (2, 3):
        return None
    height, width = value[-2:]
    whole = all(isinstance(side, int) and not isinstance(side, bool) and 0 < side < 1 << 20 for side in (height, width))
    return (height, width) if whole else None


def _statistics(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return mean and std for pixels from 0 to 1; files have them for 0 to 255 too."""
    mean, std = (_numbers(next((values[key] for key in keys if key in values), None)) for keys in (_MEANS, _STDS))
    if not mean or len(mean) != len(std) or min(std) <= 0 or min(mean) < 0 or max(mean + std) > _BYTES:
        return {}
    scale = _BYTES if max(mean + std) > 1 else 1.0
    return {"mean": tuple(v / scale for v in mean), "std": tuple(v / scale for v in std)}


def _numbers(values: Any) -> tuple[float, ...]:
    """Return one number for each channel; nothing if the value is something else."""
    if not isinstance(values, (list, tuple)) or len(values) not in (1, 3):
        return ()
    known = all(isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v) for v in values)
    return tuple(float(v) for v in values) if known else ()


def _ultralytics(entries: Mapping[str, str]) -> dict[str, Any]:
    """Return the steps of ultralytics: pixels from 0 to 1; a letterbox on grey, but for classification a crop."""
    if entries.get("author") != "Ultralytics":
        return {}
    common = {"mean": (0.0,) * 3, "std": (1.0,) * 3, "interpolation": "bilinear"}
    if entries.get("task") == "classify":
        return {**common, "resize": "shortest"}
    return {**common, "resize": "letterbox", "fill": _GREY}


def _image_metadata(entries: Mapping[str, str]) -> dict[str, Any]:
    steps: dict[str, Any] = {}
    pixel_format = entries.get("Image.BitmapPixelFormat", "")
    if pixel_format in ("Bgr8", "Rgb8"):
        steps["channel_order"] = pixel_format[:3].lower()
    if (scale := _RANGES.get(entries.get("Image.NominalPixelRange", ""))) is not None:
        channels = 1 if pixel_format == "Gray8" else 3
        steps |= {"mean": (scale[0],) * channels, "std": (scale[1],) * channels}
    return steps
