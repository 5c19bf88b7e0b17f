"""Measure how often the gate is wrong: run it many times, with and without a planted slow-down.

    python -m benchmarks.gate_error_rates run --what same --times 200     # adds to gate_error_rates.jsonl, resumes
    python -m benchmarks.gate_error_rates run --what slower --times 100
    python -m benchmarks.gate_error_rates run --what loaded --times 40    # beside a busy process on every core
    python -m benchmarks.gate_error_rates table                           # writes gate_error_rates.md

Each run is `vitdeploy gate NEW --baseline OLD`, where both folders hold the same artifact (demo:digits, OpenVINO INT8).
`slower` makes every inference of NEW take 5 % longer by computing. The accuracy rows are simulated, not measured: the
gate judges random pairs of outcomes with a known drop.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt

from vitdeploy import environment, tasks
from vitdeploy import recipe as recipes
from vitdeploy.artifact import Artifact, load
from vitdeploy.commands.export import export
from vitdeploy.commands.gate import gate as gating
from vitdeploy.frozen import replace
from vitdeploy.measure.accuracy import compare_accuracy
from vitdeploy.progress import Silent
from vitdeploy.recipe import BenchSpec, GateSpec, TaskSpec
from vitdeploy.runtime.artifact_session import open_session
from vitdeploy.session import Array, Feeds, Session
from vitdeploy.verdict import Case, judge

RESULTS = Path(__file__).with_suffix(".jsonl")
TABLE = Path(__file__).with_suffix(".md")
SECONDS = BenchSpec().seconds  # of timing in each run of the gate, as users have it
SLOW_DOWN = 0.05
DRAWS, SAMPLES, DISCORDANCE, MARGIN_PP = 2000, 10_000, 0.02, 0.5
TITLES = {
    "same": "nothing | left alone",
    "slower": "5 % slower | left alone",
    "loaded": "nothing | a busy process on every core",
    "loaded slower": "5 % slower | a busy process on every core",
}
"""What was planted, and the state of the machine."""


def main() -> None:
    """Run the gate, or write the table of the runs so far."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("do", choices=["run", "table"])
    parser.add_argument("--what", choices=list(TITLES), default="same", help="kind of run (default: same)")
    parser.add_argument("--times", type=int, default=200, help="stop at this number of recorded runs (default: 200)")
    parser.add_argument("--seconds", type=float, default=150.0, help="start no run after this time (default: 150)")
    arguments = parser.parse_args()
    if arguments.do == "run":
        run(arguments.what, arguments.times, arguments.seconds)
    else:
        TABLE.write_text(_page(), encoding="utf-8")
        print(TABLE.read_text(encoding="utf-8"))


def run(what: str, times: int, seconds: float) -> None:
    """Run the gate until `times` runs of this kind are recorded, or the time is up."""
    until = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder, _planted(what):
        old = Path(folder) / "old"
        recipe = recipes.compose("demo:digits", target="openvino", precision="int8")
        export(replace(recipe, bench=BenchSpec(seconds=SECONDS)), old, Silent())
        new = load(Path(shutil.copytree(old, Path(folder) / "new")))
        while len(read_results(what)) < times and time.monotonic() < until:
            verdict = gating.gate(new, {}, Silent(), baseline=old)
            check = next(check for check in verdict.checks if check.name == "slow-down")
            line = {"what": what, "status": check.status, "observed": check.observed, "why": check.why}
            with RESULTS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


@contextmanager
def _planted(what: str) -> Iterator[None]:
    """Slow down NEW and keep every core busy, as this kind of run wants."""
    cores = environment.available_cores() if "loaded" in what else 0
    burners = [multiprocessing.Process(target=_burn, daemon=True) for _ in range(cores)]
    slower = mock.patch.object(gating, "open_session", _open_slowly) if "slower" in what else nullcontext()
    with slower:
        try:
            for burner in burners:
                burner.start()
            yield
        finally:
            for burner in burners:
                burner.kill()


def _open_slowly(artifact: Artifact, threads: int | None) -> Session:
    """Open an artifact; the one in `new` takes longer for each inference."""
    session = open_session(artifact, threads)
    if artifact.path.name == "new":
        slowed: Any = session
        slowed.run = _slow_down(session.run)
    return session


def _slow_down(run: Callable[[Feeds], dict[str, Array]]) -> Callable[[Feeds], dict[str, Array]]:
    def slower(feeds: Feeds) -> dict[str, Array]:
        start = time.perf_counter()
        outputs = run(feeds)
        until = start + (time.perf_counter() - start) * (1 + SLOW_DOWN)
        while time.perf_counter() < until:
            pass
        return outputs

    return slower


def _burn() -> None:
    while True:
        pass


def read_results(what: str) -> list[dict[str, Any]]:
    """Read the runs of this kind so far."""
    if not RESULTS.exists():
        return []
    lines = [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line["what"] == what]


def simulate_gates(drop_pp: float, draws: int = DRAWS) -> dict[str, int]:
    """Count the gate's verdicts on `draws` simulated evaluations of models whose true drop is `drop_pp` points."""
    rng = np.random.default_rng(0)
    task = tasks.find(TaskSpec(kind="classification"))
    lost = (DISCORDANCE + drop_pp / 100) / 2
    counts = {"pass": 0, "invalid": 0, "fail": 0}
    for _ in range(draws):
        draw = rng.random(SAMPLES)
        reference, deployed = np.ones(SAMPLES), np.ones(SAMPLES)
        deployed[draw < lost] = 0
        reference[(draw >= lost) & (draw < DISCORDANCE)] = 0
        evaluation = compare_accuracy(
            "classification", task, _statistics(reference), _statistics(deployed), reference == deployed
        )
        verdict = judge(Case(None, None, evaluation), GateSpec(max_drop_pp=MARGIN_PP))
        counts[verdict.verdict] += 1
    return counts


def _statistics(right: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
    """Return the statistics of a classifier that was right (1) or wrong (0) on each sample."""
    labels = np.arange(len(right)) % 10
    return {"top1": right, "answer": np.where(right == 1, labels, (labels + 1) % 10), "label": labels}


def _page() -> str:
    host = environment.host()
    lines = [
        "# How often the gate is wrong",
        "",
        f"Runs of the gate on one artifact (demo:digits, OpenVINO INT8) against a copy of itself, {SECONDS:g} s of",
        f"timing each, with a limit of 2 %. Planted: every inference takes {SLOW_DOWN:.0%} longer. Observed: the",
        f"slow-down, above 0 is slower. Made by `python -m benchmarks.gate_error_rates` on {host.cpu}, {host.cores}",
        f"cores, {host.system} (a shared virtual machine), OpenVINO {environment.library_versions()['openvino']}.",
        "",
        "| planted | machine | runs | pass | invalid | fail | fail of the valid | observed, median (5 to 95 %) |",
        "|---|---|---:|---:|---:|---:|---:|---|",
    ]
    for what, title in TITLES.items():
        results = read_results(what)
        if results:
            lines.append(f"| {title} | {_row(results)} |")
    lines += [
        "",
        f"The same gate on {DRAWS:,} simulated evaluations of {SAMPLES:,} samples each, limit {MARGIN_PP} points.",
        f"One of the two models is right and the other one wrong on {DISCORDANCE:.0%} of the samples.",
        "",
        "| true drop (points) | pass | invalid | fail |",
        "|---:|---:|---:|---:|",
    ]
    for drop in (0.0, 0.3, 0.5, 1.0):
        counts = simulate_gates(drop)
        lines.append(f"| {drop} | " + " | ".join(f"{count / DRAWS:.1%}" for count in counts.values()) + " |")
    return "\n".join([*lines, ""])


def _row(results: list[dict[str, Any]]) -> str:
    statuses = [result["status"] for result in results]
    valid = [status for status in statuses if status != "invalid"]
    failed = f"{statuses.count('fail') / len(valid):.1%}" if valid else "–"
    counts = " | ".join(str(statuses.count(status)) for status in ("pass", "invalid", "fail"))
    observed = [result["observed"] for result in results if result["observed"] is not None]
    spread = "–"
    if observed:
        low, middle, high = np.percentile(observed, [5, 50, 95])
        spread = f"{middle:+.2f} % ({low:+.2f} to {high:+.2f})"
    return f"{len(results)} | {counts} | {failed} | {spread}"


if __name__ == "__main__":
    main()
