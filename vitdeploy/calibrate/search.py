"""Search for the way to quantize that changes the model's outputs least, on calibration images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from vitdeploy.artifact.quantization import SearchStep
from vitdeploy.artifact.temporary import scratch_folder
from vitdeploy.calibrate.choice import NORMS, VALUES_ALPHA, Alpha, Choice
from vitdeploy.graph.forced_selection import (
    drop_masked,
    expose_selections,
    force_selections,
    indices_of,
    list_selections,
    score_outputs,
)
from vitdeploy.graph.model import Graph
from vitdeploy.graph.onnx_session import OnnxSession
from vitdeploy.graph.sqnr import Noise, mean_sqnr_db
from vitdeploy.quantize import Calibration
from vitdeploy.session import Array, as_feeds, is_finite

ALPHAS: tuple[Alpha, ...] = (None, 0.25, 0.5, 0.75)
"""The coarse grid of migration strengths; None is no migration."""

SCORED_BATCHES = 16
_STEP = 0.125
_LEAST_GAIN_DB = 0.1
"""A smaller gain is noise with sixteen images. The simpler way is then chosen."""


@dataclass(frozen=True)
class ScoredChoice:
    """A choice with its signal-to-noise ratio in dB. 10 dB more is a tenth of the noise."""

    choice: Choice
    sqnr_db: float

    @property
    def record(self) -> SearchStep:
        """The choice and its ratio as the manifest stores them."""
        return SearchStep(
            alpha=VALUES_ALPHA if self.choice.alpha == NORMS else self.choice.alpha,
            norms=self.choice.alpha == NORMS,
            ranges=self.choice.ranges,
            bias_correction=self.choice.correct_bias,
            output_sqnr_db=self.sqnr_db if np.isfinite(self.sqnr_db) else None,
        )


class Judge:
    """Compares a graph's outputs with those of the float32 graph, on the first `SCORED_BATCHES` calibration batches.

    Where the model selects rows by score, the graph gets the rows that the float32 graph selected, and its scores are
    compared beside the outputs. Otherwise other rows in other places would hide what the rounding costs.
    """

    def __init__(self, graph: Graph, calibration: Calibration) -> None:
        self._feed = graph.model.graph.inputs[0].name or ""
        self._feeds = [dict(as_feeds(batch, self._feed)) for batch in islice(calibration.batches(), SCORED_BATCHES)]
        self._selections = list_selections(graph)
        self._scores = score_outputs(graph, self._selections)
        self._expected = self._run(expose_selections(graph, self._selections))
        for feeds, outputs in zip(self._feeds, self._expected, strict=True):
            names = [indices_of(selection) for selection in self._selections]
            feeds.update({name: outputs.pop(name) for name in names if name in outputs})

    def sqnr_db(self, graph: Graph) -> float:
        """Return the signal-to-quantization-noise ratio over all outputs with equal weights.

        It is minus infinity if an output is not finite.
        """
        actual = self._run(force_selections(graph, self._selections) if self._selections else graph)
        noises = {name: Noise() for name in self._expected[0]}
        for expected, outputs in zip(self._expected, actual, strict=True):
            pairs = drop_masked(expected, outputs, self._scores)
            if not is_finite({name: other for name, (_, other) in pairs.items()}):
                return -np.inf
            for name, noise in noises.items():
                noise.add(*pairs[name])
        return mean_sqnr_db(noises.values())

    def _run(self, graph: Graph) -> list[dict[str, Array]]:
        with scratch_folder("search") as folder:
            path = folder / "candidate.onnx"
            graph.save(path)
            # Not optimised: ONNX Runtime 1.32's optimiser has bugs with Q/DQ graphs (int8 activations).
            with OnnxSession(path, lean=True) as session:
                return [session.run(feeds) for feeds in self._feeds]


def find_best_choice(
    score: Callable[[Choice], float], *, alphas: Sequence[Alpha] = ALPHAS, tune_ranges: bool = True
) -> tuple[Choice, list[ScoredChoice]]:
    """Return the best choice, and all choices that were tried, in order.

    One option is searched after the other: the migration strength on a coarse grid that includes "off", then half a
    step to both sides of the best; then clipped ranges; then bias correction. An option that gains less than 0.1 dB is
    not used.

    Args:
        score: returns the signal-to-noise ratio of a choice in dB.
        alphas: the coarse grid; a single strength is used as it is.
        tune_ranges: whether to choose ranges and bias correction too. Dynamic activations have neither.
    """
    tried: list[ScoredChoice] = []

    def attempt(choice: Choice) -> ScoredChoice:
        tried.append(ScoredChoice(choice, score(choice)))
        return tried[-1]

    best = _pick_best(attempt(Choice(alpha=alpha)) for alpha in alphas)
    if len(alphas) > 1 and isinstance(best.choice.alpha, float):
        around = (best.choice.alpha - _STEP, best.choice.alpha + _STEP)
        best = _pick_best([best, *(attempt(replace(best.choice, alpha=alpha)) for alpha in around)])
    if tune_ranges:
        best = _pick_best([best, attempt(replace(best.choice, ranges="mse"))])
        best = _pick_best([best, attempt(replace(best.choice, correct_bias=True))])
    return best.choice, tried


def _pick_best(scored: Iterable[ScoredChoice]) -> ScoredChoice:
    """Return the best choice. A later one must be better by more than `_LEAST_GAIN_DB`."""
    best, *rest = scored
    for other in rest:
        if other.sqnr_db > best.sqnr_db + _LEAST_GAIN_DB:
            best = other
    return best
