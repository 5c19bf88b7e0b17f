"""Time the setting that `bench --tune-streams` finds against the default and against OpenVINO's hint for throughput.

    python -m benchmarks.streams [--seconds S] [--scenario NAME] [--fresh] [MODEL…]

The default and the hint run a model that was exported for batch 1, as such exports usually are. The search has one that
takes 1 to 32 images. All are timed in turns, opened anew in every round. Writes benchmarks/streams.md; rows that are in
it already are kept, unless --fresh is given.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from benchmarks.images import make_input, save_made_up
from benchmarks.tables import describe_machine, format_doubts, format_ratio, read_valid_rows, write_page
from vitdeploy import environment, sources
from vitdeploy import recipe as recipes
from vitdeploy.artifact import Artifact
from vitdeploy.commands.bench.tune_streams import SCENARIOS, tune_streams
from vitdeploy.commands.export import export
from vitdeploy.evidence import Scenario, StreamSetting
from vitdeploy.measure.intervals import speedup_interval
from vitdeploy.measure.latency import measure_reopened
from vitdeploy.measure.scenarios import IMAGES, Query, runs_in_query
from vitdeploy.progress import Silent
from vitdeploy.recipe import ModelSpec
from vitdeploy.runtime.artifact_session import open_session
from vitdeploy.session import Session

MODELS = ("deit_tiny_patch16_224", "vit_base_patch16_224")
TABLE = Path(__file__).with_suffix(".md")
COLUMNS = (
    "model", "target", "precision", "scenario", "setting", "streams", "batch", "images/s", "× default",
    "× THROUGHPUT hint", "kept by the search", "measurement",
)  # fmt: skip
COMBINATIONS = (("openvino", "fp32"), ("openvino", "int8"), ("onnxruntime", "fp32"), ("onnxruntime", "int8"))
DEFAULT, HINT, TUNED = "default", "THROUGHPUT hint", "tuned"
CALIBRATION_IMAGES = 32  # of noise: they change scales, not time
Row = tuple[str, ...]


def main() -> None:
    """Measure every model, target, precision and scenario, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="time of a search, and of what follows (default: 60)"
    )
    parser.add_argument("--scenario", choices=SCENARIOS, action="append", help="default: both")
    parser.add_argument("--fresh", action="store_true", help="measure rows again that are in the table")
    parser.add_argument("models", nargs="*", default=MODELS, help="timm's names (default: those of the table)")
    arguments = parser.parse_args()
    rows: list[Row] = [] if arguments.fresh else read_valid_rows(TABLE, COLUMNS)
    for name in arguments.models:
        for target, precision in COMBINATIONS:
            missing = [
                scenario
                for scenario in arguments.scenario or SCENARIOS
                if not any(row[:4] == (name, target, precision, scenario) for row in rows)
            ]
            if not missing:
                continue
            with tempfile.TemporaryDirectory() as folder:
                fixed, ranged = _export(name, target, precision, Path(folder))
                for scenario in missing:
                    rows += _measure((name, target, precision), fixed, ranged, scenario, arguments.seconds)
                    write_page(TABLE, _heading(), COLUMNS, rows)
    print(TABLE.read_text(encoding="utf-8"))


def _export(name: str, target: str, precision: str, folder: Path) -> tuple[Artifact, Artifact]:
    """Export for batch 1, and for 1 to 32 images."""
    model = sources.load(ModelSpec(spec=f"timm:{name}", weights="random"))
    calibration = save_made_up(folder / "images.npz", model.preprocess, CALIBRATION_IMAGES)
    exported: list[Artifact] = []
    for batch in ("1", f"1:1:{IMAGES['offline']}"):
        recipe = recipes.compose(
            f"timm:{name}", target=target, precision=precision, weights="random", batch=batch,
            calibration=calibration if precision == "int8" else None,
        )  # fmt: skip
        exported.append(export(recipe, folder / f"batch-{len(exported)}", Silent()).artifact)
    return exported[0], exported[1]


def _measure(labels: Row, fixed: Artifact, ranged: Artifact, scenario: Scenario, seconds: float) -> Iterator[Row]:
    """Search, then time the default, the hint and the setting that the search compared last."""
    threads = environment.available_cores()
    tuned = tune_streams(ranged, Silent(), scenario=scenario, seconds=seconds, threads=threads).scenarios[scenario]
    setting = tuned.settings.get("tuned", tuned.setting)
    sides: dict[str, tuple[Artifact, StreamSetting | None]] = {DEFAULT: (fixed, None)}
    if "hint" in tuned.settings:
        sides[HINT] = (fixed, tuned.settings["hint"])
    sides[TUNED] = (ranged, setting)
    batches = {name: 1 if name != TUNED else setting.batch for name in sides}
    openers = [
        partial(_open, artifact, threads, one, runs_in_query(scenario, batches[name]))
        for name, (artifact, one) in sides.items()
    ]
    feeds = [{"input": make_input(ranged.manifest.preprocess, batch)} for batch in batches.values()]
    bench = measure_reopened(openers, feeds, batch=IMAGES[scenario], seconds=seconds)
    runs = dict(zip(sides, bench.runs, strict=True))
    for name, run in runs.items():
        over_default = None if name == DEFAULT else speedup_interval(runs[DEFAULT].blocks, run.blocks, run.rounds)
        over_hint = ""
        if HINT in runs:
            over_hint = format_ratio(
                None if name == HINT else speedup_interval(runs[HINT].blocks, run.blocks, run.rounds)
            )
        yield (
            *labels, scenario, name, run.effective.get("streams", "1"), str(batches[name]),
            f"{IMAGES[scenario] * 1e3 / run.p50_ms:.1f}", format_ratio(over_default), over_hint,
            tuned.kept if name == TUNED else "", format_doubts(bench),
        )  # fmt: skip


def _open(artifact: Artifact, threads: int, setting: StreamSetting | None, runs: int) -> Session:
    return Query(open_session(artifact, threads, setting=setting), runs)


def _heading() -> list[str]:
    return [
        "# Streams and batches",
        "",
        "Images a second of a query of 8 images (`multi-stream`) and of 32 (`offline`), from the images in memory",
        "to the outputs, at the median query. **default** is an export for batch 1 with one stream on all threads.",
        "**THROUGHPUT hint** is",
        "the same with OpenVINO's hint, which chooses the streams. **tuned** is an export for 1 to 32 images with the",
        "best streams and batch of the grid that `vitdeploy bench --tune-streams` searches. **×** is how many times as",
        "many images a second, with the 95 % interval over rounds; each round opens all sides anew, and they are timed",
        "in turns. **kept by the search** is what `bench` and `load` use afterwards: `untuned` where nothing was",
        "certainly faster, or where the machine was too busy to tell. Weights are random. Made by",
        "`python -m benchmarks.streams`.",
        "",
        describe_machine("torch", "timm", "openvino", "onnxruntime"),
    ]


if __name__ == "__main__":
    main()
