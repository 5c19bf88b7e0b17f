"""Match the rows of outputs that are sets: detections that a model selects by score."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from vitdeploy.session import Array

_MOST_ROWS = 4096
"""Rows that are matched: the cost is a matrix of their squares."""


def match_rows(
    reference: Mapping[str, Array], other: Mapping[str, Array], selected: Mapping[str, int], batch: int
) -> tuple[dict[str, Array], int]:
    """Return `other` with each row in the place of that row of the reference that it belongs to.

    All outputs of `selected` move together, image by image: a row is one detection, with its class scores and its box.
    The assignment makes the sum of squared differences smallest, each output by its own scale. Every row is used once,
    so a wrong box, a missing detection and a permuted class stay as visible as before.

    Args:
        reference: the reference's outputs by name.
        other: the outputs to compare, with the same names and shapes.
        selected: the outputs whose rows are a set, with the axis of the rows.
        batch: the number of images.

    Returns:
        The outputs, and how many rows have moved.
    """
    from scipy.optimize import linear_sum_assignment

    matched, moved = dict(other), 0
    for names in _group_by_rows(reference, selected):
        copies = {name: other[name].copy() for name in names}
        targets, sources, rows = (
            [_by_image(side[name], selected[name], batch) for name in names] for side in (reference, other, copies)
        )
        scales = [float(np.abs(reference[name]).max(initial=0.0)) or 1.0 for name in names]
        for image in range(len(targets[0])):
            one, two = (
                np.concatenate(
                    [part[image].reshape(len(part[image]), -1) / s for part, s in zip(side, scales, strict=True)],
                    axis=1,
                )
                for side in (targets, sources)
            )
            _, order = linear_sum_assignment(_squared_distances(one, two))
            moved += int((order != np.arange(len(order))).sum())
            for part, source in zip(rows, sources, strict=True):
                part[image] = source[image][order]
        matched |= copies
    return matched, moved


def _group_by_rows(reference: Mapping[str, Array], selected: Mapping[str, int]) -> list[list[str]]:
    """Group the outputs of one selection: those with the same number of rows."""
    groups: dict[int, list[str]] = {}
    for name, axis in selected.items():
        if name in reference and axis < reference[name].ndim and reference[name].shape[axis] <= _MOST_ROWS:
            groups.setdefault(reference[name].shape[axis], []).append(name)
    return list(groups.values())


def _by_image(value: Array, axis: int, batch: int) -> Array:
    """Return a view (images, rows, …). Without an axis for the images it is that of one image."""
    place = next((a for a in range(value.ndim) if a != axis and value.shape[a] == batch), None)
    if place is None:
        return np.moveaxis(value, axis, 0)[None]
    return np.moveaxis(value, (place, axis), (0, 1))


def _squared_distances(one: Array, two: Array) -> Array:
    """Return the squared distance of each row of `one` to each of `two`."""
    a, b = one.astype(np.float64), two.astype(np.float64)
    distances: Array = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
    return distances
