"""What both Python examples share: manifest.json, preprocessing and post-processing, with NumPy and Pillow alone.

`prepare` gives the bytes that vitdeploy's own preprocessing gives, and `list_classes` and `list_boxes` its answers.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

Arrays = dict[str, np.ndarray]


class Model:
    """The manifest of an artifact. Fields of `preprocess` and `reading` are explained in vitdeploy's docs/python.md."""

    def __init__(self, folder: str) -> None:
        manifest = json.loads((Path(folder) / "manifest.json").read_text(encoding="utf-8"))
        self.usage, self.preprocess, self.labels = manifest["usage"], manifest["preprocess"], manifest["labels"] or []
        self.reading = self.usage.get("post_processing")
        if manifest["runs"] is None:
            raise SystemExit(f"{folder} is a bundle: run vitdeploy compile first")
        if self.reading is None:
            raise SystemExit("this example reads classes and boxes, and the model has another task")
        if len(self.usage["inputs"]) != 1 or len(self.usage["inputs"][0]["shape"]) != 4:
            raise SystemExit("this example feeds images only")
        self.file = Path(folder) / manifest["runs"]
        self.input = self.usage["inputs"][0]["name"]
        self.outputs = [output["name"] for output in self.usage["outputs"]]
        self.form = manifest["recipe"]["target"]["input"]
        self.batch = manifest["recipe"]["target"]["batch"]["min"]

    def label(self, index: int) -> str:
        """Return the name of a class, or its index if it has none."""
        return self.labels[index] if index < len(self.labels) else str(index)


def prepare(image: Image.Image, model: Model) -> np.ndarray:
    """Turn an upright RGB image into the input of a batch that repeats it, (batch, planes, height, width)."""
    p = model.preprocess
    rows, columns = p["size"]
    height, width, top, left = find_place(image.height, image.width, p)
    if p["channels"] == 1:
        image = image.convert("L")
    if (height, width) != (image.height, image.width):
        if not p["antialias"]:
            raise ValueError("this example resizes with antialiasing only")
        image = image.resize((width, height), Image.Resampling[p["interpolation"].upper()])
    pixels = np.asarray(image).reshape(height, width, -1).transpose(2, 0, 1)
    if p["channel_order"] == "bgr":
        pixels = pixels[::-1]
    fill = p["fill"] or [min(max(round(255 * mean), 0), 255) for mean in p["mean"]]
    mean, std = p["mean"], p["std"]
    if p["mask"]:
        pixels = np.concatenate([pixels, np.full((1, height, width), 255, np.uint8)])
        fill, mean, std = [*fill, 0], [*mean, 0.0], [*std, 1.0]
    canvas = np.empty((len(fill), rows, columns), np.uint8)
    canvas[:] = np.array(fill, np.uint8)[:, None, None]
    part = pixels[:, max(top, 0) : max(top, 0) + rows, max(left, 0) : max(left, 0) + columns]
    y, x = max(-top, 0), max(-left, 0)
    canvas[:, y : y + part.shape[1], x : x + part.shape[2]] = part
    planes = canvas if model.form == "uint8" else canvas.astype(np.float32)
    if model.form == "normalized":
        mean, std = (np.array(values, np.float32)[:, None, None] for values in (mean, std))
        planes = (planes / np.float32(255) - mean) / std
    return np.ascontiguousarray(np.stack([planes] * model.batch))


def find_place(height: int, width: int, p: dict[str, Any]) -> tuple[int, int, int, int]:
    """Return height and width after resizing, and top and left of the input in it (below 0 where it is padded)."""
    target = p["resize_to"] or [max(1, int(side / p["crop_pct"] + 1e-6)) for side in p["size"]]
    if p["resize"] == "letterbox":
        resized = fit_letterbox(height, width, target, p)
    elif p["resize"] == "exact":
        resized = target
    elif target[0] == target[1]:
        side = target[0]
        resized = (side, int(side * width / height)) if height <= width else (int(side * height / width), side)
    else:
        ratio = min(height / target[0], width / target[1])
        resized = max(target[0], round(height / ratio)), max(target[1], round(width / ratio))

    def corner(side: int, size: int) -> int:
        if side < size:
            return -((size - side) // 2) if p["padding"] == "centre" else 0
        return (side - size) // 2 if p["crop_rounding"] == "down" else round((side - size) / 2)

    return (*resized, *(corner(side, size) for side, size in zip(resized, p["size"], strict=True)))


def fit_letterbox(height: int, width: int, limit: list[int], p: dict[str, Any]) -> list[int]:
    """Scale the sides with their ratio kept: to the edges that are asked for, at most to `limit`."""
    divisor = p["size_divisor"]
    rounders: dict[str, Callable[[float], int]] = {
        "down": lambda side: int(side) // divisor,
        "up": lambda side: -(-int(side) // divisor),
        "nearest": lambda side: int(side / divisor + 0.5),
        "even": lambda side: round(side / divisor),
    }

    def to_multiples(*sides: float) -> list[int]:
        return [max(1, rounders[p["size_rounding"]](side)) * divisor for side in sides]

    shortest, longest = p["shortest_edge"], p["longest_edge"]
    if shortest or longest:
        rounded = to_multiples(*scale_to_edges(height, width, shortest, longest))
        if rounded[0] <= limit[0] and rounded[1] <= limit[1]:
            return rounded
    if not shortest and not longest and not p["enlarge"] and height <= limit[0] and width <= limit[1]:
        sides = to_multiples(height, width)
    elif p["size_rounding"] == "even":
        ratio = max(height / limit[0], width / limit[1])
        sides = to_multiples(height / ratio, width / ratio)
    else:
        scale = min(limit[0] / height, limit[1] / width)
        sides = to_multiples(height * scale, width * scale)
    return [min(side, max(most // divisor, 1) * divisor) for side, most in zip(sides, limit, strict=True)]


def scale_to_edges(height: int, width: int, shortest: int | None, longest: int | None) -> tuple[float, float]:
    """Scale the sides so that the shorter one becomes `shortest`, or the longer one `longest` if that is smaller."""
    short, long = min(height, width), max(height, width)
    if shortest is None:
        scale = (longest or long) / long
        return height * scale, width * scale
    edge, factor = shortest, float(shortest)
    if longest is not None and long / short * shortest > longest:
        factor = longest * short / long
        edge = round(factor)
    if short == edge:
        return height, width
    return (factor * height / width, edge) if width < height else (edge, factor * width / height)


def activate(scores: np.ndarray, activation: str) -> np.ndarray:
    """Turn logits into probabilities, along the last axis."""
    scores = scores.astype(np.float64)
    if activation == "sigmoid":
        return 1 / (1 + np.exp(-scores))
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def list_classes(model: Model, outputs: Arrays) -> list[str]:
    """Return a line for each class: probability, index, label."""
    scores = outputs[model.reading["scores"]][0].astype(np.float64)
    are_probabilities = scores.min() >= 0 and scores.max() <= 1 and abs(scores.sum() - 1) <= 0.1
    shares = scores if are_probabilities else activate(scores, model.reading["activation"])
    best = np.argsort(-shares, kind="stable")[: model.reading["top_k"]]
    return [f"{shares[index]:.6f}  {index}  {model.label(index)}" for index in best]


def list_boxes(model: Model, outputs: Arrays, height: int, width: int) -> list[str]:
    """Return a line for each box: score; left, top, right and bottom in pixels of the image; index, label."""
    reading = model.reading
    scores, boxes = outputs[reading["scores"]][0], outputs[reading["boxes"]][0].astype(np.float64)
    if reading["boxes_layout"] == "4, queries":
        boxes = boxes.T
    shares = activate(scores, reading["activation"])
    if reading["no_object"] is not None:
        shares = np.delete(shares, reading["no_object"], axis=1)
    if reading["candidates"] == "every class":
        queries, classes = np.divmod(np.arange(shares.size), shares.shape[1])
    else:
        queries, classes = np.arange(len(shares)), shares.argmax(axis=1)
    best = shares[queries, classes]
    tall, wide, top, left = find_place(height, width, model.preprocess)
    rows, columns = model.preprocess["size"]
    lines = []
    for i in np.argsort(-best, kind="stable")[: reading["top_k"]]:
        if best[i] < reading["threshold"]:
            break
        x, y, w, h = boxes[queries[i]]
        xs = [(left + share * columns) * width / wide for share in (x - w / 2, x + w / 2)]
        ys = [(top + share * rows) * height / tall for share in (y - h / 2, y + h / 2)]
        place = f"{xs[0]:.2f} {ys[0]:.2f} {xs[1]:.2f} {ys[1]:.2f}"
        lines.append(f"{best[i]:.6f}  {place}  {classes[i]}  {model.label(classes[i])}")
    return lines


def answer_images(model: Model, paths: list[str], run: Callable[[np.ndarray], Arrays]) -> int:
    """Run each image and print its answer. A damaged image is named, the others are answered. Return the exit code."""
    exit_code = 0
    for path in paths:
        try:
            with Image.open(path) as file:
                image = ImageOps.exif_transpose(file).convert("RGB")
        except OSError as error:
            print(f"{path}: {error}", file=sys.stderr)
            exit_code = 1
            continue
        outputs = run(prepare(image, model))
        is_detector = model.reading["boxes"] is not None
        lines = list_boxes(model, outputs, image.height, image.width) if is_detector else list_classes(model, outputs)
        print(path, *(f"  {line}" for line in lines), sep="\n")
    return exit_code
