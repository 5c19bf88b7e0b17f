"""Artifacts with good evidence for the cases to start from, made by the commands themselves."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tests.robustness import tiny

os.environ.setdefault("HF_HUB_OFFLINE", "1")


def export_tiny(folder: Path, **options: Any) -> Path:
    """Export the tiny ViT for ONNX Runtime. Return the artifact's folder."""
    from vitdeploy import recipe as recipes
    from vitdeploy.commands.export import export
    from vitdeploy.progress import Silent

    tiny.write_inputs(folder)
    recipe = recipes.compose(str(folder / "tiny.onnx"), target="onnxruntime", **options)
    export(recipe, folder / "artifact", Silent())
    return folder / "artifact"


def add_evidence(artifact: Path, data: Path) -> None:
    """Evaluate and time the artifact, by a clock and on a machine that nothing disturbs."""
    from vitdeploy import artifact as artifacts
    from vitdeploy.commands.bench.bench import Plan, bench
    from vitdeploy.commands.evaluate.evaluate import evaluate
    from vitdeploy.measure import conditions, latency, stopwatch
    from vitdeploy.progress import Silent

    loaded = artifacts.load(artifact)
    evaluate(loaded, str(data), Silent())
    clock, quiet = _Clock(), conditions.Block(others=0.0, steal=0.0, switches=0.0, mhz=None)
    with (
        patch.object(stopwatch, "time", clock),
        patch.object(latency, "time", clock),
        patch.object(conditions, "settle", lambda: None),
        patch.object(conditions, "take_snapshot", lambda: None),
        patch.object(conditions, "describe_block", lambda before, after: quiet),
    ):
        bench([loaded], Silent(), Plan(seconds=0.2, threads=1))


class _Clock:
    """Time that passes only when it is asked for: about 2 ms each time, so that there are few samples."""

    def __init__(self) -> None:
        self._ns = self._asked = 0

    def perf_counter_ns(self) -> int:
        """Nanoseconds."""
        self._asked += 1
        self._ns += 2_000_000 + self._asked * 7919 % 1000
        return self._ns

    def perf_counter(self) -> float:
        """Seconds."""
        return self.perf_counter_ns() / 1e9

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self._ns += int(seconds * 1e9)
