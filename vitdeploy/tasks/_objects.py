"""Objects with scores and classes, whatever their outline: boxes or masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from vitdeploy.errors import DataError
from vitdeploy.session import Array
from vitdeploy.tasks import Values, WeightedMetrics, _coco, class_name

_PERCENT = 100.0
_SAME_OBJECT = 0.5  # two outlines with at least this overlap (IoU) are of one object
_SLACK = 0.8  # the partner of an object above the threshold needs only this share of the threshold
_MIN_MAP = 1.0  # percent; a reference with no more than this finds next to nothing


class Ranked(NamedTuple):
    """The best candidates of an image, highest score first: the query, the class and the score of each, (n,)."""

    queries: Array
    classes: Array
    scores: Array


def rank_candidates(scores: Array, limit: int, *, every_class: bool) -> Ranked:
    """Return the best candidates among scores (queries, classes).

    Args:
        scores: by query and class.
        limit: the number of candidates.
        every_class: True if each class of a query is a candidate, False if only the best one is.
    """
    if every_class:
        flat = scores.ravel()
        queries, classes = np.divmod(np.arange(flat.size), scores.shape[1])
    else:
        classes = scores.argmax(axis=1)
        queries = np.arange(len(classes))
        flat = scores[queries, classes]
    best = np.argsort(-flat, kind="stable")[:limit]
    return Ranked(queries[best], classes[best], flat[best])


def nearly_confident(scores: Array, confident: float) -> Array:
    """Return bool (n,): True for scores that can be those of a partner of a confident object."""
    nearly: Array = scores >= _SLACK * confident
    return nearly


def measure_agreement(
    scores: tuple[Array, Array], classes: tuple[Array, Array], overlaps: Array, confident: float
) -> float:
    """Return the F1 of the confident objects of both sides, matched with overlapping objects of the same class.

    An object just below the threshold can match one just above it. If neither side has a confident object, the scores
    of their best objects are compared.

    Args:
        scores: of the objects of each side, highest first.
        classes: of the objects of each side.
        overlaps: intersection over union, (objects of the first side, objects of the second side).
        confident: the threshold of the score.
    """
    sure = [side >= confident for side in scores]
    count = int(sure[0].sum() + sure[1].sum())
    if not count:
        best = [float(side.max(initial=0.0)) for side in scores]
        return 1 - abs(best[0] - best[1])
    nearly = [nearly_confident(side, confident) for side in scores]
    fits = np.where(classes[0][:, None] == classes[1][None], overlaps, 0.0)
    return (
        _count_matches(fits[np.ix_(sure[0], nearly[1])]) + _count_matches(fits.T[np.ix_(sure[1], nearly[0])])
    ) / count


def _count_matches(overlaps: Array) -> int:
    """Count the rows that match a column with enough overlap, the best one first. A column matches only once."""
    free = np.ones(overlaps.shape[1], dtype=bool)
    count = 0
    for row in overlaps:
        best = int(np.where(free, row, -1.0).argmax()) if len(row) else -1
        if best >= 0 and free[best] and row[best] >= _SAME_OBJECT:
            free[best] = False
            count += 1
    return count


def weigh_precision(values: Values, names: tuple[str, str, str]) -> WeightedMetrics:
    """Return a function for mAP in percent: over overlaps from 0.5 to 0.95, at 0.5, and at 0.75.

    The mean is over the classes that occur.

    Args:
        values: the statistics of `_coco`.
        names: of the three metrics.
    """
    average_precision = _coco.average_precision(dict(values))

    def compute(weights: Array) -> dict[str, float]:
        precision = average_precision(weights)
        present = ~np.isnan(precision[0])
        if not present.any():
            return dict.fromkeys(names, np.nan)
        by_overlap = _PERCENT * precision[:, present].mean(axis=1)
        at = {round(float(iou), 2): float(value) for iou, value in zip(_coco.IOUS, by_overlap, strict=True)}
        return dict(zip(names, (float(by_overlap.mean()), at[0.5], at[0.75]), strict=True))

    return compute


def find_low_precision(metrics: Mapping[str, float], name: str) -> list[str]:
    """Return a doubt if the reference finds next to nothing; `name` is the metric at an overlap of 0.5."""
    percent = metrics[name]
    if percent > _MIN_MAP:
        return []
    return [
        f"the reference reaches only {percent:.2f} % mAP at an overlap of 0.5: do the categories have the model's "
        "class indices or names, and is task.scores right for this model?"
    ]


def count_at_threshold(values: Values, threshold: float) -> Values:
    """Return the candidates with at least this score, those of them that match an object (IoU 0.5), and the objects."""
    counted = (values["score"] >= threshold) & ((values["ignored"] & 1) == 0)
    hits = counted & ((values["hit"] & 1) > 0)
    return {"hits": hits.sum(axis=1), "found": counted.sum(axis=1), "wanted": values["objects"].sum(axis=1)}


def summarize_classes(classes: Array, names: Sequence[str] | None) -> str:
    """Return the number of objects by class: `2 cat, 1 dog`."""
    kinds, counts = np.unique(classes.astype(int), return_counts=True)
    labels = None if names is None else tuple(names)
    shown = [f"{count} {class_name(int(kind), labels)}" for kind, count in zip(kinds, counts, strict=True)]
    return ", ".join(shown) or "nothing"


def check_classes(name: str, classes: Array, count: int) -> None:
    """Raise an error if the objects of image `name` have a class that a model with `count` classes does not have."""
    if len(classes) and not 0 <= classes.min() <= classes.max() < count:
        raise DataError(
            f"{name}: its classes go from {classes.min()} to {classes.max()}, the model has {count} classes",
            fix="Use the model's class indices as the ids of the categories, or its class names as their names.",
        )
