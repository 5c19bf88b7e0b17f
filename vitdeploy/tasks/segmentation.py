"""Semantic segmentation: mean intersection over union, and pixel accuracy, over all pixels of the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from vitdeploy.data.labels import ClassMask, Label
from vitdeploy.errors import DataError
from vitdeploy.evidence.predictions import Answer, Region
from vitdeploy.session import Array
from vitdeploy.tasks import (
    Form,
    PerSample,
    Task,
    Values,
    Weigh,
    _outputs,
    check_count,
    finite_samples,
    name_of,
    share_line,
)
from vitdeploy.tasks._resize import best_classes

_PERCENT = 100.0
_SMALLEST_REGION = 0.001  # of the pixels: less is a speckle
_QUERIES, _QUERY_MASKS = "class_queries_logits", "masks_queries_logits"
_FIX = "Give a model for semantic segmentation, or name its output in task.output."


class Segmentation(Task):
    """A class for each pixel, out of (batch, classes, h, w) scores of any resolution.

    Scores are enlarged bilinearly to the size of the mask, and the best class counts. MaskFormer's and Mask2Former's
    queries are combined into such scores first.

    Attributes:
        output: names the scores where the model has several outputs; by default "logits", "out", else the first 4-D
            one.
        ignore: the value in masks that no prediction is held against.
        reduce_labels: masks count from 1 and 0 means "nothing" (ADE20K): 1 is taken off, and 0 is ignored.
    """

    data: ClassVar[Form] = "masks"
    metric_names: ClassVar[Mapping[str, str]] = {"miou": "mIoU", "pixel_accuracy": "pixel accuracy"}
    units: ClassVar[Mapping[str, str]] = {"miou": "points", "pixel_accuracy": "points"}
    same_from: ClassVar[float] = 0.99
    output: str | None = None
    ignore: Annotated[int, Field(ge=0)] = 255
    reduce_labels: bool = False

    def answers(self, outputs: Mapping[str, Array]) -> list[Array]:
        """The best class of each pixel, at the model's own resolution: (h, w)."""
        scores = self._scores(outputs)
        return list(scores.argmax(axis=1).astype(np.min_scalar_type(scores.shape[1])))

    def alike(self, reference: Array, deployed: Array) -> float:
        """The share of pixels with the same class."""
        if reference.shape != deployed.shape:
            raise DataError(f"maps of {reference.shape} and {deployed.shape} are no pair", fix="Compare one model.")
        return float((reference == deployed).mean())

    def statistics(self, outputs: Mapping[str, Array], labels: Sequence[Label]) -> PerSample:
        """For each image and class: pixels that are of it and predicted so, that are predicted, and that are of it.

        Where the outputs are not finite every pixel is missed.
        """
        scores = self._scores(outputs)
        check_count(len(scores), labels)
        finite = finite_samples(outputs)
        pairs = zip(scores, labels, finite, strict=True)
        counts = [self._counts(image, label, usable=bool(usable)) for image, label, usable in pairs]
        return PerSample({"counts": np.array(counts)}, self.answers(outputs), finite)

    def weigher(self, values: Values) -> Weigh:
        """Both metrics in percent. A class that is neither predicted nor there is left out of the mean."""
        counts = values["counts"]
        flat = counts.reshape(len(counts), -1).astype(np.float64)

        def weigh(weights: Array) -> dict[str, float]:
            both, predicted, there = (weights @ flat).reshape(-1, 3).T
            union = predicted + there - both
            if not there.sum():
                return dict.fromkeys(self.units, np.nan)
            present = union > 0
            iou = both[present] / union[present]
            return {"miou": _PERCENT * float(iou.mean()), "pixel_accuracy": _PERCENT * float(both.sum() / there.sum())}

        return weigh

    def doubts(self, values: Values) -> list[str]:
        """One class only, or no better than chance."""
        there = values["counts"][..., 2].sum(axis=0)
        classes = len(there)
        if (there > 0).sum() == 1:
            return [f"every labelled pixel is class {there.argmax()}: a model that always says so would be right"]
        iou = self.aggregate(values)["miou"]
        chance = _PERCENT / (2 * classes - 1)  # of a guess among equally frequent classes: 1/C right, union 2 - 1/C
        if iou > chance:
            return []
        return [
            f"the reference reaches {iou:.2f} % mIoU, no more than a guess among {classes} classes: are the masks in "
            "the model's order of classes, and do they count from 0? (task.reduce_labels)"
        ]

    def describe(
        self, outputs: Mapping[str, Array], labels: tuple[str, ...] | None, view: tuple[float, float, float, float]
    ) -> Answer:
        """The classes with their shares of the pixels, largest first."""
        top, left, bottom, right = view
        size = max(1, round(bottom - top)), max(1, round(right - left))
        shares = np.bincount(best_classes(self._scores(outputs)[0], size).ravel()) / (size[0] * size[1])
        largest = [int(i) for i in np.argsort(-shares, kind="stable") if shares[i] >= _SMALLEST_REGION]
        return Answer(regions=tuple(Region(index=i, label=name_of(i, labels), share=float(shares[i])) for i in largest))

    def lines(self, answer: Answer) -> list[str]:
        """Return a line for each region, in percent of the pixels."""
        return [share_line(region.share, region.label) for region in answer.regions]

    def _counts(self, scores: Array, label: Label, *, usable: bool) -> Array:
        if not isinstance(label, ClassMask):
            raise DataError("the labels are no masks", fix="Give data with images/ and masks/.")
        classes = len(scores)
        truth, valid = self._truth(label, classes)
        there = np.bincount(truth[valid], minlength=classes)
        if not usable:
            return np.stack([np.zeros_like(there), np.zeros_like(there), there], axis=1)
        found = best_classes(scores, (truth.shape[0], truth.shape[1]))
        predicted = np.bincount(found[valid], minlength=classes)
        both = np.bincount(truth[valid & (found == truth)], minlength=classes)
        return np.stack([both, predicted, there], axis=1)

    def _truth(self, label: ClassMask, classes: int) -> tuple[Array, Array]:
        """The classes of a mask, and which of its pixels count."""
        raw = label.classes.astype(np.int64)
        valid = raw != self.ignore
        truth = raw
        if self.reduce_labels:
            valid &= raw != 0
            truth = raw - 1
        strange = valid & ((truth < 0) | (truth >= classes))
        if strange.any():
            raise DataError(
                f"{label.name}: class {raw[strange][0]} is none of the model's {classes}",
                fix=f"Use the model's class indices from 0 on, {self.ignore} for what is not to count "
                "(task.ignore, task.reduce_labels).",
            )
        return truth, valid

    def _scores(self, outputs: Mapping[str, Array]) -> Array:
        if self.output is None and _QUERIES in outputs and _QUERY_MASKS in outputs:
            return _combined(outputs[_QUERIES], outputs[_QUERY_MASKS])
        what = "(batch, classes, height, width)"
        return _outputs.chosen(outputs, self.output, ("logits", "out"), 4, what, _FIX)


def _combined(classes: Array, masks: Array) -> Array:
    """Scores by class and pixel from (batch, queries, classes + 1) and (batch, queries, h, w), the last class "none".

    Cheng, Schwing & Kirillov 2021, "Per-Pixel Classification is Not All You Need", section 3.4.
    """
    from scipy.special import expit, softmax

    combined: Array = np.einsum("bqc,bqhw->bchw", softmax(classes, axis=-1)[..., :-1], expit(masks), optimize=True)
    return combined
