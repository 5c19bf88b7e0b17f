"""Does the stopwatch agree with OpenVINO's own? `vitdeploy`'s median latency over that of `benchmark_app`.

    python -m benchmarks.against_benchmark_app [--rounds N] [--seconds S]

One round opens the exported model, times it, closes it, and has `benchmark_app` do the same in a process of its own:
same file, threads, hint and precision, one inference at a time. The order within a round is drawn. The ratio is the
median over the rounds, with the sign test's 95 % interval.

`benchmark_app` tells what OpenVINO's request says of itself (`InferRequest.latency`); `vitdeploy` times what a caller
waits for, inputs handed over and outputs taken included. Both are shown, and like is compared with like. Writes
benchmarks/against_benchmark_app.md.
"""

from __future__ import annotations

import argparse
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.int8_fusion import save_crops
from benchmarks.tables import machine, rows_of, written
from vitdeploy import environment
from vitdeploy import recipe as recipes
from vitdeploy.artifact import Artifact, load
from vitdeploy.commands.export import export
from vitdeploy.data.synthetic import natural_image
from vitdeploy.evidence import Interval
from vitdeploy.measure.intervals import speedup_interval
from vitdeploy.measure.latency import measure
from vitdeploy.progress import Silent
from vitdeploy.runtime.artifact_session import feeds, open_session
from vitdeploy.session import Array, Feeds
from vitdeploy.targets._openvino_session import OpenVINOSession

CASES = (
    ("deit_tiny_patch16_224", "fp32", None),
    ("deit_tiny_patch16_224", "fp32", 1),
    ("deit_tiny_patch16_224", "int8", None),
    ("vit_base_patch16_224", "fp32", None),
)
"""timm's name, the precision, and the threads; None: every core."""
TABLE = Path(__file__).with_suffix(".md")
COLUMNS = (
    "model", "threads", "a caller waits (ms)", "the request says (ms)", "benchmark_app (ms)",
    "the request over benchmark_app", "agree", "a caller over benchmark_app",
)  # fmt: skip
_MEDIAN = re.compile(r"Median:\s+([0-9.]+) ms")
_APP = "from openvino.tools.benchmark.main import main; main()"


def main() -> None:
    """Measure every case that the table lacks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20, help="openings of each side (default: 20)")
    parser.add_argument("--seconds", type=float, default=3.0, help="of timing in each (default: 3)")
    given = parser.parse_args()
    rows = rows_of(TABLE, COLUMNS)
    for name, precision, asked in CASES:
        threads = asked or environment.available_cores()
        title = f"{name} {precision}", str(threads)
        if title in {row[:2] for row in rows}:
            continue
        with tempfile.TemporaryDirectory() as folder:
            found = _compared(_exported(name, precision, Path(folder)), threads, given.rounds, given.seconds)
        rows.append((*title, *found))
        print(*rows[-1], sep=" | ", flush=True)
        written(TABLE, _heading(given.rounds, given.seconds), COLUMNS, rows)


def _exported(name: str, precision: str, folder: Path) -> Artifact:
    calibration = None
    if precision != "fp32":
        save_crops(folder / "images")
        calibration = str(folder / "images")
    recipe = recipes.compose(
        f"timm:{name}", target="openvino", precision=precision, weights="random", calibration=calibration
    )
    export(recipe, folder / "out", Silent())
    return load(folder / "out")


def _compared(artifact: Artifact, threads: int, rounds: int, seconds: float) -> tuple[str, ...]:
    drawn = random.Random(0)
    waited, inside, app = ([] for _ in range(3))
    for _ in range(rounds):
        for side in drawn.sample(["ours", "theirs"], 2):
            if side == "ours":
                caller, request = _ours(artifact, threads, seconds)
                waited.append((caller,))
                inside.append((request,))
            else:
                app.append((_app(artifact, threads, seconds),))
    # The time ratio of ours over theirs is how many times as fast theirs is.
    request, caller = (speedup_interval(ours, app, [1] * rounds) for ours in (inside, waited))
    low, high = request.ci95
    figures = (f"{float(np.median(side)):.3f}" for side in (waited, inside, app))
    agree = "yes" if low <= 1 <= high else f"no: {100 * (request.ratio - 1):+.1f} %"
    return *figures, _told(request), agree, _told(caller)


def _told(ratio: Interval) -> str:
    return f"{ratio.ratio:.3f} [{ratio.ci95[0]:.3f}, {ratio.ci95[1]:.3f}]"


def _ours(artifact: Artifact, threads: int, seconds: float) -> tuple[float, float]:
    """Medians in ms: what a caller waited for, and what the request said of the same runs."""
    images = natural_image(0, artifact.manifest.preprocess, 1)
    said: list[float] = []
    with open_session(artifact, threads) as session:
        assert isinstance(session, OpenVINOSession)
        run = session.run

        def listening(feeds: Feeds) -> dict[str, Array]:
            outputs = run(feeds)
            said.append(session._request.latency)
            return outputs

        session.run = listening  # type: ignore[method-assign]
        found = measure([session], [feeds(artifact, images)], batch=1, seconds=seconds)
    own = found.runs[0]
    return own.p50_ms, float(np.median(said[-own.samples :]))


def _app(artifact: Artifact, threads: int, seconds: float) -> float:
    asked = {"-d": "CPU", "-api": "sync", "-infer_precision": "f32", "-t": max(round(seconds), 1)}
    if threads == environment.available_cores():
        asked["-hint"] = "latency"
    else:  # benchmark_app takes no number of threads beside a hint; this is what the latency hint comes to
        asked |= {"-hint": "none", "-nthreads": threads, "-nstreams": 1}
    command = [sys.executable, "-c", _APP, "-m", str(artifact.path / "model.xml")]
    command += [str(part) for pair in asked.items() for part in pair]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = _MEDIAN.search(done.stdout)
    if done.returncode or found is None:
        sys.exit(f"benchmark_app told no median:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return float(found[1])


def _heading(rounds: int, seconds: float) -> list[str]:
    return [
        "# The stopwatch against OpenVINO's own",
        "",
        "Median latency at batch 1, latency hint, float32 where nothing is quantized, of the same exported file, in",
        f"{rounds} rounds of {seconds:g} s for each side. `benchmark_app` tells what OpenVINO's request says of",
        "itself, a caller also waits for inputs and outputs to be handed over. `agree`: the ratio's interval holds 1.",
        "For one thread it is asked with the hint `none`, which it wants then, and vitdeploy with `latency`.",
        "Made by `python -m benchmarks.against_benchmark_app`.",
        "",
        machine("timm", "openvino"),
    ]


if __name__ == "__main__":
    main()
