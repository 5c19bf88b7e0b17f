"""Made-up scenes with exact labels: coloured shapes on a floor, with their masks, boxes and depths.

Nothing is annotated by hand, so a label is never wrong, and a small model learns it in seconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vitdeploy.session import Array

NAMES = ("floor", "square", "disc", "diamond")
HEIGHT, WIDTH = 48, 64
NEAREST, FARTHEST = 2.0, 10.0  # metres: the floor rises to the horizon, a shape stands where it meets the floor
_COLOURS = np.array([[0, 0, 0], [200, 50, 40], [40, 180, 60], [50, 70, 210]])


@dataclass(frozen=True)
class Scene:
    """An image (height, width, 3) and what is true about it; boxes are (left, top, width, height, class)."""

    image: Array
    mask: Array
    depth: Array
    boxes: tuple[tuple[int, int, int, int, int], ...]


def scene(seed: int, *, shapes: int | None = None, kind: int | None = None) -> Scene:
    """One to three shapes that may hide each other, the nearer one in front."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    depth = FARTHEST - (FARTHEST - NEAREST) * rows / (HEIGHT - 1)
    mask = np.zeros((HEIGHT, WIDTH), np.int64)
    for _ in range(shapes or int(rng.integers(1, 4))):
        name, radius = kind or int(rng.integers(1, 4)), int(rng.integers(7, 12))
        middle = int(rng.integers(radius, HEIGHT - radius)), int(rng.integers(radius, WIDTH - radius))
        away = np.abs(rows - middle[0]), np.abs(columns - middle[1])
        inside = {1: np.maximum(*away) <= radius, 2: np.hypot(*away) <= radius, 3: away[0] + away[1] <= radius}[name]
        where = depth[middle[0] + radius - 1, 0]
        seen = inside & (where < depth)
        mask[seen], depth[seen] = name, where
    boxes = tuple(_box(mask == name, name) for name in range(1, 4) if (mask == name).sum() > 30)
    floor = (230 - 12 * depth)[..., None]
    image = np.where(mask[..., None] > 0, _COLOURS[mask], floor) + rng.normal(0, 12, (HEIGHT, WIDTH, 3))
    return Scene(image.clip(0, 255).astype(np.uint8), mask, depth.astype(np.float32), boxes)


def _box(where: Array, name: int) -> tuple[int, int, int, int, int]:
    rows, columns = np.flatnonzero(where.any(axis=1)), np.flatnonzero(where.any(axis=0))
    return (
        int(columns[0]), int(rows[0]), int(columns[-1] - columns[0] + 1), int(rows[-1] - rows[0] + 1), name - 1
    )  # fmt: skip


def write(root: Path, count: int, *, first: int = 0, shapes: int | None = None) -> Path:
    """A folder with all three dense forms: images/ beside masks/, depth/ and annotations.json."""
    for name in ("images", "masks", "depth"):
        (root / name).mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, one in enumerate(_scenes(count, first, shapes)):
        Image.fromarray(one.image).save(root / "images" / f"{number:04}.png")
        Image.fromarray(one.mask.astype(np.uint8)).save(root / "masks" / f"{number:04}.png")
        np.save(root / "depth" / f"{number:04}.npy", one.depth)
        images.append({"id": number, "file_name": f"{number:04}.png", "height": HEIGHT, "width": WIDTH})
        for *box, kind in one.boxes:
            facts = {"id": len(annotations) + 1, "image_id": number, "category_id": kind, "bbox": box, "iscrowd": 0}
            annotations.append({**facts, "area": box[2] * box[3]})
    categories = [{"id": index, "name": name} for index, name in enumerate(NAMES[1:])]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations.json").write_text(json.dumps(content))
    return root


def write_classes(root: Path, count: int, *, first: int = 0) -> Path:
    """A folder with one sub-folder for each shape, one shape in each image."""
    for kind in (1, 2, 3):
        (root / NAMES[kind]).mkdir(parents=True)
        for number in range(count):
            image = scene(first + number, shapes=1, kind=kind).image
            Image.fromarray(image).save(root / NAMES[kind] / f"{number:04}.png")
    return root


def _scenes(count: int, first: int, shapes: int | None) -> Iterator[Scene]:
    return (scene(first + number, shapes=shapes) for number in range(count))
