"""Short measurements: what figures are worth is tested in tests/measure, with the usual times."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

SHORT: dict[str, dict[str, float]] = {
    "vitdeploy.commands.bench.host_peak": {"_SECONDS": 0.0, "_MIN_RUNS": 2},
    "vitdeploy.measure.latency": {"_MIN_WARM_UP_S": 0.05},
    "vitdeploy.measure.stopwatch": {"MIN_TURN_S": 0.005, "RUN_IN_S": 0.0},
    "vitdeploy.pipeline.fastest": {"GLANCE_SECONDS": 0.1, "SECONDS": 0.1, "LONGER_SECONDS": 0.1},
}


def shorten(set_constant: Callable[[Any, str, float], None], modules: Mapping[str, Any]) -> None:
    """Let those of the modules that are imported measure for a moment. `set_constant` is `setattr` or like it."""
    for name, constants in SHORT.items():
        for constant, value in constants.items() if name in modules else ():
            set_constant(modules[name], constant, value)
