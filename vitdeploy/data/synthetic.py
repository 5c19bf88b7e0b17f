"""Made-up images for when there are none. Activations are realistic, as their statistics are those of photographs."""

from __future__ import annotations

import numpy as np

from vitdeploy.data.preprocess import to_pixels
from vitdeploy.recipe import Preprocess
from vitdeploy.session import Array

_SPECTRUM_EXPONENT = 1.0
"""Amplitude falls as 1 / f in natural images (Field 1987, J. Opt. Soc. Am. A 4, 2379)."""
_SHARED = 0.8
"""Share of the structure that the three colours have in common."""
_CONTRAST = 55.0  # standard deviation in bytes, about that of a photograph
_MIDDLE = 118.0  # mean byte of ImageNet


def natural_image(seed: int, preprocess: Preprocess, batch: int) -> Array:
    """Generate a batch of coloured 1/f noise: uint8 (batch, channels, height, width).

    Image number n depends on the seed and n only, not on the size of the batch.
    """
    return np.stack([to_pixels(_coloured_noise(seed, index, preprocess.size), preprocess) for index in range(batch)])


def _coloured_noise(seed: int, index: int, size: tuple[int, int]) -> Array:
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
    colours = np.stack([_SHARED * shared + np.sqrt(1 - _SHARED**2) * colour for colour in separate], axis=-1)
    return np.clip(_MIDDLE + _CONTRAST * colours, 0, 255).astype(np.uint8)
