"""How often is the gate wrong? Many runs of it, with nothing planted and with a slow-down planted.

    python benchmarks/gate_error_rates.py run --what same --times 200     # adds to gate_error_rates.jsonl, resumes
    python benchmarks/gate_error_rates.py run --what slower --times 100
    python benchmarks/gate_error_rates.py run --what loaded --times 40    # beside a process on every core
    python benchmarks/gate_error_rates.py table                           # writes gate_error_rates.md

Each run is `vitdeploy gate NEW --baseline OLD`, where both folders hold the same artifact (demo:digits, OpenVINO INT8).
`slower` makes every inference of NEW take 5 % longer, by computing. The accuracy rows are drawn, not measured: pairs of
outcomes with a known drop, judged by the gate.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vitdeploy import environment, tasks
from vitdeploy import recipe as recipes
from vitdeploy.commands import gate as gating
from vitdeploy.commands.export import export
from vitdeploy.measure.accuracy import compare_accuracy
from vitdeploy.progress import Silent
from vitdeploy.recipe import BenchSpec, GateSpec, TaskSpec
from vitdeploy.verdict import Case, judge

RESULTS = Path(__file__).with_suffix(".jsonl")
TABLE = Path(__file__).with_suffix(".md")
SECONDS = BenchSpec().seconds  # of timing in each run of the gate: what users get
SLOW_DOWN = 0.05
DRAWS, SAMPLES, DISCORDANCE, MARGIN_PP = 2000, 10_000, 0.02, 0.5


def main() -> None:
    """Run the gate, or write the table of what was run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("do", choices=["run", "table"])
    parser.add_argument("--what", choices=["same", "slower", "loaded", "loaded slower"], default="same")
    parser.add_argument("--times", type=int, default=200, help="stop when so many are recorded")
    parser.add_argument("--seconds", type=float, default=150.0, help="stop after so long (default: 150)")
    given = parser.parse_args()
    if given.do == "run":
        run(given.what, given.times, given.seconds)
    else:
        TABLE.write_text(table(), encoding="utf-8")
        print(TABLE.read_text(encoding="utf-8"))


def run(what: str, times: int, seconds: float) -> None:
    """Judge until `times` runs of this kind are recorded, or the time is up."""
    until = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder, _planted(what):
        old = Path(folder) / "old"
        recipe = recipes.compose("demo:digits", target="openvino", precision="int8")
        export(recipe.model_copy(update={"bench": BenchSpec(seconds=SECONDS)}), old, Silent())
        new = Path(shutil.copytree(old, Path(folder) / "new"))
        while len(recorded(what)) < times and time.monotonic() < until:
            found = gating.gate(new, {}, Silent(), baseline=old)
            check = next(check for check in found.checks if check.name == "slow-down")
            line = {"what": what, "status": check.status, "observed": check.observed, "why": check.why}
            with RESULTS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


@contextmanager
def _planted(what: str) -> Iterator[None]:
    """The slow-down and the load of this kind of run, for as long as it lasts."""
    opened, burners = gating.open_session, []
    if "slower" in what:
        gating.open_session = _slowing(opened)  # type: ignore[assignment]
    if "loaded" in what:
        burners = [multiprocessing.Process(target=_burn, daemon=True) for _ in range(environment.available_cores())]
    try:
        for burner in burners:
            burner.start()
        yield
    finally:
        gating.open_session = opened  # type: ignore[assignment]
        for burner in burners:
            burner.kill()


def _slowing(opened: Callable[..., Any]) -> Callable[..., Any]:
    def open_session(artifact: Any, *rest: Any) -> Any:
        session = opened(artifact, *rest)
        if artifact.path.name == "new":
            run = session.run

            def slower(feeds: Any) -> Any:
                start = time.perf_counter()
                outputs = run(feeds)
                until = start + (time.perf_counter() - start) * (1 + SLOW_DOWN)
                while time.perf_counter() < until:
                    pass
                return outputs

            session.run = slower
        return session

    return open_session


def _burn() -> None:
    while True:
        pass


def recorded(what: str) -> list[dict[str, Any]]:
    """The runs of this kind so far."""
    if not RESULTS.exists():
        return []
    lines = [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line["what"] == what]


def outcomes(right: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
    """Statistics of a classifier that was right or wrong, sample by sample."""
    labels = np.arange(len(right)) % 10
    return {"top1": right, "answer": np.where(right == 1, labels, (labels + 1) % 10), "label": labels}


def drawn(drop_pp: float, draws: int = DRAWS) -> dict[str, int]:
    """How the gate judges `draws` evaluations of models whose true drop this is."""
    rng = np.random.default_rng(0)
    task = tasks.find(TaskSpec(kind="classification"))
    lost = (DISCORDANCE + drop_pp / 100) / 2
    counts = {"pass": 0, "invalid": 0, "fail": 0}
    for _ in range(draws):
        kind = rng.random(SAMPLES)
        reference, deployed = np.ones(SAMPLES), np.ones(SAMPLES)
        deployed[kind < lost] = 0
        reference[(kind >= lost) & (kind < DISCORDANCE)] = 0
        found = compare_accuracy("classification", task, outcomes(reference), outcomes(deployed), reference == deployed)
        verdict = judge(Case(None, None, found), GateSpec(max_drop_pp=MARGIN_PP))
        counts[verdict.verdict] += 1
    return counts


def table() -> str:
    """The results as Markdown."""
    host = environment.host()
    lines = [
        "# How often the gate is wrong",
        "",
        f"Gate runs of one artifact (demo:digits, OpenVINO INT8) against a copy of itself, {SECONDS:g} s of timing",
        f"each, limit 2 %. Planted: every inference takes {SLOW_DOWN:.0%} longer.",
        f"Made by `python benchmarks/gate_error_rates.py` on {host.cpu}, {host.cores} cores, {host.system}",
        f"(a shared virtual machine), OpenVINO {environment.library_versions()['openvino']}.",
        "",
        "| planted | machine | runs | pass | invalid | fail | fail of the valid | observed, median (5 to 95 %) |",
        "|---|---|---:|---:|---:|---:|---:|---|",
    ]
    rows = {
        "same": "nothing | left alone",
        "slower": "5 % slower | left alone",
        "loaded": "nothing | a busy process on every core",
        "loaded slower": "5 % slower | a busy process on every core",
    }
    for what, title in rows.items():
        found = recorded(what)
        if found:
            lines.append(f"| {title} | {_row(found)} |")
    lines += [
        "",
        f"Drawn {DRAWS:,} times: {SAMPLES:,} samples, {DISCORDANCE:.0%} discordant, limit {MARGIN_PP} points,",
        "judged by the same gate.",
        "",
        "| true drop (points) | pass | invalid | fail |",
        "|---:|---:|---:|---:|",
    ]
    for drop in (0.0, 0.3, 0.5, 1.0):
        counts = drawn(drop)
        lines.append(f"| {drop} | " + " | ".join(f"{count / DRAWS:.1%}" for count in counts.values()) + " |")
    return "\n".join([*lines, ""])


def _row(found: list[dict[str, Any]]) -> str:
    statuses = [line["status"] for line in found]
    valid = [line for line in found if line["status"] != "invalid"]
    failed = f"{statuses.count('fail') / len(valid):.1%}" if valid else "–"
    counts = " | ".join(str(statuses.count(status)) for status in ("pass", "invalid", "fail"))
    observed = [line["observed"] for line in found if line["observed"] is not None]
    spread = "–"
    if observed:
        low, middle, high = np.percentile(observed, [5, 50, 95])
        spread = f"{middle:+.2f} % ({low:+.2f} to {high:+.2f})"
    return f"{len(found)} | {counts} | {failed} | {spread}"


if __name__ == "__main__":
    main()
