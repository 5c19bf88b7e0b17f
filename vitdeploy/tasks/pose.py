"""Pose: the keypoints of one person, judged by the object keypoint similarity of COCO."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from vitdeploy.data.dataset import Form
from vitdeploy.data.labels import Keypoints, Label
from vitdeploy.errors import DataError
from vitdeploy.evidence.predictions import Answer, Keypoint
from vitdeploy.session import Array
from vitdeploy.tasks import (
    PerSample,
    Task,
    Values,
    WeightedMetrics,
    _heatmaps,
    _outputs,
    check_count,
    class_name,
    format_share,
)

_PERCENT = 100.0
_SAME_PLACE = 0.05  # of the longer side of the input: keypoints closer than this agree
_PCK = 0.2  # of the longer side of the person's box: keypoints closer than this are right
_STRIDE = 4  # pixels of the input for each pixel of a heatmap, as in ViTPose, HRNet and SimpleBaseline
_FIX = "Give a model that gives a heatmap for each keypoint of one person (ViTPose), or name its output in task.output."

COCO_NAMES = (
    "nose", "left eye", "right eye", "left ear", "right ear", "left shoulder", "right shoulder", "left elbow",
    "right elbow", "left wrist", "right wrist", "left hip", "right hip", "left knee", "right knee", "left ankle",
    "right ankle",
)  # fmt: skip
# Of the places that people mark, as a share of the root of the person's area: pycocotools, Params.setKpParams.
_COCO_SIGMAS = np.array([26, 25, 25, 35, 35, 79, 79, 72, 72, 62, 62, 107, 107, 87, 87, 89, 89]) / 1000
_OTHER_SIGMA = float(_COCO_SIGMAS.mean())


class Pose(Task):
    """The keypoints of one person that fills the image, from heatmaps (batch, keypoints, h, w).

    An image shows one person: nobody is searched for in it. Images of several people are cut up before.

    Attributes:
        output: names the heatmaps. The default is "heatmaps", else the first 4-D output.
        decode: from heatmap to place. "dark": Newton's step on the logarithm of the smoothed heatmap, whose outermost
            pixels lie on the outermost pixels of the input (ViTPose). "quarter": a quarter of a pixel towards the
            higher neighbour, and pixels that cover equal parts of the input (HRNet, SimpleBaseline).
        sigmas: how exactly people mark each keypoint, for the similarity. The default is COCO's, for 17 keypoints; for
            another number, the mean of those.
        confident: keypoints with at least this score are drawn by `predict`, and compared by agreement.
    """

    data: ClassVar[Form] = "keypoints"
    metric_names: ClassVar[Mapping[str, str]] = {"oks": "OKS", "pck": "PCK at 0.2", "nme": "normalised mean error"}
    units: ClassVar[Mapping[str, str]] = {"oks": "points", "pck": "points", "nme": "points"}
    lower_is_better: ClassVar[frozenset[str]] = frozenset({"nme"})
    named_classes: ClassVar[bool] = False
    output: str | None = None
    decode: Literal["dark", "quarter"] = "dark"
    sigmas: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] | None = None
    confident: Annotated[float, Field(gt=0, le=1)] = 0.3

    def read_answers(self, outputs: Mapping[str, Array]) -> list[Array]:
        """Return the keypoints of each image, (keypoints, 3): x and y as shares of the longer side, and the score.

        The score is the highest value of the heatmap. Keypoints of an image that is not finite are in its corner.
        """
        heatmaps = self._read_heatmaps(outputs)
        sides = np.array(heatmaps.shape[:1:-1]) / max(heatmaps.shape[2:])
        finite = self.find_finite_answers(outputs)
        return [
            np.column_stack([places * sides, scores])
            for places, scores in (self._find_places(h, usable) for h, usable in zip(heatmaps, finite, strict=True))
        ]

    def select_outputs(self, outputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return the heatmaps."""
        name = self._find_heatmaps(outputs)
        return {name: outputs[name]}

    def compare_pair(self, reference: Array, deployed: Array) -> float:
        """Return the share of keypoints that are closer than 5 % of the input's longer side.

        Keypoints that neither side is confident of do not count, unless that is all of them.
        """
        if reference.shape != deployed.shape:
            raise DataError("poses of two numbers of keypoints cannot be compared", fix="Give two forms of one model.")
        sure = np.maximum(reference[:, 2], deployed[:, 2]) >= self.confident
        counted = sure if sure.any() else np.ones(len(sure), dtype=bool)
        distances = np.linalg.norm(reference[counted, :2] - deployed[counted, :2], axis=1)
        return float((distances < _SAME_PLACE).mean())

    def statistics(self, outputs: Mapping[str, Array], labels: Sequence[Label]) -> PerSample:
        """Measure the distance of each labelled keypoint, in pixels of the picture.

        If the outputs of an image are not finite, all its keypoints are in the corner of the input.
        """
        heatmaps = self._read_heatmaps(outputs)
        check_count(len(heatmaps), labels)
        truth = [_check_keypoints(label, heatmaps.shape[1]) for label in labels]
        finite = self.find_finite_answers(outputs)
        rows = []
        for image, usable, label in zip(heatmaps, finite, truth, strict=True):
            places = self._find_places(image, usable)[0]
            rows.append(self._measure(places, label) + self._measure(np.full_like(places, 0.5), label)[1:2])
        names = ("oks", "right", "points", "error", "centred")
        values = dict(zip(names, np.array(rows, dtype=np.float64).T, strict=True))
        return PerSample(values, self.read_answers(outputs), finite)

    def weighted_metrics(self, values: Values) -> WeightedMetrics:
        """Return a function for the three metrics in percent.

        "oks" and "nme" are means over the images, "pck" is the share of all labelled keypoints.
        """
        oks, right, points, error = (values[name] for name in ("oks", "right", "points", "error"))

        def compute(weights: Array) -> dict[str, float]:
            images, labelled = weights.sum(), weights @ points
            if not images or not labelled:
                return dict.fromkeys(self.units, np.nan)
            sums = {"oks": weights @ oks / images, "pck": weights @ right / labelled, "nme": weights @ error / images}
            return {name: _PERCENT * float(value) for name, value in sums.items()}

        return compute

    def find_doubts(self, values: Values, names: Sequence[str] | None = None) -> list[str]:  # noqa: ARG002
        """Find a reference that is no better than keypoints that are all in the middle of the image."""
        points = max(values["points"].sum(), 1)
        right, centred = (_PERCENT * values[name].sum() / points for name in ("right", "centred"))
        if right > centred:
            return []
        return [
            f"the reference places {right:.1f} % of the keypoints right, no more than the middle of each image, "
            f"which is right for {centred:.1f} %: are they in the model's order, and does each image show one person "
            "from close by?"
        ]

    def summarize_answer(self, answer: Array, names: Sequence[str] | None) -> str:  # noqa: ARG002
        """Return the number of confident keypoints: `15 of 17 keypoints`."""
        return f"{int((answer[:, 2] >= self.confident).sum())} of {len(answer)} keypoints"

    def describe(
        self,
        outputs: Mapping[str, Array],
        labels: tuple[str, ...] | None,
        view: tuple[float, float, float, float],
        picture: tuple[int, int] | None = None,  # noqa: ARG002  keypoints may leave it
    ) -> Answer:
        """Return all keypoints, in their order, with their scores. They are named as COCO's if there are 17."""
        top, left, bottom, right = view
        places, scores = self._find_places(self._read_heatmaps(outputs)[0], usable=True)
        count = len(places)
        names = labels if labels and len(labels) == count else COCO_NAMES if count == len(COCO_NAMES) else None
        pixels = places * [right - left, bottom - top] + [left, top] - 0.5
        found = [
            Keypoint(index=i, label=class_name(i, names), score=float(scores[i]), x=float(x), y=float(y),
                     confident=bool(scores[i] >= self.confident))
            for i, (x, y) in enumerate(pixels)
        ]  # fmt: skip
        return Answer(keypoints=tuple(found))

    def format_answer(self, answer: Answer) -> list[str]:
        """Return a line for each keypoint: score, name, and x and y in pixels."""
        return [f"{format_share(k.score, k.label)}  {k.x:.1f},{k.y:.1f}" for k in answer.keypoints]

    def describe_output(self, shape: tuple[int | str, ...], labels: tuple[str, ...] | None) -> str:  # noqa: ARG002
        """Describe the heatmaps."""
        if len(shape) != _DIMS:
            return ""
        order = f", in the order {', '.join(COCO_NAMES)}" if shape[1] == len(COCO_NAMES) else ""
        return f"a heatmap for each keypoint{order}"

    def _measure(self, places: Array, label: Keypoints) -> list[float]:
        """Return similarity, number of right keypoints, number of labelled ones, and mean error, for one image.

        Object keypoint similarity as pycocotools computes it (COCOeval.computeOks).
        """
        area, side = label.scale
        sigmas = self._find_sigmas(len(places))[label.visible]
        pixels = places[label.visible] * label.view[::-1] - 0.5  # COCO counts from the middle of the first pixel
        squares = ((pixels - label.points[label.visible]) ** 2).sum(axis=1)
        similarity = np.exp(-squares / (2 * sigmas) ** 2 / (area + np.spacing(1)) / 2)
        errors = np.sqrt(squares) / side
        return [float(similarity.mean()), float((errors < _PCK).sum()), float(len(errors)), float(errors.mean())]

    def _find_sigmas(self, count: int) -> Array:
        if self.sigmas is None:
            return _COCO_SIGMAS if count == len(_COCO_SIGMAS) else np.full(count, _OTHER_SIGMA)
        if len(self.sigmas) != count:
            raise DataError(
                f"task.sigmas has {len(self.sigmas)} numbers, and the model gives {count} keypoints",
                fix="Give one for each keypoint.",
            )
        return np.array(self.sigmas)

    def _find_places(self, heatmaps: Array, usable: bool) -> tuple[Array, Array]:
        """Return the places of keypoints as shares of the input, (keypoints, 2) as x and y, and their scores."""
        count, height, width = heatmaps.shape
        if not usable:
            return np.zeros((count, 2)), np.zeros(count)
        peaks, scores = _heatmaps.find_peaks(heatmaps)
        sides = np.array([width, height])
        if self.decode == "quarter":
            return (_heatmaps.refine_by_quarter(heatmaps, peaks) + 0.5) / sides, scores
        inputs = _STRIDE * sides
        refined = _heatmaps.refine_by_distribution(heatmaps, peaks) * (inputs - 1) / np.maximum(sides - 1, 1)
        return (refined + 0.5) / inputs, scores

    def _read_heatmaps(self, outputs: Mapping[str, Array]) -> Array:
        return outputs[self._find_heatmaps(outputs)]

    def _find_heatmaps(self, outputs: Mapping[str, Array]) -> str:
        form = "(batch, keypoints, height, width)"
        return _outputs.find_output(outputs, self.output, ("heatmaps",), _DIMS, form, _FIX)


_DIMS = 4


def _check_keypoints(label: Label, count: int) -> Keypoints:
    if not isinstance(label, Keypoints):
        raise DataError("the labels are not keypoints", fix="Give data with images/ and annotations.json.")
    if len(label.points) != count:
        raise DataError(
            f"{label.name} has {len(label.points)} keypoints, the model has {count}",
            fix="Give data with the model's keypoints, in the model's order.",
        )
    return label
