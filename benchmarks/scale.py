"""Simulate a large sweep on a cluster, with the times and sizes of a small one that was really run.

    python -m benchmarks.scale [--work DIR]

Sweeps DeiT-Tiny over two precisions, with few and with more images, and reads from the records how long
the parts of a trial take, and how many bytes they leave. Then simulates 1,000 trials that answer 50,000 images each, on
clusters of several sizes, by the rules of `vitdeploy sweep --ray`. Writes benchmarks/scale.md.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import yaml
from PIL import Image
from sklearn.datasets import load_sample_images

from benchmarks.tables import describe_machine, format_table, write_page
from vitdeploy.commands.sweep.store import write_csv
from vitdeploy.evidence import Sweep, SweepEstimate, TrialRecord
from vitdeploy.frozen import replace
from vitdeploy.measure.front import compare
from vitdeploy.render.html.sweep import render_sweep

ROOT = Path(__file__).parents[1]
TABLE = Path(__file__).with_suffix(".md")
COLUMNS = ("nodes", "CPUs of each", "hours", "trials an hour", "nodes measure", "CPUs in use", "× one node")
TRIALS, IMAGES, MODELS = 1000, 50_000, 25
FEW, MANY = 64, 320
"""Images of the two sweeps that are run. The difference of their times is that of the images between."""
NODES = (1, 5, 10, 20, 40, 80)
CPUS = (2, 8)
_MIB = 1 << 20


@dataclass(frozen=True)
class Costs:
    """The costs of one trial on a machine like this one, for `IMAGES` images.

    Attributes:
        export_s: export, without answers to the evaluation data.
        answer_s: the artifact's answers.
        reference_s: the answers of the FP32 reference, once for each model.
        bench_s: the measurement of latency.
        trial_bytes: what a trial leaves on the disk.
        reference_bytes: the reference's answers.
        tables_s: to compare all trials and write the tables, which happens after each of them.
        tables_bytes: what is written then.
        page_bytes: the page of the sweep.
    """

    export_s: float
    answer_s: float
    reference_s: float
    bench_s: float
    trial_bytes: float
    reference_bytes: float
    tables_s: float
    tables_bytes: float
    page_bytes: float

    @property
    def prepare_s(self) -> float:
        """Export and evaluation of a trial whose reference is known."""
        return self.export_s + self.answer_s


def measure(work: Path) -> Costs:
    """Run two small sweeps, and scale what their images took to `IMAGES`."""
    few, many = (_sweep(work, count) for count in (FEW, MANY))
    extra = IMAGES / (MANY - FEW)
    first, second = (_mean_difference(few, many, slice(place, place + 1)) * extra for place in (0, 1))
    others = _mean_difference(few, many, slice(1, None)) * extra
    export = mean(_seconds(record, "exported") for record in few[1:]) - others * FEW / IMAGES
    trials = [path for path in (work / f"sweep-{MANY}" / "trials").iterdir() if not path.name.startswith(".")]
    references = [*(work / f"sweep-{MANY}" / "references").iterdir()]
    return Costs(
        export_s=export,
        answer_s=others,
        reference_s=max(first - second, 0.0),  # the second trial differs from the first in its streams alone
        bench_s=mean(_seconds(record, "timed") for record in many),
        trial_bytes=mean(_size(path) for path in trials),
        reference_bytes=sum(map(_size, references)) * IMAGES / MANY,
        **_time_tables(many),
    )


def _sweep(work: Path, images: int) -> list[dict[str, Any]]:
    """Sweep over so many images; return the records in the order in which they ran."""
    data = work / f"images-{images}"
    _save_images(data, images)
    recipe = {
        "model": {"spec": "timm:deit_tiny_patch16_224", "weights": "random"}, "task": {"kind": "classification"},
        "data": {"calibration": str(work / f"images-{FEW}"), "evaluation": str(data)}, "bench": {"seconds": 10},
    }  # fmt: skip
    matrix = {"target": ["openvino"], "precision": ["fp32", "int8"], "target.streams": [1, 2]}
    file, out = work / f"sweep-{images}.yaml", work / f"sweep-{images}"
    file.write_text(yaml.safe_dump({"recipe": recipe, "matrix": matrix}), encoding="utf-8")
    command = [sys.executable, "-m", "vitdeploy", "sweep", str(file), "-o", str(out), "--no-cache"]
    subprocess.run(command, cwd=ROOT, check=True)
    records = [json.loads(path.read_bytes()) for path in (out / "trials").glob("[!.]*/trial.json")]
    assert all(record["status"] == "done" for record in records), records
    return sorted(records, key=lambda record: record["exported"]["began"])


def _time_tables(records: list[dict[str, Any]]) -> dict[str, float]:
    """Return what comparing, the tables and the page cost with as many trials as are simulated."""
    given = [TrialRecord.model_validate(record) for record in records]
    trials = [replace(given[n % len(given)], name=f"{given[n % len(given)].name}-{n}") for n in range(TRIALS)]
    began = time.perf_counter()
    rows = compare(trials)
    text = write_csv(rows) + "".join(f"{row.model_dump_json()}\n" for row in rows)
    seconds = time.perf_counter() - began
    estimate = SweepEstimate(trials=0, seconds=0.0, basis="")
    sweep = Sweep(sweep="sweep", file="sweep.yaml", counts={}, trials=tuple(rows), failures=(), estimate=estimate)
    return {"tables_s": seconds, "tables_bytes": len(text), "page_bytes": len(render_sweep(sweep))}


def _save_images(folder: Path, count: int) -> None:
    """Save so many JPEG files as two classes. Which of them an image is in makes no difference to time."""
    for label in range(2):
        (folder / str(label)).mkdir(parents=True)
    for number, photograph in zip(range(count), itertools.cycle(load_sample_images().images)):
        moved = np.roll(photograph, 8 * number, axis=1)
        Image.fromarray(moved).save(folder / str(number % 2) / f"{number:04}.jpg", quality=90)


def _seconds(record: dict[str, Any], part: str) -> float:
    return float(record[part]["ended"] - record[part]["began"])


def _mean_difference(few: list[dict[str, Any]], many: list[dict[str, Any]], chosen: slice) -> float:
    pairs = zip(few[chosen], many[chosen], strict=True)
    return mean(_seconds(b, "exported") - _seconds(a, "exported") for a, b in pairs)


def _size(path: Path) -> int:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


@dataclass(order=True)
class _Part:
    """A part of a trial that waits or runs: it needs CPUs of one node for some time."""

    ends: float
    number: int
    seconds: float = field(compare=False)
    cpus: int = field(compare=False)
    alone: bool = field(compare=False)
    model: int = field(compare=False)
    node: int = field(compare=False, default=-1)


@dataclass
class Simulation:
    """The parts of all trials on some nodes, by the rules of `commands/sweep/on_cluster.py`.

    An export takes some CPUs of a node, a measurement all of one. While measurements wait or run, no more exports are
    out than leave a node for each of them. The first trial of a model goes ahead alone.
    """

    costs: Costs
    nodes: int
    cpus: int
    shared: int

    def run(self) -> tuple[float, float, float]:
        """Return the seconds until the end, the share of node time spent measuring, and that of CPU time in use."""
        pending = deque((number % MODELS, number) for number in range(TRIALS))
        pending = deque(sorted(pending))  # the model changes slowest
        free, now, counter = [self.cpus] * self.nodes, 0.0, itertools.count()
        waiting, running = deque[_Part](), list[_Part]()
        loading, loaded = set[int](), set[int]()
        measured = used = 0.0
        while pending or waiting or running:
            while (place := self._choose(pending, waiting, running, loading)) is not None:
                model, _ = pending[place]
                del pending[place]
                seconds = self.costs.prepare_s
                if model not in loaded:
                    loading.add(model)
                    seconds += self.costs.reference_s
                waiting.append(_Part(0.0, next(counter), seconds, self.shared, alone=False, model=model))
            for part in [*waiting]:
                node = next((n for n, cpus in enumerate(free) if cpus >= part.cpus), None)
                if node is not None:
                    waiting.remove(part)
                    free[node] -= part.cpus
                    part.node, part.ends = node, now + part.seconds
                    heapq.heappush(running, part)
            part = heapq.heappop(running)
            now = part.ends
            free[part.node] += part.cpus
            used += part.seconds * part.cpus
            if part.alone:
                measured += part.seconds
            else:
                loading.discard(part.model)
                loaded.add(part.model)
                bench = _Part(0.0, next(counter), self.costs.bench_s, self.cpus, alone=True, model=part.model)
                waiting.append(bench)
        return now, measured / (now * self.nodes), used / (now * self.nodes * self.cpus)

    def _choose(
        self, pending: deque[tuple[int, int]], waiting: deque[_Part], running: list[_Part], loading: set[int]
    ) -> int | None:
        """Return the place of the next trial that can begin."""
        out = [*waiting, *running]
        measuring = sum(part.alone for part in out)
        most = self.nodes - measuring if measuring else self.nodes * (self.cpus // self.shared)
        if len(out) - measuring >= most:
            return None
        return next((place for place, (model, _) in enumerate(pending) if model not in loading), None)


def simulate(costs: Costs) -> Iterator[tuple[str, ...]]:
    """Yield a row for each cluster."""
    for cpus in CPUS:
        alone = None
        for nodes in NODES:
            seconds, measuring, used = Simulation(costs, nodes, cpus, min(4, cpus)).run()
            alone = alone or seconds
            rate = TRIALS / (seconds / 3600)
            shares = (f"{share * 100:.0f} %" for share in (measuring, used))
            yield str(nodes), str(cpus), f"{seconds / 3600:.1f}", f"{rate:.0f}", *shares, f"{alone / seconds:.1f}"


def main() -> None:
    """Measure, simulate, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, metavar="DIR", help="keep the small sweeps here (default: remove them)")
    given = parser.parse_args().work
    with tempfile.TemporaryDirectory(prefix="vitdeploy-scale-") as folder:
        work = (given or Path(folder)).absolute()
        work.mkdir(parents=True, exist_ok=True)
        costs = measure(work)
    rows = [*simulate(costs)]
    write_page(TABLE, _heading(costs), COLUMNS, rows)
    print(*format_table(COLUMNS, rows), sep="\n")


def _heading(costs: Costs) -> list[str]:
    parts = (
        ("export, with calibration", f"{costs.export_s:.0f} s"),
        (f"answers of the artifact to {IMAGES:,} images", f"{costs.answer_s:.0f} s"),
        (f"answers of the FP32 reference to {IMAGES:,} images, once a model", f"{costs.reference_s:.0f} s"),
        ("measurement of latency", f"{costs.bench_s:.0f} s"),
        ("a trial on the disk", f"{costs.trial_bytes / _MIB:.1f} MiB"),
        (f"all {TRIALS:,} trials on the disk", f"{costs.trial_bytes * TRIALS / _MIB / 1024:.0f} GiB"),
        ("the reference's answers, once a model", f"{costs.reference_bytes / _MIB:.0f} MiB"),
        (
            f"tables of {TRIALS:,} trials, after each trial",
            f"{costs.tables_s:.2f} s, {costs.tables_bytes / _MIB:.1f} MiB",
        ),
        (f"page of {TRIALS:,} trials", f"{costs.page_bytes / _MIB:.1f} MiB"),
    )
    return [
        "# A large sweep, simulated",
        "",
        f"{TRIALS:,} trials of {MODELS} models, each evaluated on {IMAGES:,} images, by the rules of",
        "`vitdeploy sweep --ray`: what it takes on clusters of several sizes. Made by `python -m benchmarks.scale`.",
        "What this means, and what breaks first: [scale](../docs/scale.md).",
        "",
        f"The times and sizes of one trial are those of DeiT-Tiny here, from two real sweeps over {FEW} and {MANY}",
        "JPEG images of 640x427 (OpenVINO, fp32 and int8); what the images took is scaled up:",
        "",
        *format_table(("part", "takes"), parts),
        "",
        "*CPUs of each*: with 2, an export takes a node, as it did here. With 8, it takes 4 of them, and is assumed",
        "to take as long as with 2 here. A measurement takes a whole node. *nodes measure*: the share of the nodes'",
        "time in which they measure latency. *× one node*: how many times as fast as one node of the same size.",
        "",
        describe_machine("torch", "openvino", "onnxruntime", "ray"),
    ]


if __name__ == "__main__":
    main()
