"""Measure what fewer tokens save and lose in a dense model: a DPT with 197 tokens, which gives a depth for each pixel.

    python -m benchmarks.fewer_tokens_dense [--seconds S] [--fresh]

For each target and precision, artifacts without merging, with one merge, with few bulk merges, with a merge in each
block, and with patches dropped at fixed places, are timed in turns in one process. What was merged is put back in front
of each of the three layers that read patches at their places. Each artifact answers 1,000 rooms that were not trained
on. Writes benchmarks/fewer_tokens_dense.md; rows that are in it already are kept, unless --fresh is given.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.dense import scenes
from benchmarks.fewer_tokens import describe_schedule
from benchmarks.tables import describe_machine, format_doubts, format_ratio, read_valid_rows, write_page
from vitdeploy import environment
from vitdeploy import recipe as recipes
from vitdeploy.artifact import Artifact, Manifest
from vitdeploy.commands.evaluate.labelled import open_labelled
from vitdeploy.commands.evaluate.sides import RunningSide
from vitdeploy.commands.export import export
from vitdeploy.data.dataset import Dataset, named_batches
from vitdeploy.data.preprocess import to_input
from vitdeploy.evidence import Audit, Metric
from vitdeploy.frozen import replace
from vitdeploy.measure.accuracy import compare_accuracy
from vitdeploy.measure.latency import measure
from vitdeploy.measure.statistics import ratio_interval
from vitdeploy.progress import Silent
from vitdeploy.render.numbers import drop
from vitdeploy.runtime.artifact_session import open_session
from vitdeploy.session import Array, Session
from vitdeploy.tasks import Task, Values

TABLE = Path(__file__).with_suffix(".md")
MODEL = "python:benchmarks.dense.model:load_trained"
TASK = recipes.TaskSpec.model_validate({"kind": "depth", "predicts": "disparity"})
COLUMNS = (
    "target", "precision", "tokens", "fewer behind each block", "attention fused", "p50 ms", "× all tokens", "δ1 %",
    "δ1 lost, points [95 %]", "AbsRel %", "AbsRel more, points [95 %]", "measurement",
)  # fmt: skip
COMBINATIONS = (("openvino", "fp32"), ("openvino", "int8"), ("onnxruntime", "fp32"), ("onnxruntime", "int8"))
ALL = "all"
WAYS: dict[str, dict[str, Any]] = {
    ALL: {},
    "merged once": {"merge_tokens": "0:98"},
    "merged once, later": {"merge_tokens": "2:98"},
    "merged in bulk": {"merge_tokens": "0:98,2:49"},
    "merged in bulk, less": {"merge_tokens": "0:60,2:40"},
    "merged in each block": {"merge_tokens": "0:24,1:24,2:24,3:24,4:24"},
    "dropped at fixed places": {"drop_tokens": "0:98,2:49"},
}
CALIBRATION_ROOMS, TEST_ROOMS = 128, 1000
_FIRST_CALIBRATION = 100_000
_FIRST_TEST = 0


def main() -> None:
    """Measure every target and precision, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=40.0, help="time for each combination (default: 40)")
    parser.add_argument("--fresh", action="store_true", help="measure rows again that are in the table")
    arguments = parser.parse_args()
    rows = [] if arguments.fresh else read_valid_rows(TABLE, COLUMNS)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        scenes.write(folder / "calibration", CALIBRATION_ROOMS, _FIRST_CALIBRATION)
        scenes.write(folder / "test", TEST_ROOMS, _FIRST_TEST)
        for target, precision in COMBINATIONS:
            if not any(row[:2] == (target, precision) for row in rows):
                rows += _measure(target, precision, folder, arguments.seconds)
                write_page(TABLE, _heading(), COLUMNS, rows)
    print(TABLE.read_text(encoding="utf-8"))


def _measure(target: str, precision: str, folder: Path, seconds: float) -> Iterator[tuple[str, ...]]:
    artifacts: dict[str, Artifact] = {}
    for label, options in WAYS.items():
        recipe = recipes.compose(
            MODEL, target=target, precision=precision, calibration=str(folder / "calibration"), **options
        )
        out = folder / f"{target}-{precision}-{len(artifacts)}"
        artifacts[label] = export(replace(recipe, task=TASK), out, Silent()).artifact
    task, rooms = open_labelled(artifacts[ALL], str(folder / "test"))
    first = next(iter(named_batches(rooms, 1))).images
    with ExitStack() as stack:
        sessions = [open_session(artifact, environment.available_cores()) for artifact in artifacts.values()]
        for session in sessions:
            stack.enter_context(session)
        feeds = [_feed(artifact.manifest, first) for artifact in artifacts.values()]
        bench = measure(sessions, feeds, batch=1, seconds=seconds)
        pairs = zip(sessions, artifacts.values(), strict=True)
        values = [_answer(session, artifact.manifest, task, rooms) for session, artifact in pairs]
    for label, artifact, run, errors in zip(artifacts, artifacts.values(), bench.runs, values, strict=True):
        audit, _ = artifact.read_evidence(Audit)
        assert audit is not None
        metrics = compare_values(task, values[0], errors)
        speed = None if label == ALL else ratio_interval(bench.runs[0].blocks, run.blocks)
        cells = [(f"{metric.deployed:.2f}", "" if label == ALL else drop(metric)) for metric in metrics]
        fused = f"{audit.attention.fused} of {audit.attention.sites}"
        yield (
            target, precision, label, describe_schedule(artifact), fused, f"{run.p50_ms:.2f}", format_ratio(speed),
            *itertools.chain(*cells), format_doubts(bench),
        )  # fmt: skip


def compare_values(task: Task, reference: Values, deployed: Values) -> tuple[Metric, Metric]:
    """Return δ1 and AbsRel of an artifact, against one with all tokens."""
    same = np.ones(len(next(iter(reference.values()))))  # the agreement, which no column shows
    metrics = compare_accuracy(task.name, task, reference, deployed, same).metrics
    return metrics["delta1"], metrics["abs_rel"]


def _feed(manifest: Manifest, pixels: Array) -> dict[str, Array]:
    return {manifest.inputs[0].name: to_input(pixels, manifest.preprocess, manifest.recipe.target.input)}


def _answer(session: Session, manifest: Manifest, task: Task, rooms: Dataset) -> Values:
    """Return the statistics of the answers to all rooms."""
    side = RunningSide(session, task, manifest, manifest.recipe.target.input)
    for batch in named_batches(rooms, 1):
        side.answer(batch.images, batch.labels, 1)
    return side.values()


def _heading() -> list[str]:
    return [
        "# Fewer tokens in a dense model",
        "",
        "A [DPT](dense/README.md) with 197 tokens and six blocks gives a depth for each pixel of made-up rooms, at",
        "batch 1. It reads the patches at their places behind blocks 1, 3 and 5. There each patch gets the token that",
        "it was merged into. `0:98,2:49`: behind the attention of block 0 there are 98 tokens fewer, behind that of",
        "block 2 another 49. All ways of a target and precision are timed in turns in one process; **× all tokens** is",
        "how many times as fast a way is as the same precision with all tokens, with the 95 % bootstrap interval over",
        "blocks. The head, which fewer tokens do not make faster, is in it.",
        "",
        f"δ1 and AbsRel are those of {TEST_ROOMS:,} rooms that were not trained on, without alignment. Both losses are",
        "against the same precision with all tokens, with a paired 95 % bootstrap interval; above 0 is worse. INT8 is",
        f"calibrated on {CALIBRATION_ROOMS} rooms. Made by `python -m benchmarks.fewer_tokens_dense`.",
        "",
        describe_machine("torch", "transformers", "onnxruntime", "openvino"),
    ]


if __name__ == "__main__":
    main()
