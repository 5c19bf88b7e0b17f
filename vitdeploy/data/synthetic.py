"""Made-up images and clips. Activations are realistic, as their statistics are those of photographs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vitdeploy.data.frames import clip_pixels
from vitdeploy.data.preprocess import to_pixels
from vitdeploy.recipe import Preprocess
from vitdeploy.session import Array

_SPECTRUM_EXPONENT = 1.0
"""Amplitude falls as 1 / f in natural images (Field 1987, J. Opt. Soc. Am. A 4, 2379)."""
_SHARED = 0.8
"""Share of the structure that the three colours have in common."""
_CONTRAST = 55.0  # standard deviation in bytes, about that of a photograph
_MIDDLE = 118.0  # mean byte of ImageNet
_SPEED = 0.03  # of a side, from one frame to the next


@dataclass(frozen=True)
class Look:
    """The look of made-up images. Code that branches on an image takes other ways for other looks.

    Attributes:
        name: the look in words.
        middle: the mean byte.
        contrast: the standard deviation in bytes.
        shared: the share of the structure that the three colours have in common; 1 is grey.
        stretch: height and width before preprocessing, relative to the model's size.
    """

    name: str
    middle: float = _MIDDLE
    contrast: float = _CONTRAST
    shared: float = _SHARED
    stretch: tuple[float, float] = (1.0, 1.0)


PLAIN = Look("plain images")
LOOKS = (
    PLAIN,
    Look("bright and wide images", middle=215.0, contrast=30.0, stretch=(1.15, 1.6)),
    Look("dark and tall images", middle=30.0, contrast=20.0, shared=0.5, stretch=(1.7, 1.2)),
    Look("grey images of high contrast", contrast=110.0, shared=1.0, stretch=(1.0, 1.35)),
)
"""Different means, contrasts, colours and shapes. All but the first are not square before preprocessing if the model's
size is square."""


def natural_image(seed: int, preprocess: Preprocess, batch: int, look: Look = PLAIN) -> Array:
    """Generate a batch of 1/f noise: uint8 (batch, channels, height, width), or (batch, frames, …) for clips.

    Image number n depends on the seed, the look and n only, not on the size of the batch.
    """
    height, width = (round(stretch * side) for stretch, side in zip(look.stretch, preprocess.size, strict=True))
    images = (coloured_noise(seed, index, (height, width), look) for index in range(batch))
    if preprocess.frames is None:
        return np.stack([to_pixels(image, preprocess) for image in images])
    return np.stack([clip_pixels(move(image, preprocess.frames), preprocess) for image in images])


def move(image: Array, frames: int) -> list[Array]:
    """Return frames in which the image moves down and to the right, and comes back at the other side."""
    steps = [max(1, round(_SPEED * side)) for side in image.shape[:2]]
    return [np.roll(image, [number * step for step in steps], axis=(0, 1)) for number in range(frames)]


def coloured_noise(seed: int, index: int, size: tuple[int, int], look: Look = PLAIN) -> Array:
    """Generate one image of coloured 1/f noise without seams at its borders: uint8 (height, width, 3)."""
    height, width = size
    generator = np.random.default_rng((seed, index))
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    frequency[0, 0] = 1.0
    amplitude = frequency**-_SPECTRUM_EXPONENT
    amplitude[0, 0] = 0.0  # the mean is set below
    fields = []
    for _ in range(4):
        field = np.fft.irfft2(np.fft.rfft2(generator.standard_normal((height, width))) * amplitude, s=(height, width))
        fields.append(field / max(float(field.std()), np.finfo(np.float64).tiny))
    shared, *separate = fields
    colours = np.stack([look.shared * shared + np.sqrt(1 - look.shared**2) * colour for colour in separate], axis=-1)
    return np.clip(look.middle + look.contrast * colours, 0, 255).astype(np.uint8)
