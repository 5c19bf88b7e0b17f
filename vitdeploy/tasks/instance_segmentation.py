"""Instance segmentation: COCO's mean average precision of masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from vitdeploy.data.dataset import Form
from vitdeploy.data.labels import InstanceMasks, Label
from vitdeploy.data.outlines import compress
from vitdeploy.errors import DataError
from vitdeploy.evidence.predictions import Answer, Instance
from vitdeploy.session import Array
from vitdeploy.tasks import (
    PerSample,
    Task,
    Values,
    WeightedMetrics,
    _coco,
    _objects,
    _outputs,
    check_count,
    class_name,
    format_share,
)
from vitdeploy.tasks._resize import find_picture, find_positive

_SCORE_NAMES, _MASK_NAMES = ("class_queries_logits", "logits"), ("masks_queries_logits", "pred_masks")
_METRICS = ("mask_map", "mask_map50", "mask_map75")
_FIX = (
    "Give a model for instance segmentation (MaskFormer, Mask2Former, RF-DETR-Seg), or name its outputs in task.output "
    "and task.masks."
)


class InstanceSegmentation(Task):
    """Objects with masks, from scores (batch, queries, classes) and mask logits (batch, queries, h, w).

    A pixel belongs to a mask if its logit, resized bilinearly to the picture, is above 0. Boxes that the model gives
    are not read: the box of an answer is the one around its mask.

    Attributes:
        output: names the scores. The default is "class_queries_logits" or "logits", else the 3-D output that is left
            when the boxes are known.
        masks: names the mask logits. The default is "masks_queries_logits" or "pred_masks", else the only 4-D output.
        scores: "product": softmax, in which the last class is "no object"; each class of each query is a candidate, and
            its score is multiplied by the mean probability inside of its mask (MaskFormer, Mask2Former). "softmax":
            the last class is "no object", and each query gives its best other class (DETR). "sigmoid": each class of
            each query is a candidate (RF-DETR-Seg).
        max_detections: how many masks of an image count, best first.
        confident: `predict` shows masks with at least this score, and agreement compares them.
    """

    data: ClassVar[Form] = "instances"
    metric_names: ClassVar[Mapping[str, str]] = {
        "mask_map": "mask mAP", "mask_map50": "mask mAP at 0.5", "mask_map75": "mask mAP at 0.75"
    }  # fmt: skip
    units: ClassVar[Mapping[str, str]] = dict.fromkeys(_METRICS, "points")
    ranking_only: ClassVar[frozenset[str]] = frozenset({"score"})
    output: str | None = None
    masks: str | None = None
    scores: Literal["product", "softmax", "sigmoid"] = "product"
    max_detections: Annotated[int, Field(ge=1)] = 100
    confident: Annotated[float, Field(gt=0, le=1)] = 0.5

    def read_answers(self, outputs: Mapping[str, Array]) -> list[Array]:
        """Return the masks of each image that agreement may compare, best first; the best one in any case.

        An answer is a record array with "score", "class" and "mask": the bits of (h, w) at the model's own resolution.
        """
        scores, masks = self._read_queries(outputs)
        finite = self.find_finite_answers(outputs)
        return [self._pack(self._rank(s, m), m, usable) for s, m, usable in zip(scores, masks, finite, strict=True)]

    def select_outputs(self, outputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return the scores and the mask logits."""
        return {name: outputs[name] for name in self._find_queries(outputs)}

    def compare_pair(self, reference: Array, deployed: Array) -> float:
        """Return the F1 of the confident masks of both sides, matched with overlapping masks of the same class."""
        if reference.dtype != deployed.dtype:
            raise DataError("masks of two sizes cannot be compared", fix="Give two forms of one model.")
        bits = [np.unpackbits(side["mask"].reshape(len(side), -1), axis=1) for side in (reference, deployed)]
        return _objects.measure_agreement(
            (reference["score"], deployed["score"]),
            (reference["class"], deployed["class"]),
            _measure_overlaps(*bits),
            self.confident,
        )

    def statistics(self, outputs: Mapping[str, Array], labels: Sequence[Label]) -> PerSample:
        """Match each mask at COCO's ten overlap thresholds. An image whose outputs are not finite has no masks."""
        scores, masks = self._read_queries(outputs)
        check_count(len(scores), labels)
        classes = scores.shape[2]
        truth = [_check_masks(label, classes) for label in labels]
        finite = self.find_finite_answers(outputs)
        sides = [
            self._place(self._rank(s, m) if usable else _NOTHING, m, label)
            for s, m, usable, label in zip(scores, masks, finite, truth, strict=True)
        ]
        values = _coco.match_masks(sides, truth, self.max_detections, classes)
        return PerSample(values, self.read_answers(outputs), finite)

    def weighted_metrics(self, values: Values) -> WeightedMetrics:
        """Return a function for the mAP of masks in percent: over overlaps from 0.5 to 0.95, at 0.5, and at 0.75."""
        return _objects.weigh_precision(values, _METRICS)

    def find_doubts(self, values: Values, names: Sequence[str] | None = None) -> list[str]:  # noqa: ARG002
        """Find a reference that finds next to nothing."""
        return _objects.find_low_precision(self.aggregate(values), "mask_map50")

    def count_classes(self, shapes: Mapping[str, tuple[int | str, ...]]) -> int | None:
        """Return the classes of the scores, (batch, queries, classes), without "no object"."""
        scores = _outputs.read_size(shapes, self.output, _SCORE_NAMES, dims=3, axis=2)
        return scores - 1 if scores is not None and self.scores != "sigmoid" else scores

    def at_threshold(self, values: Values, threshold: float) -> Values:
        """Return the masks with at least this score, those of them that match an object (IoU 0.5), and the objects."""
        return _objects.count_at_threshold(values, threshold)

    def summarize_answer(self, answer: Array, names: Sequence[str] | None) -> str:
        """Return the confident masks by class: `2 cat, 1 dog`."""
        return _objects.summarize_classes(answer["class"][answer["score"] >= self.confident], names)

    def describe(
        self,
        outputs: Mapping[str, Array],
        labels: tuple[str, ...] | None,
        view: tuple[float, float, float, float],
        picture: tuple[int, int] | None = None,
    ) -> Answer:
        """Return the masks with a score of at least `confident`: class, score, the box around it, and its area.

        A mask that covers no pixel of the picture is left out.
        """
        corner = np.array([max(0, round(view[1])), max(0, round(view[0]))] * 2)
        instances = []
        for mask, kind, score in self._find_confident(outputs, view, picture):
            x0, y0, x1, y1 = (float(v) for v in _find_box(mask) + corner)
            label, area = class_name(kind, labels), int(mask.sum())
            instances.append(Instance(index=kind, label=label, score=score, box=(x0, y0, x1, y1), area=area))
        return Answer(instances=tuple(instances))

    def format_answer(self, answer: Answer) -> list[str]:
        """Return a line for each object: score, class, the corners of its box and its area in pixels."""
        if not answer.instances:
            return [f"no object with a score of {100 * self.confident:.0f} % or more"]
        places = [" to ".join(f"{x:.0f},{y:.0f}" for x, y in (i.box[:2], i.box[2:])) for i in answer.instances]
        return [
            f"{format_share(i.score, i.label)}  {place}, {i.area} pixels"
            for i, place in zip(answer.instances, places, strict=True)
        ]

    def map_pixels(
        self, outputs: Mapping[str, Array], view: tuple[float, float, float, float], picture: tuple[int, int]
    ) -> Array:
        """Return for each pixel the number of the object of `describe` that covers it, from 1 on; 0 for none.

        Where masks overlap, the one with the highest score counts.
        """
        confident = self._find_confident(outputs, view, picture)
        size, place = find_picture(view, picture)
        numbers = np.zeros(size, dtype=np.int64)[place]
        for number, (mask, _, _) in reversed(list(enumerate(confident, start=1))):
            numbers[mask] = number
        return numbers

    def _find_confident(
        self, outputs: Mapping[str, Array], view: tuple[float, float, float, float], picture: tuple[int, int] | None
    ) -> list[tuple[Array, int, float]]:
        """Return mask, class and score of the confident objects in the first image, best first."""
        scores, masks = (array[0] for array in self._read_queries(outputs))
        size, place = find_picture(view, picture or (round(view[2]), round(view[3])))
        confident = []
        for query, kind, score in zip(*self._rank(scores, masks), strict=True):
            if score >= self.confident:
                mask = find_positive(masks[query], size)[place]
                confident += [(mask, int(kind), float(score))] if mask.any() else []
        return confident

    def _rank(self, scores: Array, masks: Array) -> _objects.Ranked:
        """Return the best candidates of an image, from scores (queries, classes) and logits (queries, h, w)."""
        if self.scores == "product":
            scores = scores * _measure_confidence(masks)[:, None]
        return _objects.rank_candidates(scores, self.max_detections, every_class=self.scores != "softmax")

    def _pack(self, ranked: _objects.Ranked, masks: Array, usable: bool) -> Array:
        packed = np.packbits(masks > 0, axis=-1)
        used = _objects.nearly_confident(ranked.scores, self.confident) if usable else np.zeros(0, dtype=bool)
        used[:1] = True
        count = int(used.sum())
        answer = np.zeros(count, [("score", "<f8"), ("class", "<i8"), ("mask", "u1", packed.shape[1:])])
        if count:
            answer["score"], answer["class"] = ranked.scores[used], ranked.classes[used]
            answer["mask"] = packed[ranked.queries[used]]
        return answer

    @staticmethod
    def _place(ranked: _objects.Ranked, masks: Array, label: InstanceMasks) -> _coco.ImageObjects:
        """Return the candidates with their masks at the resolution of the label, one mask in memory at a time."""
        size, place = find_picture(label.view or (0, 0, *label.size), label.size)
        queries = ranked.queries.tolist()
        runs = {query: compress(find_positive(masks[query], size)[place]) for query in dict.fromkeys(queries)}
        places = [_coco.place_mask(runs[query], label.size) for query in queries]
        return _coco.ImageObjects(ranked.classes, places, ranked.scores)

    def _read_queries(self, outputs: Mapping[str, Array]) -> tuple[Array, Array]:
        """Return probabilities (batch, queries, classes), and mask logits (batch, queries, h, w)."""
        names = self._find_queries(outputs)
        logits, masks = outputs[names[0]].astype(np.float64), outputs[names[1]]
        if logits.shape[:2] != masks.shape[:2]:
            raise DataError(
                f"the scores are {logits.shape} and the masks {masks.shape}: the model gives "
                f"{_outputs.list_outputs(outputs)}",
                fix=_FIX,
            )
        from scipy.special import expit, softmax

        return expit(logits) if self.scores == "sigmoid" else softmax(logits, axis=-1)[..., :-1], masks

    def _find_queries(self, outputs: Mapping[str, Array]) -> tuple[str, str]:
        """Return the names of the scores and of the mask logits.

        Without names that tell, the scores are the 3-D output with as many queries as there are masks; of two such
        outputs, the one with four numbers is the boxes.
        """
        masks = _outputs.find_output(outputs, self.masks, _MASK_NAMES, 4, "(batch, queries, height, width)", _FIX)
        queries = outputs[masks].shape[:2]
        fitting = [name for name, value in outputs.items() if value.ndim == 3 and value.shape[:2] == queries]
        if self.output is None and not any(name in outputs for name in _SCORE_NAMES) and len(fitting) > 1:
            fitting = [name for name in fitting if outputs[name].shape[2] != _BOX_NUMBERS]
            if len(fitting) > 1:
                raise DataError(
                    f"several outputs may be the scores, {' and '.join(fitting)}: the model gives "
                    f"{_outputs.list_outputs(outputs)}",
                    fix=_FIX,
                )
        names = (*_SCORE_NAMES, *fitting)
        return _outputs.find_output(outputs, self.output, names, 3, "(batch, queries, classes)", _FIX), masks


_BOX_NUMBERS = 4
_NOTHING = _objects.Ranked(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0))


def _check_masks(label: Label, classes: int) -> InstanceMasks:
    if not isinstance(label, InstanceMasks):
        raise DataError("the labels are not masks of objects", fix="Give data with images/ and annotations.json.")
    _objects.check_classes(label.name, label.classes, classes)
    return label


def _measure_confidence(masks: Array) -> Array:
    """Return the mean probability of the pixels inside of each mask, (queries,); 0 for a mask without pixels.

    Cheng et al. 2022, "Masked-attention Mask Transformer for Universal Image Segmentation" (Mask2Former), multiply the
    score of the class by it; their code takes the mean over the pixels of the picture, here it is that of the model's
    own resolution, so that answers do not depend on the size of the picture.
    """
    from scipy.special import expit

    flat = masks.reshape(len(masks), -1)
    inside = flat > 0
    total = np.where(inside, expit(flat), 0.0).sum(axis=1, dtype=np.float64)
    confidence: Array = total / np.maximum(inside.sum(axis=1), 1)
    return confidence


def _measure_overlaps(reference: Array, deployed: Array) -> Array:
    """Return the intersection over union of masks, bits (n, pixels) and (m, pixels): (n, m)."""
    a, b = reference.astype(np.float32), deployed.astype(np.float32)
    both = a @ b.T
    union = a.sum(axis=1)[:, None] + b.sum(axis=1)[None] - both
    overlaps: Array = np.divide(both, union, out=np.zeros_like(both), where=union > 0)
    return overlaps


def _find_box(mask: Array) -> Array:
    """Return left, top, right and bottom of the pixels of a mask; right and bottom are behind the last one."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
