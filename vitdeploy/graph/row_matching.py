"""Match the rows of outputs that are sets: detections that a model selects by score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from vitdeploy.session import Array

_MOST_ROWS = 4096
"""Rows that are matched: the cost is a matrix of their squares."""


class Edge(NamedTuple):
    """The edge of the selection of one image.

    Attributes:
        rows: how many of the last selected rows have a score that rounding may put behind one that is not selected.
        others: how many that are not selected have such a score.
    """

    rows: int
    others: int


def match_rows(
    reference: Mapping[str, Array],
    other: Mapping[str, Array],
    selected: Mapping[str, int],
    batch: int,
    edges: Sequence[Edge] = (),
) -> tuple[dict[str, Array], int]:
    """Return `other` with each row in the place of that row of the reference that it belongs to.

    All outputs of `selected` move together, image by image: a row is one detection, with its class scores and its box.
    The assignment makes the sum of distances smallest, each output by its own scale. (Of their squares, one row without
    a partner would be matched with a chain of others.) Every row is used once,
    so a wrong box, a missing detection and a permuted class stay as visible as before. Only rows at the edge of the
    selection may be others: as many as rounding may exchange are left out of the comparison, if they differ most.

    Args:
        reference: the reference's outputs by name.
        other: the outputs to compare, with the same names and shapes.
        selected: the outputs whose rows are a set, with the axis of the rows.
        batch: the number of images.
        edges: the edge of the selection of each image; empty if no row may be exchanged.

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
            _, order = linear_sum_assignment(_distances(one, two))
            moved += int((order != np.arange(len(order))).sum())
            exchanged = _find_exchanged(one, two[order], edges[image]) if image < len(edges) else []
            for part, source, target in zip(rows, sources, targets, strict=True):
                part[image] = source[image][order]
                part[image][exchanged] = target[image][exchanged]
        matched |= copies
    return matched, moved


def _group_by_rows(reference: Mapping[str, Array], selected: Mapping[str, int]) -> list[list[str]]:
    """Group the outputs of one selection: those with the same number of rows."""
    groups: dict[int, list[str]] = {}
    for name, axis in selected.items():
        if name in reference and axis < reference[name].ndim and reference[name].shape[axis] <= _MOST_ROWS:
            groups.setdefault(reference[name].shape[axis], []).append(name)
    return list(groups.values())


def take_common_rows(reference: Array, other: Array, axis: int, indices: tuple[Array, Array]) -> tuple[Array, Array]:
    """Return the rows that both sides have selected, in the order of the reference; image by image in one row each.

    Args:
        reference: the reference's tensor.
        other: the other tensor, of the same shape.
        axis: the axis of the rows.
        indices: what each side has selected, (images, rows).
    """
    sides: tuple[list[Array], list[Array]] = ([], [])
    images = [_by_image(value, axis, len(indices[0])) for value in (reference, other)]
    for image, (one, two) in enumerate(zip(*indices, strict=True)):
        _, *places = np.intersect1d(one, two, return_indices=True)
        order = np.argsort(places[0])
        for side, values, place in zip(sides, images, places, strict=True):
            side.append(values[image][place[order]].reshape(-1))
    return np.concatenate(sides[0]), np.concatenate(sides[1])


def _find_exchanged(one: Array, two: Array, edge: Edge) -> list[int]:
    """Return the rows at the edge of the selection that differ most: as many as there are others in their place."""
    first = len(one) - edge.rows
    distances = np.square(one[first:].astype(np.float64) - two[first:]).sum(axis=1)
    return [first + int(place) for place in np.argsort(-distances)[: edge.others]]


def _by_image(value: Array, axis: int, batch: int) -> Array:
    """Return a view (images, rows, …). Without an axis for the images it is that of one image."""
    place = next((a for a in range(value.ndim) if a != axis and value.shape[a] == batch), None)
    if place is None:
        return np.moveaxis(value, axis, 0)[None]
    return np.moveaxis(value, (place, axis), (0, 1))


def _distances(one: Array, two: Array) -> Array:
    """Return the distance of each row of `one` to each of `two`."""
    a, b = one.astype(np.float64), two.astype(np.float64)
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
    distances: Array = np.sqrt(np.maximum(squares, 0))
    return distances
