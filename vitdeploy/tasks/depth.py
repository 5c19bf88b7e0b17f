"""Depth from one image: δ1, AbsRel and RMSE, computed for each image and averaged over images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from vitdeploy.data.dataset import Form
from vitdeploy.data.labels import DepthMap, Label
from vitdeploy.errors import DataError
from vitdeploy.evidence.predictions import Answer, Depths
from vitdeploy.session import Array
from vitdeploy.tasks import PerSample, Task, Values, WeightedMetrics, _outputs, check_count
from vitdeploy.tasks._resize import find_picture, resize_bilinear

_PERCENT = 100.0
_DELTA = 1.25  # a depth is right if it is wrong by less than this factor (Eigen, Puhrsch & Fergus 2014)
_CLOSE = 0.05
"""Two models agree on a pixel if their values differ by no more than this share of the reference's value.

A reference value below `_SMALL` times its mean, such as the far end of an inverse depth, counts as that."""
_SMALL = 0.1
_MAX_RATIO = 2.0  # a median wrong by more than this factor means another unit, not an error
_NO_SCALE = 0.0  # the ratio of an image whose values have no median above 0 to scale by
_FIX = "Give a model for depth estimation, or name its output in task.output."


class Depth(Task):
    """A depth for each pixel, from values (batch, h, w) or (batch, 1, h, w) of any resolution.

    Values are resized bilinearly to the size of the label and aligned with it if `align` says so. Pixels count if the
    label has a depth: above 0, finite, within the limits.

    Attributes:
        output: names the values if the model has several outputs. The default is "predicted_depth", else the first
            output with 3 or 4 dimensions.
        predicts: "depth", or "disparity" for inverse depth, as in MiDaS, DPT and Depth Anything's relative models.
        align: "none" for metric models; "median" scales each image by the ratio of medians of the model's own
            quantity; "affine" fits its scale and shift by least squares (Ranftl et al. 2020, "Towards Robust Monocular
            Depth Estimation", section 5). Alignment to the label hides a wrong scale; both models are aligned alike.
        min_depth: metres; labels that are nearer do not count, and predictions are limited to it.
        max_depth: metres; labels that are farther do not count, and predictions are limited to it.
        units_per_metre: the unit of integer labels (PNG): 1000 for millimetres (NYU), 256 for KITTI.
    """

    data: ClassVar[Form] = "depth"
    metric_names: ClassVar[Mapping[str, str]] = {"delta1": "δ1", "abs_rel": "AbsRel", "rmse": "RMSE"}
    units: ClassVar[Mapping[str, str]] = {"delta1": "points", "abs_rel": "points", "rmse": "m"}
    lower_is_better: ClassVar[frozenset[str]] = frozenset({"abs_rel", "rmse"})
    flip_below: ClassVar[float] = 0.99
    output: str | None = None
    predicts: Literal["depth", "disparity"] = "depth"
    align: Literal["none", "median", "affine"] = "none"
    min_depth: Annotated[float, Field(gt=0)] = 1e-3
    max_depth: Annotated[float, Field(gt=0)] = 80.0
    units_per_metre: Annotated[float, Field(gt=0)] = 1000.0

    def read_answers(self, outputs: Mapping[str, Array]) -> list[Array]:
        """Return the model's value for each pixel, at its own resolution: (h, w)."""
        return list(self._maps(outputs))

    def select_outputs(self, outputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return the depth maps."""
        name = self._find_maps(_drop_channel(outputs))
        return {name: outputs[name]}

    def compare_pair(self, reference: Array, deployed: Array) -> float:
        """Return the share of pixels whose values differ by at most 5 % of the reference's."""
        if reference.shape != deployed.shape:
            raise DataError(
                f"maps of {reference.shape} and {deployed.shape} cannot be compared", fix="Give two forms of one model."
            )
        size = np.abs(reference.astype(np.float64))
        allowed = _CLOSE * np.maximum(size, _SMALL * size.mean())
        return float((np.abs(reference - deployed) <= allowed).mean())

    def statistics(self, outputs: Mapping[str, Array], labels: Sequence[Label]) -> PerSample:
        """Return the three metrics of each image, and the median of predicted / true depth; 0 without a scale.

        AbsRel is the mean of |predicted - true| / true. δ1 is the share of pixels with max(predicted / true,
        true / predicted) < 1.25. Both are in percent; RMSE is in metres. If the outputs are not finite, or have no
        median above 0 to be scaled by, the nearest depth is used for every pixel, which δ1 counts as wrong.
        """
        maps = self._maps(outputs)
        check_count(len(maps), labels)
        finite = self.find_finite_answers(outputs)
        pairs = zip(maps, labels, finite, strict=True)
        rows = np.array([self._compute_errors(image, label, usable=bool(usable)) for image, label, usable in pairs])
        names = ("delta1", "abs_rel", "rmse", "ratio")
        return PerSample({name: rows[:, i] for i, name in enumerate(names)}, list(maps), finite)

    def weighted_metrics(self, values: Values) -> WeightedMetrics:
        """Return a function for the means over images."""
        return lambda weights: {name: float(np.average(values[name], weights=weights)) for name in self.units}

    def find_doubts(self, values: Values, names: Sequence[str] | None = None) -> list[str]:  # noqa: ARG002
        """Find predictions that cannot be aligned, or that are in another unit than the labels."""
        if lost := int((values["ratio"] == _NO_SCALE).sum()):
            return [
                f"the median of the reference's values is not above 0 in {lost} of {len(values['ratio'])} images, so "
                "task.align: median has nothing to scale them by: does the model need task.align: affine?"
            ]
        ratio = float(np.median(values["ratio"]))
        if 1 / _MAX_RATIO < ratio < _MAX_RATIO:
            return []
        return [
            f"the reference predicts {ratio:.3g} times the labels' depth: another unit (task.units_per_metre), inverse "
            "depth (task.predicts: disparity), or a model without a scale (task.align: median or affine)?"
        ]

    def describe(
        self,
        outputs: Mapping[str, Array],
        labels: tuple[str, ...] | None,  # noqa: ARG002  depth has no classes
        view: tuple[float, float, float, float],
        picture: tuple[int, int] | None = None,
    ) -> Answer:
        """Return the range of the model's values. The nearest disparity is the largest."""
        values = _cut_padding(self._maps(outputs)[0], view, picture).astype(np.float64)
        low, middle, high = (float(v) for v in (values.min(), np.median(values), values.max()))
        near, far = (low, high) if self.predicts == "depth" else (high, low)
        return Answer(depth=Depths(nearest=near, median=middle, farthest=far))

    def format_answer(self, answer: Answer) -> list[str]:
        """Return the range of the depth map."""
        depth = answer.depth
        if depth is None:
            return []
        return [f"nearest {depth.nearest:.3g}, median {depth.median:.3g}, farthest {depth.farthest:.3g}"]

    def map_pixels(
        self, outputs: Mapping[str, Array], view: tuple[float, float, float, float], picture: tuple[int, int]
    ) -> Array:
        """Return the model's value for each pixel."""
        size, place = find_picture(view, picture)
        return resize_bilinear(self._maps(outputs)[0], size)[place]

    def _compute_errors(self, image: Array, label: Label, *, usable: bool) -> tuple[float, float, float, float]:
        """Return δ1, AbsRel, RMSE and the median ratio."""
        if not isinstance(label, DepthMap):
            raise DataError("the labels are not depth maps", fix="Give data with images/ and depth/.")
        truth = label.depth.astype(np.float64)
        if np.issubdtype(label.depth.dtype, np.integer):
            truth = truth / self.units_per_metre
        valid = np.isfinite(truth) & (truth >= self.min_depth) & (truth <= self.max_depth)
        if not valid.any():
            raise DataError(
                f"{label.name}: no depth in it is between {self.min_depth:g} and {self.max_depth:g} m",
                fix="Check task.units_per_metre, task.min_depth and task.max_depth.",
            )
        true = truth[valid]
        predicted, has_scale = np.full_like(true, self.min_depth), True
        if usable:
            picture = truth.shape[0], truth.shape[1]
            size, place = find_picture(label.view or (0, 0, *picture), picture)
            values = resize_bilinear(image, size)[place][valid].astype(np.float64)
            has_scale = self.align != "median" or float(np.median(values)) > 0
            predicted = self._to_metres(values, true) if has_scale else predicted
        ratio = predicted / true
        right = np.maximum(ratio, 1 / ratio) < _DELTA
        return (
            _PERCENT * float(right.mean()),
            _PERCENT * float((np.abs(predicted - true) / true).mean()),
            float(np.sqrt(((predicted - true) ** 2).mean())),
            float(np.median(ratio)) if has_scale else _NO_SCALE,
        )

    def _to_metres(self, values: Array, true: Array) -> Array:
        """Convert the model's values to depths within the limits, aligned with the label."""
        inverse = self.predicts == "disparity"
        expected = 1 / true if inverse else true
        if self.align == "affine":
            scale, shift = _fit_scale_and_shift(values, expected)
            values = scale * values + shift
        elif self.align == "median":  # before any limit: the model's own scale is arbitrary
            values = values / np.median(values) * np.median(expected)
        depth = 1 / np.maximum(values, 1 / self.max_depth) if inverse else values
        limited: Array = np.clip(depth, self.min_depth, self.max_depth)
        return limited

    def _maps(self, outputs: Mapping[str, Array]) -> Array:
        """Return the output with the values: (batch, h, w)."""
        maps = _drop_channel(outputs)
        return maps[self._find_maps(maps)]

    def _find_maps(self, maps: Mapping[str, Array]) -> str:
        return _outputs.find_output(maps, self.output, ("predicted_depth",), 3, "(batch, height, width)", _FIX)


def _drop_channel(outputs: Mapping[str, Array]) -> dict[str, Array]:
    """Turn (batch, 1, height, width) into (batch, height, width)."""
    return {name: v[:, 0] if v.ndim == 4 and v.shape[1] == 1 else v for name, v in outputs.items()}


def _cut_padding(values: Array, view: tuple[float, float, float, float], picture: tuple[int, int] | None) -> Array:
    """Return the part of a map (h, w) of the model's view that shows the picture."""
    top, left, bottom, right = view
    if picture is None:
        return values
    rows, columns = values.shape[0] / (bottom - top), values.shape[1] / (right - left)
    scaled = top * rows, left * columns, bottom * rows, right * columns
    _, place = find_picture(scaled, (round(picture[0] * rows), round(picture[1] * columns)))
    return values[place]


def _fit_scale_and_shift(values: Array, expected: Array) -> tuple[float, float]:
    """Return the scale and shift that bring `values` closest to `expected`, by least squares."""
    variance = float(((values - values.mean()) ** 2).mean())
    if variance == 0:
        return 0.0, float(expected.mean())
    scale = float(((values - values.mean()) * (expected - expected.mean())).mean()) / variance
    return scale, float(expected.mean()) - scale * float(values.mean())
