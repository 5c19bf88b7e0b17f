"""Made-up rooms with exact depth: shapes that stand on a tiled floor in front of a wall.

Depth cannot be read from a colour. Where the floor meets the wall tells how the camera is tilted, and where a shape
meets the floor tells how far it is; shapes hide each other, tiles and light vary.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from vitdeploy.session import Array

SIDE = 112
FARTHEST = 10.0
"""Metres to the wall."""
_FOCAL = 100.0
"""Pixels: how many a metre has at a metre's distance."""
_EYE = 1.7
"""Metres from the floor to the camera."""
_HORIZON = (14, 44)
_NEAREST_FOOT = 2.6
_FARTHEST_FOOT = 8.5
_SHAPES = (2, 6)
_RADIUS = (0.25, 0.75)
"""Metres."""


def draw(number: int) -> tuple[Array, Array]:
    """Draw the scene of a number: an image, uint8 (112, 112, 3), and its depth in metres, float32 (112, 112)."""
    random = np.random.default_rng(number)
    rows, columns = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    horizon = random.uniform(*_HORIZON)
    with np.errstate(divide="ignore"):
        floor = np.where(rows > horizon, _FOCAL * _EYE / np.maximum(rows - horizon, 1e-6), np.inf)
    depth = np.minimum(floor, FARTHEST).astype(np.float32)
    image = np.where((floor < FARTHEST)[..., None], _tile(random, columns, depth), _paint_wall(random, rows, columns))
    distances = random.uniform(_NEAREST_FOOT, _FARTHEST_FOOT, random.integers(*_SHAPES, endpoint=True))
    for distance in sorted(distances, reverse=True):  # the nearer one in front
        radius = random.uniform(*_RADIUS) * _FOCAL / distance
        middle = horizon + _FOCAL * _EYE / distance - radius, random.uniform(0, SIDE)
        away = np.abs(rows - middle[0]), np.abs(columns - middle[1])
        reach = (np.maximum(*away), np.hypot(*away), away[0] + away[1])[random.integers(3)]
        inside = reach <= radius
        stripes = np.sin(random.uniform(0.1, 0.6) * (rows + random.choice([-1, 0, 1]) * columns))
        colour = random.uniform(30, 230, 3) + random.uniform(0, 25) * stripes[..., None]
        image[inside], depth[inside] = colour[inside], distance
    light = random.uniform(0.6, 1.1) + random.uniform(-0.25, 0.25) * (columns / SIDE - 0.5)
    image = image * light[..., None] + random.normal(0, random.uniform(2, 10), image.shape)
    return image.clip(0, 255).astype(np.uint8), depth


def _tile(random: np.random.Generator, columns: Array, depth: Array) -> Array:
    """Return the colours of a floor with square tiles, (112, 112, 3)."""
    tile, turn = random.uniform(0.4, 0.9), random.uniform(0, 1)
    sideways = (columns - SIDE / 2) * depth / _FOCAL
    odd = (np.floor(sideways / tile + turn) + np.floor(depth / tile)) % 2
    colours: Array = random.uniform(70, 190, 3) + random.uniform(-50, 50) * odd[..., None]
    return colours


def _paint_wall(random: np.random.Generator, rows: Array, columns: Array) -> Array:
    """Return the colours of a wall with a pattern, (112, 112, 3)."""
    pattern = np.sin(columns * random.uniform(0.05, 0.5) + random.uniform(0, 6)) * random.uniform(0, 20)
    colours: Array = random.uniform(60, 220, 3) + (pattern + random.uniform(-0.5, 0.5) * rows)[..., None]
    return colours


def write(folder: Path, count: int, first: int) -> Path:
    """Write the scenes of the numbers from `first` on, as `images/` and `depth/`; return the folder."""
    for name in ("images", "depth"):
        (folder / name).mkdir(parents=True)
    for number in range(count):
        image, depth = draw(first + number)
        Image.fromarray(image).save(folder / "images" / f"{number:04}.png")
        np.save(folder / "depth" / f"{number:04}.npy", depth)
    return folder
