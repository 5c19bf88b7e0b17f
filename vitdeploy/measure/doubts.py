"""Reasons to distrust a comparison, found in the samples."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from vitdeploy.evidence import Run
from vitdeploy.measure.statistics import Array, block_log_ratios, robust_spread

# Robust spread of the log-ratios over the blocks: 1 to 5 % on quiet cores, 15 % and more on contended ones.
MAX_SPREAD = 0.15
# Difference between the first and the last third of the blocks. It must also exceed _DRIFT_ERRORS standard errors.
MAX_DRIFT = 0.05

_DRIFT_ERRORS = 3.0
_MEDIAN_ERROR = 1.2533  # standard error of a median = sqrt(pi / 2) * sigma / sqrt(n), for normal values


def find_doubts(runs: Sequence[Run]) -> tuple[str, ...]:
    """Return one line for each reason. A single run is compared with its own earlier blocks."""
    reference, *others = runs
    if others:
        own = [find_own_doubts(reference), *(find_own_doubts(run, reference) for run in others)]
        return tuple(reason for reasons in own for reason in reasons)
    medians = np.array([float(np.median(block)) for block in reference.blocks])
    return (*find_own_doubts(reference), *_find_variation(np.log(medians), f"the latency of {reference.name}"))


def find_own_doubts(run: Run, reference: Run | None = None) -> tuple[str, ...]:
    """Return the reasons to distrust one run, and its speed-up over a reference that was timed in the same blocks."""
    reasons = [] if run.finite else [f"{run.name}: outputs are not finite"]
    if "doubt" in run.effective:
        reasons.append(f"{run.name}: {run.effective['doubt']}")
    if reference is not None:
        reasons += _find_variation(block_log_ratios(reference.blocks, run.blocks), f"the speed-up of {run.name}")
        if reference.threads and run.threads and reference.threads != run.threads:
            reasons.append(f"{run.name} uses {run.threads} threads, but {reference.name} uses {reference.threads}")
    return tuple(reasons)


def _find_variation(logs: Array, quantity: str) -> list[str]:
    """Check the logarithms of a quantity, one per block, for spread and drift."""
    reasons = []
    spread = robust_spread(logs)
    if spread > MAX_SPREAD:
        reasons.append(f"{quantity} varies by {spread:.0%} from block to block (limit {MAX_SPREAD:.0%})")
    third = len(logs) // 3
    drift = float(np.median(logs[-third:]) - np.median(logs[:third]))
    # The difference of two successive blocks is noise and hardly any drift (von Neumann 1941, mean square successive
    # difference), so it gives the standard error of the drift.
    noise = _MEDIAN_ERROR * robust_spread(np.diff(logs)) / math.sqrt(2) * math.sqrt(2 / third)
    if abs(drift) > max(MAX_DRIFT, _DRIFT_ERRORS * noise):
        reasons.append(f"{quantity} drifted by {math.expm1(drift):+.0%} from start to end (limit {MAX_DRIFT:.0%})")
    return reasons
