"""Measure what fewer tokens save and lose: the Fashion-MNIST ViT with 197 tokens, its tokens merged or dropped.

    python -m benchmarks.fewer_tokens [--seconds S]

For each target and precision, artifacts without merging, with few bulk merges, with a merge in each block as published,
with the schedule that `--merge-tokens auto` finds, and with patches dropped at fixed places, are timed in turns in one
process. Each answers the 10,000 test images. Writes benchmarks/fewer_tokens.md; rows that are in it already are kept,
unless --fresh is given.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fashion_mnist.data import LabelledImages, draw_calibration, read_split
from benchmarks.fashion_mnist.model import MEAN, STD
from benchmarks.tables import describe_machine, format_doubts, format_ratio, read_valid_rows, write_page
from vitdeploy import environment
from vitdeploy import recipe as recipes
from vitdeploy.artifact import Artifact
from vitdeploy.commands.export import export
from vitdeploy.evidence import Audit
from vitdeploy.measure.latency import measure
from vitdeploy.measure.statistics import paired_drop, ratio_interval
from vitdeploy.progress import Silent
from vitdeploy.runtime.artifact_session import open_session
from vitdeploy.session import Array, Session

TABLE = Path(__file__).with_suffix(".md")
MODEL = "python:benchmarks.fashion_mnist.fine:load_trained"
COLUMNS = (
    "target", "precision", "tokens", "fewer behind each block", "attention fused", "p50 ms", "× all tokens", "top-1 %",
    "drop, points [95 %]", "measurement",
)  # fmt: skip
COMBINATIONS = (("openvino", "fp32"), ("openvino", "int8"), ("onnxruntime", "fp32"), ("onnxruntime", "int8"))
ALL = "all"
WAYS: dict[str, dict[str, Any]] = {
    ALL: {},
    "merged once": {"merge_tokens": "0:98"},
    "merged in bulk": {"merge_tokens": "0:98,3:49"},
    "merged in bulk, earlier": {"merge_tokens": "0:98,2:49"},
    "merged in each block": {"merge_tokens": "0:24,1:24,2:24,3:24,4:24"},
    "merged as `auto` found": {"merge_tokens": "auto"},
    "dropped at fixed places": {"drop_tokens": "0:98,2:49"},
}
MAX_DROP = 1.0
CALIBRATION_IMAGES = 2048
"""Training images: INT8 takes its ranges from the first of them, and `auto` is judged on as many as 20 s allow."""


def main() -> None:
    """Measure every target and precision, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=40.0, help="time for each combination (default: 40)")
    parser.add_argument("--fresh", action="store_true", help="measure rows again that are in the table")
    arguments = parser.parse_args()
    rows = [] if arguments.fresh else read_valid_rows(TABLE, COLUMNS)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        images, labels = draw_calibration(read_split("train"), CALIBRATION_IMAGES)
        np.savez_compressed(folder / "calibration.npz", images=images, labels=labels)
        test = read_split("test")
        for target, precision in COMBINATIONS:
            if not any(row[:2] == (target, precision) for row in rows):
                rows += _measure(target, precision, folder, test, arguments.seconds)
                write_page(TABLE, _heading(), COLUMNS, rows)
    print(TABLE.read_text(encoding="utf-8"))


def _measure(
    target: str, precision: str, folder: Path, test: LabelledImages, seconds: float
) -> Iterator[tuple[str, ...]]:
    artifacts: dict[str, Artifact] = {}
    for label, options in WAYS.items():
        recipe = recipes.compose(
            MODEL, target=target, precision=precision, calibration=str(folder / "calibration.npz"),
            max_drop=MAX_DROP if "auto" in options.values() else None, **options,
        )  # fmt: skip
        out = folder / f"{target}-{precision}-{len(artifacts)}"
        artifacts[label] = export(recipe, out, Silent()).artifact
    with ExitStack() as stack:
        sessions = [open_session(artifact, environment.available_cores()) for artifact in artifacts.values()]
        for session in sessions:
            stack.enter_context(session)
        names = [artifact.manifest.inputs[0].name for artifact in artifacts.values()]
        image = _normalize(test.images[:1])
        bench = measure(sessions, [{name: image} for name in names], batch=1, seconds=seconds)
        right = [_answer(session, name, test) for session, name in zip(sessions, names, strict=True)]
    for label, artifact, run, correct in zip(artifacts, artifacts.values(), bench.runs, right, strict=True):
        audit, _ = artifact.read_evidence(Audit)
        assert audit is not None
        speed, drop = ratio_interval(bench.runs[0].blocks, run.blocks), paired_drop(right[0], correct)
        low, high = (100 * bound for bound in drop.ci95)
        fused = f"{audit.attention.fused} of {audit.attention.sites}"
        faster = format_ratio(None if label == ALL else speed)
        lost = "" if label == ALL else f"{100 * drop.drop:.2f} [{low:.2f}, {high:.2f}]"
        yield (
            target, precision, label, describe_schedule(artifact), fused, f"{run.p50_ms:.2f}", faster,
            f"{100 * drop.deployed:.2f}", lost, format_doubts(bench),
        )  # fmt: skip


def _normalize(images: Array) -> Array:
    """Bring uint8 (N, 28, 28) to what the model takes."""
    pixels: Array = (images[:, None].astype(np.float32) / 255 - np.float32(MEAN[0])) / np.float32(STD[0])
    return pixels


def _answer(session: Session, name: str, test: LabelledImages) -> Array:
    """Return 1 for each test image that is labelled correctly, else 0."""
    answers = [next(iter(session.run({name: _normalize(image[None])}).values())).argmax() for image in test.images]
    right: Array = (np.array(answers) == test.labels).astype(np.int64)
    return right


def describe_schedule(artifact: Artifact) -> str:
    """Return how many tokens fewer there are behind which block: `0:98,3:49`."""
    tokens = artifact.manifest.tokens
    if tokens is None:
        return ""
    removed = tokens.merged or {block: len(patches) for block, patches in tokens.dropped.items()}
    return ",".join(f"{block}:{count}" for block, count in sorted(removed.items()))


def _heading() -> list[str]:
    return [
        "# Fewer tokens",
        "",
        "The [Fashion-MNIST ViT](fashion_mnist/README.md) with 197 tokens and six blocks, at batch 1. `0:98,3:49`:",
        "behind block 0 there are 98 tokens fewer, behind block 3 another 49. All ways of a target and precision are",
        "timed in turns in one process; **× all tokens** is how many times as fast a way is as the same precision with",
        "all tokens, with the 95 % bootstrap interval over blocks. The drop is against the same precision with all",
        "tokens on the 10,000 test images, with its paired 95 % interval.",
        f"`auto` had a budget of {MAX_DROP:g} point on up to {CALIBRATION_IMAGES} training images.",
        "Made by `python -m benchmarks.fewer_tokens`.",
        "",
        describe_machine("torch", "timm", "onnxruntime", "openvino"),
    ]


if __name__ == "__main__":
    main()
