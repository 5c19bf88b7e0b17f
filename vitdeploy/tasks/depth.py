"""Depth from one image: δ1, AbsRel and RMSE, each computed for an image and averaged over images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from vitdeploy.data.labels import DepthMap, Label
from vitdeploy.errors import DataError
from vitdeploy.evidence.predictions import Answer, Depths
from vitdeploy.session import Array
from vitdeploy.tasks import Form, PerSample, Task, Values, Weigh, _outputs, check_count, finite_samples
from vitdeploy.tasks._resize import bilinear

_PERCENT = 100.0
_DELTA = 1.25  # Eigen, Puhrsch & Fergus 2014: right is what is off by less than this factor
_CLOSE = 0.05
"""Two models agree on a pixel when their values differ by no more than this share of the reference's value …"""
_SMALL = 0.1
"""… or, where that is near 0 (the far end of an inverse depth), of this share of its mean."""
_OFF = 2.0  # a median off by more than this factor is a unit, not an error
_FIX = "Give a model for depth estimation, or name its output in task.output."


class Depth(Task):
    """A depth for each pixel, out of (batch, h, w) or (batch, 1, h, w) values of any resolution.

    Values are enlarged bilinearly to the size of the label, aligned with it where asked, and compared where the label
    has a depth (above 0, finite, within the limits).

    Attributes:
        output: names the values where the model has several outputs; by default "predicted_depth", else the first of
            3 or 4 dimensions.
        predicts: "depth", or "disparity": inverse depth, as MiDaS, DPT and Depth Anything's relative models give it.
        align: "none" for metric models; "median" scales each image by the ratio of medians; "affine" fits scale and
            shift by least squares, in what the model predicts (Ranftl et al. 2020, "Towards Robust Monocular Depth
            Estimation", section 5). Of the label, so it hides a wrong scale: both sides are aligned alike.
        min_depth: metres; what is nearer in the label does not count, and no prediction is nearer.
        max_depth: metres; what is farther in the label does not count, and no prediction is farther.
        units_per_metre: of integer labels (PNG): 1000 for millimetres (NYU), 256 for KITTI.
    """

    data: ClassVar[Form] = "depth"
    metric_names: ClassVar[Mapping[str, str]] = {"delta1": "δ1", "abs_rel": "AbsRel", "rmse": "RMSE"}
    units: ClassVar[Mapping[str, str]] = {"delta1": "points", "abs_rel": "points", "rmse": "m"}
    lower_is_better: ClassVar[frozenset[str]] = frozenset({"abs_rel", "rmse"})
    same_from: ClassVar[float] = 0.99
    output: str | None = None
    predicts: Literal["depth", "disparity"] = "depth"
    align: Literal["none", "median", "affine"] = "none"
    min_depth: Annotated[float, Field(gt=0)] = 1e-3
    max_depth: Annotated[float, Field(gt=0)] = 80.0
    units_per_metre: Annotated[float, Field(gt=0)] = 1000.0

    def answers(self, outputs: Mapping[str, Array]) -> list[Array]:
        """What the model gives for each pixel, at its own resolution: (h, w)."""
        return list(self._maps(outputs))

    def alike(self, reference: Array, deployed: Array) -> float:
        """The share of pixels whose values differ by at most 5 % of the reference's."""
        if reference.shape != deployed.shape:
            raise DataError(f"maps of {reference.shape} and {deployed.shape} are no pair", fix="Compare one model.")
        size = np.abs(reference.astype(np.float64))
        allowed = _CLOSE * np.maximum(size, _SMALL * size.mean())
        return float((np.abs(reference - deployed) <= allowed).mean())

    def statistics(self, outputs: Mapping[str, Array], labels: Sequence[Label]) -> PerSample:
        """The three metrics of each image, and the median of predicted / true depth.

        AbsRel is the mean of |predicted - true| / true and δ1 the share of pixels with max(predicted / true,
        true / predicted) < 1.25, both in percent; RMSE is in metres. Where the outputs are not finite, the prediction
        is the nearest depth everywhere, which δ1 counts as wrong.
        """
        maps = self._maps(outputs)
        check_count(len(maps), labels)
        finite = finite_samples(outputs)
        pairs = zip(maps, labels, finite, strict=True)
        rows = np.array([self._errors(image, label, usable=bool(usable)) for image, label, usable in pairs])
        names = ("delta1", "abs_rel", "rmse", "ratio")
        return PerSample({name: rows[:, i] for i, name in enumerate(names)}, list(maps), finite)

    def weigher(self, values: Values) -> Weigh:
        """Means over images."""
        return lambda weights: {name: float(np.average(values[name], weights=weights)) for name in self.units}

    def doubts(self, values: Values) -> list[str]:
        """Predictions in another unit than the labels."""
        ratio = float(np.median(values["ratio"]))
        if 1 / _OFF < ratio < _OFF:
            return []
        return [
            f"the reference predicts {ratio:.3g} times the labels' depth: another unit (task.units_per_metre), inverse "
            "depth (task.predicts: disparity), or a model without a scale (task.align: median or affine)?"
        ]

    def describe(
        self,
        outputs: Mapping[str, Array],
        labels: tuple[str, ...] | None,  # noqa: ARG002  depth has no classes
        view: tuple[float, float, float, float],  # noqa: ARG002  its range needs no size
    ) -> Answer:
        """The range of what the model gives; of a disparity, the nearest is the largest."""
        values = self._maps(outputs)[0].astype(np.float64)
        low, middle, high = (float(v) for v in (values.min(), np.median(values), values.max()))
        near, far = (low, high) if self.predicts == "depth" else (high, low)
        return Answer(depth=Depths(nearest=near, median=middle, farthest=far))

    def lines(self, answer: Answer) -> list[str]:
        """Return the range of the depth map."""
        depth = answer.depth
        if depth is None:
            return []
        return [f"nearest {depth.nearest:.3g}, median {depth.median:.3g}, farthest {depth.farthest:.3g}"]

    def _errors(self, image: Array, label: Label, *, usable: bool) -> tuple[float, float, float, float]:
        """δ1, AbsRel, RMSE and the median ratio."""
        if not isinstance(label, DepthMap):
            raise DataError("the labels are no depth maps", fix="Give data with images/ and depth/.")
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
        found = np.full_like(true, self.min_depth)
        if usable:
            found = self._metres(bilinear(image, (truth.shape[0], truth.shape[1]))[valid].astype(np.float64), true)
        ratio = found / true
        right = np.maximum(ratio, 1 / ratio) < _DELTA
        return (
            _PERCENT * float(right.mean()),
            _PERCENT * float((np.abs(found - true) / true).mean()),
            float(np.sqrt(((found - true) ** 2).mean())),
            float(np.median(ratio)),
        )

    def _metres(self, found: Array, true: Array) -> Array:
        """Predictions as depths within the limits, aligned with the label."""
        inverse = self.predicts == "disparity"
        wanted = 1 / true if inverse else true
        if self.align == "affine":
            scale, shift = _fitted(found, wanted)
            found = scale * found + shift
        if inverse:
            found = 1 / np.maximum(found, 1 / self.max_depth)
        if self.align == "median":
            found = found * (np.median(true) / max(float(np.median(found)), self.min_depth))
        limited: Array = np.clip(found, self.min_depth, self.max_depth)
        return limited

    def _maps(self, outputs: Mapping[str, Array]) -> Array:
        """(batch, h, w)."""
        narrow = {name: v[:, 0] if v.ndim == 4 and v.shape[1] == 1 else v for name, v in outputs.items()}
        return _outputs.chosen(narrow, self.output, ("predicted_depth",), 3, "(batch, height, width)", _FIX)


def _fitted(found: Array, wanted: Array) -> tuple[float, float]:
    """Scale and shift that bring `found` nearest to `wanted`, by least squares."""
    spread = float(((found - found.mean()) ** 2).mean())
    if spread == 0:
        return 0.0, float(wanted.mean())
    scale = float(((found - found.mean()) * (wanted - wanted.mean())).mean()) / spread
    return scale, float(wanted.mean()) - scale * float(found.mean())
