"""Image classification: top-1 and top-5."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from vitdeploy.errors import DataError
from vitdeploy.session import Array
from vitdeploy.tasks import PerSample, Task, _outputs

_TOP = 5
_PERCENT = 100.0


class Classification(Task):
    """A class for each image, out of (batch, classes) scores.

    `output` names the scores where the model has several outputs; by default "logits", else the first 2-D one.
    """

    units: ClassVar[Mapping[str, str]] = {"top1": "points", "top5": "points"}
    output: str | None = None

    def answers(self, outputs: Mapping[str, Array]) -> list[Array]:
        """The best class of each image; of equal scores the lower index."""
        return list(self._scores(outputs).argmax(axis=1))

    def alike(self, reference: Array, deployed: Array) -> float:
        """1 when both name the same class, else 0."""
        return float(reference == deployed)

    def statistics(self, outputs: Mapping[str, Array], labels: Array) -> PerSample:
        """0 or 1 for each sample: was the label the best class (top1), was it among the best five (top5).

        top5 is left out when there are five classes or fewer. Of equal scores the lower index wins;
        a sample with NaN or infinite scores is wrong.
        """
        scores = self._scores(outputs)
        if len(scores) != len(labels):
            raise DataError(f"{len(scores)} predictions for {len(labels)} labels", fix="Give every image one label.")
        classes = scores.shape[1]
        if len(labels) and (labels.min() < 0 or labels.max() >= classes):
            raise DataError(
                f"labels go from {labels.min()} to {labels.max()}, the model has {classes} classes",
                fix="Use the model's class indices as labels.",
            )
        own = scores[np.arange(len(labels)), labels][:, None]
        earlier = np.arange(classes)[None, :] < labels[:, None]
        finite = np.isfinite(scores).all(axis=1)  # NaN compares as false everywhere, and would be ranked first
        rank = ((scores > own) | ((scores == own) & earlier)).sum(axis=1)
        values = {"top1": ((rank < 1) & finite).astype(np.float64)}
        if classes > _TOP:
            values["top5"] = ((rank < _TOP) & finite).astype(np.float64)
        return PerSample(values, scores.argmax(axis=1))

    def aggregate(self, statistics: PerSample) -> Mapping[str, float]:
        """Shares of the samples, in points (percent).

        Raises:
            DataError: there are no samples.
        """
        if not len(statistics.prediction):
            raise DataError("there are no samples to count", fix="Give data with images.")
        return {name: _PERCENT * float(values.mean()) for name, values in statistics.values.items()}

    def _scores(self, outputs: Mapping[str, Array]) -> Array:
        what, fix = "(batch, classes)", "Classify with a classifier."
        return _outputs.chosen(outputs, self.output, ("logits",), 2, what, fix)
