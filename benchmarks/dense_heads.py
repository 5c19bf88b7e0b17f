"""Time dense models with and without 1×1 convolutions before what enlarges their maps.

    python -m benchmarks.dense_heads [--seconds S] [--fresh]

Exports each model twice for each target: as vitdeploy does, and with its passes `HoistPointwise` and `MergeLinears`
switched off. All are timed in turns in one process. Writes benchmarks/dense_heads.md; valid rows that are in it already
stay, unless --fresh is given.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

from benchmarks import as_transformers
from benchmarks.images import make_input
from benchmarks.tables import describe_machine, format_doubts, format_ratio, read_valid_rows, write_page
from vitdeploy import environment
from vitdeploy import recipe as recipes
from vitdeploy.artifact import Artifact
from vitdeploy.commands.export import export
from vitdeploy.measure.latency import measure
from vitdeploy.measure.statistics import ratio_interval
from vitdeploy.passes import PassResult
from vitdeploy.passes.hoist_pointwise import HoistPointwise
from vitdeploy.passes.merge_linears import MergeLinears
from vitdeploy.progress import Silent
from vitdeploy.runtime.artifact_session import open_session

TABLE = Path(__file__).with_suffix(".md")
COLUMNS = ("model", "target", "precision", "as it is, ms", "moved, ms", "×", "measurement")
MODELS = {
    "SegFormer-B0, 512 px": as_transformers.SEGFORMER_B0,
    "Depth-Anything-Small (DPT), 518 px": as_transformers.DEPTH_SMALL,
}
WAYS = (("openvino", "fp32"), ("openvino", "bf16"), ("onnxruntime", "fp32"))
Row = tuple[str, ...]


def main() -> None:
    """Measure every model, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="time for each model and target (default: 60)")
    parser.add_argument("--fresh", action="store_true", help="measure rows again that are in the table")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = [] if arguments.fresh else read_valid_rows(TABLE, COLUMNS)
    for title, model in MODELS.items():
        for target, precision in WAYS:
            if (title, target, precision) in {row[:3] for row in rows}:
                continue
            with tempfile.TemporaryDirectory() as folder:
                as_transformers.save_random(Path(folder, "hf"), model)
                row = (title, target, precision, *_measure(Path(folder), target, precision, arguments.seconds))
            print(*row, sep=" | ", flush=True)
            rows = sorted([*rows, row], key=lambda row: (list(MODELS).index(row[0]), WAYS.index((row[1], row[2]))))
            write_page(TABLE, _heading(), COLUMNS, rows)


def _measure(folder: Path, target: str, precision: str, seconds: float) -> Row:
    artifacts = [*_export(folder, target, precision)]
    with ExitStack() as stack:
        sessions = [open_session(artifact, environment.available_cores()) for artifact in artifacts]
        for session, name in zip(sessions, ("as it is", "moved"), strict=True):
            session.name = name
            stack.enter_context(session)
        manifest = artifacts[0].manifest
        feeds = {manifest.inputs[0].name: make_input(manifest.preprocess)}
        bench = measure(sessions, [feeds] * len(sessions), batch=1, seconds=seconds)
    before, after = bench.runs
    ratio = format_ratio(ratio_interval(before.blocks, after.blocks), digits=2)
    return f"{before.p50_ms:.1f}", f"{after.p50_ms:.1f}", ratio, format_doubts(bench)


def _export(folder: Path, target: str, precision: str) -> Iterator[Artifact]:
    """Yield an artifact without the two passes, and one with them."""
    recipe = recipes.compose(f"hf:{folder / 'hf'}", target=target, precision=precision, weights="random")
    with ExitStack() as stack:
        for rewrite in (HoistPointwise, MergeLinears):
            stack.enter_context(patch.object(rewrite, "apply", lambda *_: PassResult(0)))
        yield export(recipe, folder / "before", Silent()).artifact
    yield export(recipe, folder / "after", Silent()).artifact


def _heading() -> list[str]:
    return [
        "# 1×1 convolutions before maps are enlarged",
        "",
        "Heads for dense tasks enlarge maps and compute a 1×1 convolution on them. vitdeploy computes it on the small",
        "maps, and enlarges the result: the same numbers up to rounding. In SegFormer's head it also splits the",
        "convolution over the four maps that are joined, and merges each part with the linear before it.",
        "*as it is*: vitdeploy's artifact without that; *moved*: with it. Random weights, batch 1, both timed in",
        "turns in one process. **×** is how many times as fast, with its 95 % bootstrap interval over blocks.",
        "Made by `python -m benchmarks.dense_heads`.",
        "",
        describe_machine("torch", "transformers", "onnxruntime", "openvino"),
    ]


if __name__ == "__main__":
    main()
