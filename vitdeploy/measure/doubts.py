"""What the samples themselves say against a comparison."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from vitdeploy.evidence import Run
from vitdeploy.measure.statistics import Array, block_log_ratios, robust_spread

# Robust spread of the log-ratios over the blocks. Contended cores show 15 % and more, quiet ones 1 to 5 %.
MAX_SPREAD = 0.15
# First against last third of the blocks: this much, and three standard errors of the difference.
MAX_DRIFT = 0.05

_DRIFT_ERRORS = 3.0
_MEDIAN_ERROR = 1.2533  # standard error of a median = sqrt(pi / 2) * sigma / sqrt(n), for normal values


def of_runs(runs: Sequence[Run]) -> tuple[str, ...]:
    """One line for each; a lone session is held against its own past."""
    found = [f"{run.name}: outputs are not finite" for run in runs if not run.finite]
    found += [f"{run.name}: {run.effective['doubt']}" for run in runs if "doubt" in run.effective]
    reference, others = runs[0], runs[1:]
    if not others:
        medians = np.array([float(np.median(block)) for block in reference.blocks])
        found += _unsteady(np.log(medians), f"the latency of {reference.name}")
    for run in others:
        found += _unsteady(block_log_ratios(reference.blocks, run.blocks), f"the speed-up of {run.name}")
        if reference.threads and run.threads and reference.threads != run.threads:
            found.append(f"{run.name} uses {run.threads} threads, {reference.name} {reference.threads}")
    return tuple(found)


def _unsteady(logs: Array, what: str) -> list[str]:
    found = []
    spread = robust_spread(logs)
    if spread > MAX_SPREAD:
        found.append(f"{what} varies by {spread:.0%} from block to block (limit {MAX_SPREAD:.0%})")
    third = len(logs) // 3
    drift = float(np.median(logs[-third:]) - np.median(logs[:third]))
    # From one block to the next there is noise but hardly any drift (von Neumann 1941, mean successive differences).
    noise = _MEDIAN_ERROR * robust_spread(np.diff(logs)) / math.sqrt(2) * math.sqrt(2 / third)
    if abs(drift) > max(MAX_DRIFT, _DRIFT_ERRORS * noise):
        found.append(f"{what} drifted by {math.expm1(drift):+.0%} from start to end (limit {MAX_DRIFT:.0%})")
    return found
