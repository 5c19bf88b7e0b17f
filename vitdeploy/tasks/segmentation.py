"""Semantic segmentation: mean intersection over union and pixel accuracy, over all pixels of the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from vitdeploy.data.dataset import Form
from vitdeploy.data.labels import ClassMask, Label
from vitdeploy.errors import DataError
from vitdeploy.evidence.predictions import Answer, Region
from vitdeploy.session import Array
from vitdeploy.tasks import (
    PerSample,
    Task,
    Values,
    WeightedMetrics,
    _outputs,
    check_count,
    class_name,
    format_share,
)
from vitdeploy.tasks._resize import Box, find_best_classes, find_picture

_PERCENT = 100.0
_MIN_SHARE = 0.001  # of the pixels: smaller regions are not listed
_NAMES = ("logits", "out")
_QUERIES, _QUERY_MASKS = "class_queries_logits", "masks_queries_logits"
_FIX = "Give a model for semantic segmentation, or name its output in task.output."


class Segmentation(Task):
    """A class for each pixel, from scores (batch, classes, h, w) of any resolution.

    Scores are resized bilinearly to the size of the mask, and the best class is the answer. The queries of MaskFormer
    and Mask2Former are combined into such scores first.

    Attributes:
        output: names the scores if the model has several outputs. The default is "logits" or "out", else the first
            4-D output.
        ignore: the value of pixels in masks that do not count.
        reduce_labels: for masks whose classes count from 1 and whose 0 is "no class" (ADE20K): 1 is subtracted, and 0
            is ignored.
    """

    data: ClassVar[Form] = "masks"
    metric_names: ClassVar[Mapping[str, str]] = {"miou": "mIoU", "pixel_accuracy": "pixel accuracy"}
    units: ClassVar[Mapping[str, str]] = {"miou": "points", "pixel_accuracy": "points"}
    flip_below: ClassVar[float] = 0.99
    output: str | None = None
    ignore: Annotated[int, Field(ge=0)] = 255
    reduce_labels: bool = False

    def read_answers(self, outputs: Mapping[str, Array]) -> list[Array]:
        """Return the best class of each pixel, at the model's own resolution: (h, w)."""
        scores = self._scores(outputs)
        return list(scores.argmax(axis=1).astype(np.min_scalar_type(scores.shape[1])))

    def select_outputs(self, outputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return the scores, or the queries and their masks."""
        return {name: outputs[name] for name in self._find_scores(outputs)}

    def compare_pair(self, reference: Array, deployed: Array) -> float:
        """Return the share of pixels with the same class."""
        if reference.shape != deployed.shape:
            raise DataError(
                f"maps of {reference.shape} and {deployed.shape} cannot be compared", fix="Give two forms of one model."
            )
        return float((reference == deployed).mean())

    def statistics(self, outputs: Mapping[str, Array], labels: Sequence[Label]) -> PerSample:
        """Count the pixels of each image and class that are right, that are predicted, and that have the label.

        "ignored" has the pixels of each mask with the value `ignore`, and all its pixels. If the outputs are not
        finite, no pixel is right or predicted.
        """
        scores = self._scores(outputs)
        check_count(len(scores), labels)
        finite = self.find_finite_answers(outputs)
        pairs = zip(scores, labels, finite, strict=True)
        counts = [self._count_pixels(image, label, usable=bool(usable)) for image, label, usable in pairs]
        masks = [label.classes for label in labels if isinstance(label, ClassMask)]
        ignored = [[(mask == self.ignore).sum(), mask.size] for mask in masks]
        values = {"counts": np.array(counts), "ignored": np.array(ignored)}
        return PerSample(values, self.read_answers(outputs), finite)

    def weighted_metrics(self, values: Values) -> WeightedMetrics:
        """Return a function for both metrics in percent. A class neither predicted nor labelled does not count."""
        counts = values["counts"]
        flat = counts.reshape(len(counts), -1).astype(np.float64)

        def compute(weights: Array) -> dict[str, float]:
            right, predicted, labelled = (weights @ flat).reshape(-1, 3).T
            union = predicted + labelled - right
            if not labelled.sum():
                return dict.fromkeys(self.units, np.nan)
            present = union > 0
            iou = right[present] / union[present]
            accuracy = right.sum() / labelled.sum()
            return {"miou": _PERCENT * float(iou.mean()), "pixel_accuracy": _PERCENT * float(accuracy)}

        return compute

    def find_doubts(self, values: Values, names: Sequence[str] | None = None) -> list[str]:  # noqa: ARG002
        """Find labels of one class only, and a mIoU no better than chance."""
        labelled = values["counts"][..., 2].sum(axis=0)
        classes = len(labelled)
        if (labelled > 0).sum() == 1:
            only = labelled.argmax()
            doubt = f"every labelled pixel is class {only}: a model that always gives this class would be right"
            return [doubt + self._explain_one_class(values)]
        iou = self.aggregate(values)["miou"]
        chance = _PERCENT / (2 * classes - 1)  # a guess among C equally frequent classes: 1/C right, union 2 - 1/C
        if iou > chance:
            return []
        return [
            f"the reference reaches {iou:.2f} % mIoU, no more than a guess among {classes} classes: are the masks in "
            "the model's order of classes, and do they count from 0? (task.reduce_labels)"
        ]

    def _explain_one_class(self, values: Values) -> str:
        """Return the likely reason why masks have one class: those of 0 and 255 lose their foreground."""
        if "ignored" not in values:  # samples that an earlier vitdeploy wrote
            return ""
        ignored, pixels = values["ignored"].sum(axis=0)
        if not ignored:
            return ""
        return (
            f"; {_PERCENT * ignored / pixels:.3g} % of the pixels have the value {self.ignore}, which task.ignore "
            "leaves out: if they are the foreground, write them as 1"
        )

    def count_classes(self, shapes: Mapping[str, tuple[int | str, ...]]) -> int | None:
        """Return the classes of the scores, (batch, classes, h, w), or of the queries, without "none"."""
        if self.output is None and _QUERIES in shapes and _QUERY_MASKS in shapes:
            scores = _outputs.read_size(shapes, _QUERIES, (), dims=3, axis=2)
            return None if scores is None else scores - 1
        return _outputs.read_size(shapes, self.output, _NAMES, dims=4, axis=1)

    def describe(
        self,
        outputs: Mapping[str, Array],
        labels: tuple[str, ...] | None,
        view: tuple[float, float, float, float],
        picture: tuple[int, int] | None = None,
    ) -> Answer:
        """Return the classes with their shares of the pixels, largest first."""
        classes = self._find_classes(self._scores(outputs)[0], view, picture or (round(view[2]), round(view[3])))
        shares = np.bincount(classes.ravel()) / classes.size
        largest = [int(i) for i in np.argsort(-shares, kind="stable") if shares[i] >= _MIN_SHARE]
        return Answer(
            regions=tuple(Region(index=i, label=class_name(i, labels), share=float(shares[i])) for i in largest)
        )

    def format_answer(self, answer: Answer) -> list[str]:
        """Return a line for each region, in percent of the pixels."""
        return [format_share(region.share, region.label) for region in answer.regions]

    def map_pixels(
        self, outputs: Mapping[str, Array], view: tuple[float, float, float, float], picture: tuple[int, int]
    ) -> Array:
        """Return the class of each pixel."""
        return self._find_classes(self._scores(outputs)[0], view, picture)

    def _count_pixels(self, scores: Array, label: Label, *, usable: bool) -> Array:
        if not isinstance(label, ClassMask):
            raise DataError("the labels are not masks", fix="Give data with images/ and masks/.")
        classes = len(scores)
        truth, valid = self._read_mask(label, classes)
        labelled = np.bincount(truth[valid], minlength=classes)
        if not usable:
            return np.stack([np.zeros_like(labelled), np.zeros_like(labelled), labelled], axis=1)
        best = self._find_classes(scores, label.view, (truth.shape[0], truth.shape[1]))
        predicted = np.bincount(best[valid], minlength=classes)
        right = np.bincount(truth[valid & (best == truth)], minlength=classes)
        return np.stack([right, predicted, labelled], axis=1)

    @staticmethod
    def _find_classes(scores: Array, view: Box | None, picture: tuple[int, int]) -> Array:
        """Return the best class of each pixel of the picture; what was padded is cut off."""
        size, place = find_picture(view or (0, 0, *picture), picture)
        return find_best_classes(scores, size)[place]

    def _read_mask(self, label: ClassMask, classes: int) -> tuple[Array, Array]:
        """Return the classes of a mask, and True for each pixel that counts.

        Raises:
            DataError: the mask has a class that the model does not have.
        """
        raw = label.classes.astype(np.int64)
        valid = raw != self.ignore
        truth = raw
        if self.reduce_labels:
            valid &= raw != 0
            truth = raw - 1
        unknown = valid & ((truth < 0) | (truth >= classes))
        if unknown.any():
            raise DataError(
                f"{label.name}: class {raw[unknown][0]} is none of the model's {classes}",
                fix=f"Use the model's class indices from 0 on, and {self.ignore} for pixels that do not count "
                "(task.ignore, task.reduce_labels).",
            )
        return truth, valid

    def _scores(self, outputs: Mapping[str, Array]) -> Array:
        scores = [outputs[name] for name in self._find_scores(outputs)]
        return scores[0] if len(scores) == 1 else _combine_queries(*scores)

    def _find_scores(self, outputs: Mapping[str, Array]) -> tuple[str, ...]:
        if self.output is None and _QUERIES in outputs and _QUERY_MASKS in outputs:
            return _QUERIES, _QUERY_MASKS
        form = "(batch, classes, height, width)"
        return (_outputs.find_output(outputs, self.output, _NAMES, 4, form, _FIX),)


def _combine_queries(classes: Array, masks: Array) -> Array:
    """Return scores by class and pixel from (batch, queries, classes + 1) and (batch, queries, h, w).

    The last class is "none".

    Cheng, Schwing & Kirillov 2021, "Per-Pixel Classification is Not All You Need", section 3.4.
    """
    from scipy.special import expit, softmax

    combined: Array = np.einsum("bqc,bqhw->bchw", softmax(classes, axis=-1)[..., :-1], expit(masks), optimize=True)
    return combined
