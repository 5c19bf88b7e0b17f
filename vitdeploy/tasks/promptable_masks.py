"""Promptable masks: the overlap of the mask that a prompt names with the object that it was taken from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from vitdeploy.data.dataset import Form
from vitdeploy.data.labels import InstanceMasks, Label
from vitdeploy.data.outlines import decompress
from vitdeploy.errors import DataError
from vitdeploy.evidence.predictions import Answer, Instance
from vitdeploy.session import Array
from vitdeploy.tasks import PerSample, Task, Values, WeightedMetrics, check_count
from vitdeploy.tasks._resize import find_picture, find_positive, resize_bilinear

_MASKS, _SCORES = "pred_masks", "iou_scores"
_FIX = "Give a promptable model (SAM, SAM 2, EdgeTAM)."
_LOW = 10.0
"""A mean overlap in percent at which a reference finds next to nothing."""
View = tuple[float, float, float, float]
Size = tuple[int, int]


class PromptableMasks(Task):
    """Masks for one prompt, from logits (batch, masks, h, w) and the overlap that the model expects (batch, masks).

    The mask with the best score is the answer. A pixel belongs to it if its logit, resized bilinearly to the picture,
    is above 0. The metric is the intersection over union (IoU) with the object that the prompt was taken from, in the
    mean over objects.
    """

    data: ClassVar[Form] = "instances"
    metric_names: ClassVar[Mapping[str, str]] = {"mask_iou": "mask IoU", "oracle_iou": "mask IoU of the best mask"}
    units: ClassVar[Mapping[str, str]] = {"mask_iou": "points", "oracle_iou": "points"}
    named_classes: ClassVar[bool] = False
    flip_below: ClassVar[float] = 0.9
    agreement_name: ClassVar[str] = "overlap of both masks"

    def read_answers(self, outputs: Mapping[str, Array]) -> list[Array]:
        """Return the best mask of each sample at the decoder's own resolution: bool (h, w)."""
        masks, scores = self._read(outputs)
        best = np.where(np.isfinite(scores), scores, -np.inf).argmax(axis=1)
        return [masks[row, index] > 0 for row, index in enumerate(best)]

    def select_outputs(self, outputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return the logits and the scores."""
        self._read(outputs)
        return {name: outputs[name] for name in (_MASKS, _SCORES)}

    def compare_pair(self, reference: Array, deployed: Array) -> float:
        """Return the intersection over union of two masks; 1 if both are empty."""
        if reference.shape != deployed.shape:
            raise DataError("masks of two sizes cannot be compared", fix="Give two forms of one model.")
        return measure_overlap(reference, deployed)

    def statistics(self, outputs: Mapping[str, Array], labels: Sequence[Label]) -> PerSample:
        """Measure the overlap with the first object of each label. Outputs that are not finite overlap nothing."""
        masks, scores = self._read(outputs)
        check_count(len(masks), labels)
        finite = self.find_finite_answers(outputs)
        rows = [
            _measure(m, s, label) if usable else (0.0, 0.0)
            for m, s, label, usable in zip(masks, scores, labels, finite, strict=True)
        ]
        overlaps = np.array(rows, dtype=np.float64).reshape(-1, 2)
        values = {"mask_iou": overlaps[:, 0], "oracle_iou": overlaps[:, 1], "objects": np.ones(len(rows))}
        return PerSample(values, self.read_answers(outputs), finite)

    def weighted_metrics(self, values: Values) -> WeightedMetrics:
        """Return a function for the mean overlap in percent. A sample may be the sum of several objects."""

        def compute(weights: Array) -> dict[str, float]:
            count = float((weights * values["objects"]).sum())
            if not count:
                return dict.fromkeys(self.units, float("nan"))
            return {name: 100 * float((weights * values[name]).sum()) / count for name in self.units}

        return compute

    def find_doubts(self, values: Values, names: Sequence[str] | None = None) -> list[str]:  # noqa: ARG002
        """Find a reference whose masks miss the objects."""
        overlap = self.aggregate(values)["mask_iou"]
        if overlap >= _LOW:
            return []
        return [f"the reference's masks overlap the objects by {overlap:.1f} % only: it has not learned to find them"]

    def describe(
        self,
        outputs: Mapping[str, Array],
        labels: tuple[str, ...] | None,  # noqa: ARG002  masks have no class
        view: View,
        picture: tuple[int, int] | None = None,
    ) -> Answer:
        """Return the best mask: its score, the box around it, and its area. An empty one has no box and no area."""
        logits, score = choose_mask(self.select_outputs(outputs))
        mask = draw_mask(logits, view, picture or (round(view[2]), round(view[3])))
        return Answer(instances=(describe_mask(mask, score, 0),))

    def format_answer(self, answer: Answer) -> list[str]:
        """Return a line for each prompt: the expected overlap, the corners of the box and the area in pixels."""
        return [
            f"prompt {one.index + 1}: {100 * one.score:5.1f} % expected IoU  "
            + " to ".join(f"{x:.0f},{y:.0f}" for x, y in (one.box[:2], one.box[2:]))
            + f", {one.area} pixels"
            for one in answer.instances
        ]

    def _read(self, outputs: Mapping[str, Array]) -> tuple[Array, Array]:
        masks, scores = outputs.get(_MASKS), outputs.get(_SCORES)
        if masks is None or scores is None or masks.ndim != 4 or scores.shape != masks.shape[:2]:
            listed = ", ".join(f"{name} {list(value.shape)}" for name, value in outputs.items())
            raise DataError(f"there are no {_MASKS} with {_SCORES} among the outputs: {listed}", fix=_FIX)
        return masks, scores


def choose_mask(outputs: Mapping[str, Array]) -> tuple[Array, float]:
    """Return the logits (h, w) of the mask with the best score, and that score; of the first sample."""
    scores = outputs[_SCORES][0]
    best = int(scores.argmax())
    return outputs[_MASKS][0, best], float(scores[best])


def draw_mask(logits: Array, view: View, picture: tuple[int, int]) -> Array:
    """Return where logits (h, w), resized to the picture, are above 0: bool (height, width).

    Args:
        logits: they cover the model's input.
        view: top, left, bottom and right of the model's input, in pixels of the picture.
        picture: height and width.
    """
    size, place = find_picture(view, picture)
    mask = np.zeros(picture, dtype=bool)
    part = find_positive(logits, size)[place]
    top, left = max(0, round(view[0])), max(0, round(view[1]))
    rows, columns = mask[top : top + part.shape[0], left : left + part.shape[1]].shape
    mask[top : top + rows, left : left + columns] = part[:rows, :columns]
    return mask


def draw_padded_mask(logits: Array, size: tuple[int, int], inside: tuple[slice, slice], picture: Size) -> Array:
    """Return where logits (h, w) are above 0 in a picture that was padded: bool (height, width).

    They are resized to the model's input, cut to the picture and resized to it, as SAM's own code does.

    Args:
        logits: they cover the model's input.
        size: height and width of the model's input.
        inside: the rows and columns of the input that the picture fills.
        picture: height and width.
    """
    mask: Array = resize_bilinear(resize_bilinear(logits, size)[inside], picture) > 0
    return mask


def measure_overlap(a: Array, b: Array) -> float:
    """Return the intersection over union of two masks, bool; 1 if both are empty."""
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else 1.0


def describe_mask(mask: Array, score: float, number: int) -> Instance:
    """Return the facts about the mask of prompt `number`, from 0 on."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = (0.0, 0.0, 0.0, 0.0)
    if len(rows):
        box = (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
    return Instance(index=number, label=f"prompt {number + 1}", score=score, box=box, area=int(mask.sum()))


def _measure(masks: Array, scores: Array, label: Label) -> tuple[float, float]:
    """Return the overlap of the mask with the best score, and the largest overlap of any mask."""
    if not isinstance(label, InstanceMasks) or not len(label.masks):
        raise DataError("the labels are not masks of objects", fix="Give data with images/ and annotations.json.")
    truth = decompress(label.masks[0], label.size)
    size, place = find_picture(label.view or (0, 0, *label.size), label.size)
    overlaps = [measure_overlap(find_positive(mask, size)[place], truth) for mask in masks]
    return overlaps[int(scores.argmax())], max(overlaps)
