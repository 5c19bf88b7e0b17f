"""Sweep 4 models x 4 precisions x 2 targets: killed twice, without a break, and as a shell loop.

    python -m benchmarks.sweeps [--seconds S] [--work DIR]

The models are trained ViTs for Fashion-MNIST. The same trials run three times, each time without the graphs that
another run has exported: as one sweep that SIGKILL ends twice and the same command continues; as a sweep without a
break; and as a loop of `vitdeploy run`. Writes benchmarks/sweeps.md, and ends with an error if a finished trial was
touched again or a figure that no time decides differs.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.fashion_mnist.data import save_sets
from benchmarks.tables import describe_machine, write_page

ROOT = Path(__file__).parents[1]
TABLE = Path(__file__).with_suffix(".md")
COLUMNS = ("way", "commands", "trials begun", "trials done", "minutes", "× the shell loop's time")
_FOLDER = ROOT / "benchmarks" / "fashion_mnist"
MODELS: dict[str, dict[str, str]] = {
    "trained": {"spec": f"python:{_FOLDER / 'model.py'}:build", "weights": str(_FOLDER / "vit.safetensors")},
    "hostile to INT8": {"spec": f"python:{_FOLDER / 'hostile.py'}:int8_hostile"},
    "hostile to FP16": {"spec": f"python:{_FOLDER / 'hostile.py'}:fp16_hostile"},
    "197 tokens": {"spec": "python:benchmarks.fashion_mnist.fine:load_trained"},
}
PRECISIONS = ("fp32", "int8", "int8-dynamic", "int8-weights")
TARGETS = ("openvino", "onnxruntime")
IMAGES = 1000
"""Test images that each trial answers."""
KILLED_AFTER = (7, 19)
"""Finished trials after which SIGKILL comes, a moment into the next trial."""
_MOMENT_S = 3.0
_NOT_JUDGED = 3
"""The exit code of `vitdeploy run` after all of its steps: without limits its verdict is `invalid`."""
_BEGUN = re.compile(r"^\[\d+/\d+\] ", re.MULTILINE)
_CERTAIN = (
    "model_digest", "data_digest", "samples", "metric", "reference", "deployed", "drop", "drop_ci95", "agreement",
    "fused", "sites",
)  # fmt: skip
"""The figures of a trial that no time decides."""


@dataclass(frozen=True)
class Outcome:
    """One way to run all trials: its commands, the trials that were begun and done, and the seconds that it took."""

    way: str
    commands: int
    begun: int
    done: int
    seconds: float


@dataclass(frozen=True)
class Setup:
    """The folder of all runs, the files of the data, and the seconds of each timing."""

    work: Path
    seconds: float

    @property
    def base(self) -> dict[str, Any]:
        """The recipe that all trials share."""
        return {
            "data": {"calibration": str(self.work / "calibration.npz"), "evaluation": str(self.work / "test.npz")},
            "bench": {"seconds": self.seconds},
        }

    def write_sweep(self) -> Path:
        """Write the sweep file."""
        matrix = {"model": [*MODELS.values()], "precision": [*PRECISIONS], "target": [*TARGETS]}
        file = self.work / "sweep.yaml"
        file.write_text(yaml.safe_dump({"recipe": self.base, "matrix": matrix}), encoding="utf-8")
        return file

    def write_recipes(self) -> Iterator[Path]:
        """Write the recipe of each trial."""
        for number, (model, precision, target) in enumerate(itertools.product(MODELS.values(), PRECISIONS, TARGETS)):
            recipe = self.base | {"model": model, "precision": {"kind": precision}, "target": {"kind": target}}
            file = self.work / f"recipe-{number}.yaml"
            file.write_text(yaml.safe_dump(recipe), encoding="utf-8")
            yield file

    def start(self, cache: str, *arguments: str) -> subprocess.Popen[str]:
        """Start vitdeploy with a cache of its own."""
        environment = os.environ | {"XDG_CACHE_HOME": str(self.work / cache), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "vitdeploy", *arguments]
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )


def sweep_with_kills(setup: Setup, file: Path, out: Path) -> Outcome:
    """Run a sweep, kill it twice, and continue it each time.

    Raises:
        AssertionError: a trial that was finished was touched.
    """
    begun, started = 0, time.monotonic()
    for after in (*KILLED_AFTER, None):
        before = _stamps(out)
        process = setup.start("killed", "sweep", str(file), "-o", str(out), "--json")
        if after is not None:
            while len(_stamps(out)) < after and process.poll() is None:
                time.sleep(0.2)
            time.sleep(_MOMENT_S)
            process.send_signal(signal.SIGKILL)
        begun += _count_begun(process)
        assert before.items() <= _stamps(out).items(), "a finished trial was done again"
    seconds = time.monotonic() - started
    return Outcome("sweep, killed twice", len(KILLED_AFTER) + 1, begun, len(_stamps(out)), seconds)


def sweep_without_break(setup: Setup, file: Path, out: Path) -> Outcome:
    """Run a sweep to its end."""
    started = time.monotonic()
    begun = _count_begun(setup.start("whole", "sweep", str(file), "-o", str(out), "--json"))
    return Outcome("sweep", 1, begun, len(_stamps(out)), time.monotonic() - started)


def loop(setup: Setup) -> Outcome:
    """Run all steps of each trial's recipe with a command of its own."""
    started, done = time.monotonic(), 0
    recipes = list(setup.write_recipes())
    for recipe in recipes:
        process = setup.start("loop", "run", str(recipe), "-o", str(setup.work / recipe.stem), "--quiet", "--json")
        _, messages = process.communicate()
        assert process.returncode == _NOT_JUDGED, messages
        done += 1
    return Outcome("shell loop of `vitdeploy run`", len(recipes), len(recipes), done, time.monotonic() - started)


def _count_begun(process: subprocess.Popen[str]) -> int:
    _, messages = process.communicate()
    assert process.returncode in (0, -signal.SIGKILL), messages
    return len(_BEGUN.findall(messages))


def _stamps(out: Path) -> dict[str, int]:
    """Return trial -> the time at which its record was written."""
    return {file.parent.name: file.stat().st_mtime_ns for file in out.glob("trials/[!.]*/trial.json")}


def compare(one: Path, other: Path) -> int:
    """Compare two sweeps in all that no time decides; return the number of files of engines that are the same.

    Raises:
        AssertionError: something differs.
    """
    first, second = (_read(out) for out in (one, other))
    assert first.keys() == second.keys(), first.keys() ^ second.keys()
    for name, figures in first.items():
        assert figures == second[name], f"{name}: {figures} {second[name]}"
    return sum(len(figures["files"]) for figures in first.values())


def _read(out: Path) -> dict[str, dict[str, Any]]:
    trials = {}
    for file in out.glob("trials/[!.]*/trial.json"):
        record = json.loads(file.read_text(encoding="utf-8"))
        artifact = file.parent / "artifact"
        engines = sorted(path for path in artifact.rglob("*") if path.suffix in (".onnx", ".bin", ".data"))
        digests = {str(path.relative_to(artifact)): hashlib.sha256(path.read_bytes()).hexdigest() for path in engines}
        trials[record["name"]] = {key: record[key] for key in ("status", *_CERTAIN)} | {"files": digests}
    return trials


def main() -> None:
    """Run all three ways, compare, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=2.0, help="time for each bench (default: 2)")
    parser.add_argument("--work", type=Path, metavar="DIR", help="keep the sweeps here (default: remove them)")
    arguments = parser.parse_args()
    work = (arguments.work or Path(tempfile.mkdtemp(prefix="vitdeploy-sweeps-"))).absolute()
    if work.is_dir() and any(work.iterdir()):
        parser.error(f"{work} is not empty: sweeps in it would be continued")
    images, labels = save_sets(work)["test"]
    np.savez_compressed(work / "test.npz", images=images[:IMAGES], labels=labels[:IMAGES])
    setup = Setup(work, arguments.seconds)
    file, killed, whole = setup.write_sweep(), work / "killed-sweep", work / "sweep"
    outcomes = []
    for run in (partial(sweep_with_kills, setup, file, killed), partial(sweep_without_break, setup, file, whole),
                partial(loop, setup)):  # fmt: skip
        outcomes.append(run())
        print(outcomes[-1], flush=True)
    files = compare(killed, whole)
    reference = outcomes[-1].seconds
    rows = [
        (o.way, str(o.commands), str(o.begun), str(o.done), f"{o.seconds / 60:.1f}", f"{o.seconds / reference:.2f}")
        for o in outcomes
    ]
    write_page(TABLE, _heading(setup, files), COLUMNS, rows)
    if arguments.work is None:
        shutil.rmtree(work)


def _heading(setup: Setup, files: int) -> list[str]:
    trials = len(MODELS) * len(PRECISIONS) * len(TARGETS)
    return [
        "# A sweep that is killed, and a shell loop",
        "",
        f"Made by `python -m benchmarks.sweeps`. {len(MODELS)} trained ViTs x {', '.join(PRECISIONS)} x",
        f"{' and '.join(TARGETS)}: {trials} trials. Each is exported, answers {IMAGES:,} test images of",
        f"Fashion-MNIST, and is timed against FP32 PyTorch for {setup.seconds:g} seconds. Every way has a cache of",
        "graphs of its own, empty at first. SIGKILL came a moment into the trial after",
        f"{' and after '.join(map(str, KILLED_AFTER))} finished ones.",
        "",
        "- No record of a finished trial was touched after a kill: the only trials that were begun twice are those",
        "  that were running.",
        f"- All {trials} trials of both sweeps agree in every figure that no time decides (accuracy, its interval,",
        f"  agreement, fused attention), and in all {files} files of graphs and weights, byte for byte. OpenVINO's",
        "  model.xml is not compared: OpenVINO numbers its nodes by what the process has compiled before. The script",
        "  ends with an error where anything else differs.",
        "- The shell loop starts Python, imports the libraries, computes the FP32 reference of the test images and",
        "  writes an HTML report in each command. A sweep computes the reference once a model, and writes one page.",
        "",
        describe_machine("torch", "openvino", "onnxruntime"),
    ]


if __name__ == "__main__":
    main()
