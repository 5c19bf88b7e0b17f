"""The places of keypoints in heatmaps, between the pixels."""

from __future__ import annotations

import numpy as np

from vitdeploy.session import Array

_QUARTER = 0.25
_SIGMA, _RADIUS = 0.8, 1  # of the smoothing before the refinement, as in ViTPose's and transformers' post-processing
_LEAST, _MOST = 0.001, 50.0  # the range whose logarithm is taken, from the same place
_MAX_STEP = 1.0  # pixels; a larger step leaves the neighbourhood that the parabola was fitted to


def find_peaks(heatmaps: Array) -> tuple[Array, Array]:
    """Return the highest pixel of each heatmap (…, h, w), as column and row (…, 2), and its value (…,)."""
    flat = heatmaps.reshape(*heatmaps.shape[:-2], -1)
    rows, columns = np.divmod(flat.argmax(axis=-1), heatmaps.shape[-1])
    return np.stack([columns, rows], axis=-1), flat.max(axis=-1).astype(np.float64)


def refine_by_quarter(heatmaps: Array, peaks: Array) -> Array:
    """Move peaks by a quarter of a pixel towards the higher neighbour in each direction, (k, 2).

    Newell, Yang & Deng 2016, "Stacked Hourglass Networks"; Sun et al. 2019 (HRNet). A peak on the border stays.
    """
    refined = peaks.astype(np.float64)
    for index, (column, row) in enumerate(peaks):
        around = _cut(heatmaps[index], column, row)
        if around is not None:
            refined[index] += _QUARTER * np.sign([around[1, 2] - around[1, 0], around[2, 1] - around[0, 1]])
    return refined


def refine_by_distribution(heatmaps: Array, peaks: Array) -> Array:
    """Move peaks to the maximum of a Gaussian through their neighbourhood, (k, 2).

    One step of Newton's method on the logarithm of the smoothed heatmap: Zhang et al. 2020, "Distribution-Aware
    Coordinate Representation for Human Pose Estimation" (DARK), as ViTPose applies it. Where that fits no maximum, on a
    border or a plateau, the peak stays.
    """
    refined = peaks.astype(np.float64)
    for index, (column, row) in enumerate(peaks):
        around = _cut(np.log(np.clip(_smooth(heatmaps[index]), _LEAST, _MOST)), column, row)
        if around is None:
            continue
        slope = np.array([around[1, 2] - around[1, 0], around[2, 1] - around[0, 1]]) / 2
        middle = 2 * around[1, 1]
        across, down = around[1, 0] - middle + around[1, 2], around[0, 1] - middle + around[2, 1]
        mixed = (around[2, 2] - around[2, 0] - around[0, 2] + around[0, 0]) / 4
        determinant = across * down - mixed * mixed
        if across < 0 and determinant > 0:
            step = -np.array([down * slope[0] - mixed * slope[1], across * slope[1] - mixed * slope[0]]) / determinant
            refined[index] += step if np.abs(step).max() <= _MAX_STEP else 0.0
    return refined


def _cut(heatmap: Array, column: int, row: int) -> Array | None:
    """Return the 3x3 pixels around a place; None on the border."""
    inside = 0 < row < heatmap.shape[0] - 1 and 0 < column < heatmap.shape[1] - 1
    return heatmap[row - 1 : row + 2, column - 1 : column + 2].astype(np.float64) if inside else None


def _smooth(heatmap: Array) -> Array:
    from scipy.ndimage import gaussian_filter

    smooth: Array = gaussian_filter(heatmap.astype(np.float64), sigma=_SIGMA, radius=_RADIUS)
    return smooth
