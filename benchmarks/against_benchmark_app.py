"""Compare vitdeploy's stopwatch with OpenVINO's own `benchmark_app` on the same exported model.

    python -m benchmarks.against_benchmark_app [--rounds N] [--seconds S]

One round opens the exported model, times it and closes it; then `benchmark_app` does the same in a process of its own.
Both use the same file, threads, hint and precision, and run one inference at a time. The order within a round is
random. The table gives the median ratio over the rounds with the sign test's 95 % interval.

`benchmark_app` reports the latency that OpenVINO's request measures itself (`InferRequest.latency`). `vitdeploy` times
what a caller waits for, which includes passing inputs and outputs. The table shows both. Writes
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

from benchmarks.images import save_crops
from benchmarks.tables import describe_machine, format_ratio, read_rows, write_page
from vitdeploy import environment, telemetry
from vitdeploy import recipe as recipes
from vitdeploy.artifact import Artifact
from vitdeploy.commands.export import export
from vitdeploy.data.synthetic import natural_image
from vitdeploy.measure.intervals import speedup_interval
from vitdeploy.measure.latency import measure
from vitdeploy.progress import Silent
from vitdeploy.runtime.artifact_session import feed, open_session
from vitdeploy.session import Array, Feeds
from vitdeploy.targets._openvino_session import OpenVINOSession

CASES = (
    ("deit_tiny_patch16_224", "fp32", None),
    ("deit_tiny_patch16_224", "fp32", 1),
    ("deit_tiny_patch16_224", "int8", None),
    ("vit_base_patch16_224", "fp32", None),
)
"""timm's name, the precision, and the number of threads (None: every core)."""
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
    parser.add_argument("--rounds", type=int, default=20, help="how often each side is opened (default: 20)")
    parser.add_argument("--seconds", type=float, default=3.0, help="time for each side in a round (default: 3)")
    arguments = parser.parse_args()
    rows = read_rows(TABLE, COLUMNS)
    for name, precision, limit in CASES:
        threads = limit or environment.available_cores()
        case = f"{name} {precision}", str(threads)
        if case in {row[:2] for row in rows}:
            continue
        with tempfile.TemporaryDirectory() as folder:
            artifact = _export(name, precision, Path(folder))
            figures = _compare(artifact, threads, arguments.rounds, arguments.seconds)
        rows.append((*case, *figures))
        print(*rows[-1], sep=" | ", flush=True)
        write_page(TABLE, _heading(arguments.rounds, arguments.seconds), COLUMNS, rows)


def _export(name: str, precision: str, folder: Path) -> Artifact:
    calibration = None if precision == "fp32" else save_crops(folder / "images")
    recipe = recipes.compose(
        f"timm:{name}", target="openvino", precision=precision, weights="random", calibration=calibration
    )
    return export(recipe, folder / "out", Silent()).artifact


def _compare(artifact: Artifact, threads: int, rounds: int, seconds: float) -> tuple[str, ...]:
    """Time both sides in turns; return the cells of the row that follow its name."""
    rng = random.Random(0)
    caller, request, app = ([] for _ in range(3))
    for _ in range(rounds):
        for side in rng.sample(["vitdeploy", "benchmark_app"], 2):
            if side == "vitdeploy":
                caller_ms, request_ms = _time_with_vitdeploy(artifact, threads, seconds)
                caller.append((caller_ms,))
                request.append((request_ms,))
            else:
                app.append((_time_with_app(artifact, threads, seconds),))
    # How many times as fast benchmark_app is: the time of vitdeploy's side over that of benchmark_app.
    over_app = [speedup_interval(side, app, [1] * rounds) for side in (request, caller)]
    low, high = over_app[0].ci95
    medians = (f"{float(np.median(side)):.3f}" for side in (caller, request, app))
    agree = "yes" if low <= 1 <= high else f"no: {100 * (over_app[0].ratio - 1):+.1f} %"
    return *medians, format_ratio(over_app[0]), agree, format_ratio(over_app[1])


def _time_with_vitdeploy(artifact: Artifact, threads: int, seconds: float) -> tuple[float, float]:
    """Return two medians of the same runs in ms: what a caller waited for, and what OpenVINO's request measured."""
    images = natural_image(0, artifact.manifest.preprocess, 1)
    request_ms: list[float] = []
    with open_session(artifact, threads) as session:
        assert isinstance(session, OpenVINOSession)
        original = session.run

        def run_and_note(feeds: Feeds) -> dict[str, Array]:
            outputs = original(feeds)
            request_ms.append(session._idle[0].latency)
            return outputs

        session.run = run_and_note  # type: ignore[method-assign]
        bench = measure([session], [feed(artifact, images)], batch=1, seconds=seconds)
    run = bench.runs[0]
    return run.p50_ms, float(np.median(request_ms[-run.samples :]))


def _time_with_app(artifact: Artifact, threads: int, seconds: float) -> float:
    """Return the median in ms that `benchmark_app` prints."""
    options = {"-d": "CPU", "-api": "sync", "-infer_precision": "f32", "-t": max(round(seconds), 1)}
    if threads == environment.available_cores():
        options["-hint"] = "latency"
    else:  # benchmark_app takes no number of threads beside a hint; these are what the latency hint sets
        options |= {"-hint": "none", "-nthreads": threads, "-nstreams": 1}
    command = [sys.executable, "-c", _APP, "-m", str(artifact.path / "model.xml")]
    command += [str(part) for pair in options.items() for part in pair]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=telemetry.environment_without())
    match = _MEDIAN.search(done.stdout)
    if done.returncode or match is None:
        sys.exit(f"benchmark_app printed no median:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return float(match[1])


def _heading(rounds: int, seconds: float) -> list[str]:
    return [
        "# The stopwatch against OpenVINO's own",
        "",
        "Median latency at batch 1 with the latency hint, of the same exported file; what is not quantized computes in",
        f"float32. Each side ran in {rounds} rounds of {seconds:g} s. `benchmark_app` reports what OpenVINO's request",
        "measures itself; a caller also waits for inputs and outputs to be passed. A ratio above 1 means that",
        "`benchmark_app` reports less time. `agree`: the interval of the request's ratio contains 1. For one thread",
        "`benchmark_app` runs with the hint `none`, because it refuses `-nthreads` beside a hint, and vitdeploy with",
        "`latency`. Made by `python -m benchmarks.against_benchmark_app`.",
        "",
        describe_machine("timm", "openvino"),
    ]


if __name__ == "__main__":
    main()
