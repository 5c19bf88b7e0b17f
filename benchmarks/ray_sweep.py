"""A sweep on a Ray cluster of three nodes, one of which is killed in the middle, beside the same sweep on one machine.

`python -m benchmarks.ray_sweep` writes ray_sweep.md. All nodes are on this machine, so the times show nothing about
speed: what is shown is that every trial finishes, that no bench ran beside other work, and that the results are equal.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from itertools import product
from pathlib import Path
from typing import Any

import psutil

from benchmarks.ray_nodes import start_nodes
from benchmarks.tables import describe_machine, write_page
from vitdeploy import artifact as artifacts
from vitdeploy.commands.sweep.sweep import sweep
from vitdeploy.commands.sweep.work import SweepPlan
from vitdeploy.evidence import Sweep, SweepRow, WorkPeriod
from vitdeploy.progress import Silent

TABLE = Path(__file__).with_suffix(".md")
COLUMNS = ("trial", "exported on", "s", "timed on", "s", "top-1, %", "drop, pp", "files equal")
NODES = 3
PATIENCE_S = 600
_TEXT = """
recipe: {model: demo:digits, bench: {seconds: 1, threads: 1}}
matrix:
  target: [onnxruntime, openvino]
  precision: [fp32, int8, int8-dynamic]
cluster: {memory_gib: 1}
"""
_NUMBERED = "model.xml"
"""OpenVINO numbers its nodes by what its process has compiled before."""


def main() -> None:
    """Run both sweeps, compare them, and write the page."""
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])
    with tempfile.TemporaryDirectory(prefix="vitdeploy-ray-") as folder:
        file = Path(folder, "sweep.yaml")
        file.write_text(_TEXT, encoding="utf-8")
        alone = sweep(file, Path(folder, "alone"), Silent(), SweepPlan())
        together, killed = run_with_a_death(file, Path(folder, "nodes"))
        rows = [
            describe_row(row, together, other, alone) for row, other in zip(together.trials, alone.trials, strict=False)
        ]
    heading = list_findings(together, killed, all(row[-1] == "yes" for row in rows))
    write_page(TABLE, heading, COLUMNS, rows)


def run_with_a_death(file: Path, out: Path) -> tuple[Sweep, str]:
    """Run a sweep on new nodes, and kill the first but the head that exports. Return the node's part at that time."""
    with start_nodes(NODES) as nodes:
        killed: list[str] = []
        killer = threading.Thread(target=kill_first_busy, args=(nodes, killed))
        killer.start()
        result = sweep(file, out, Silent(), SweepPlan(ray=nodes.address))
        killer.join()
    if not killed:
        raise SystemExit("no node but the head ever exported anything")
    return result, killed[0]


def kill_first_busy(nodes: Any, killed: list[str]) -> None:
    """Kill the first node but the head that runs an export or a bench, with SIGKILL."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        for node in list(nodes.worker_nodes):
            part = find_part(node)
            if part:
                nodes.remove_node(node, allow_graceful=False)
                killed.append(part)
                return
        time.sleep(0.05)


def find_part(node: Any) -> str:
    """Return the part of a trial that a node runs: the name of the function, which Ray gives to the process."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    for child in raylet.children(recursive=True):
        try:
            name = "".join(child.cmdline()[:1])
        except psutil.Error:
            continue
        if name in ("ray::prepare", "ray::measure"):
            return name.removeprefix("ray::")
    return ""


def describe_row(row: SweepRow, result: Sweep, other: SweepRow, alone: Sweep) -> tuple[str, ...]:
    """Return the cells of a trial."""
    if row.exported is None or row.timed is None or row.deployed is None or row.drop is None:
        return (row.name, "", "", "", "", "", "", f"{row.status}: {row.reason}")
    equal = digest_files(row, result) == digest_files(other, alone)
    same = (row.name, row.deployed, row.drop, row.agreement) == (
        other.name,
        other.deployed,
        other.drop,
        other.agreement,
    )
    return (
        ", ".join(row.axes.values()), row.exported.node, f"{row.exported.ended - row.exported.began:.1f}",
        row.timed.node, f"{row.timed.ended - row.timed.began:.1f}", f"{row.deployed:.2f}", f"{row.drop:.2f}",
        "yes" if equal and same else "no",
    )  # fmt: skip


def digest_files(row: SweepRow, result: Sweep) -> dict[str, str]:
    """Return path -> sha256 of the files of a trial's artifact."""
    files = artifacts.load(Path(result.sweep) / row.artifact).manifest.files
    return {file.path: file.sha256 for file in files if file.path != _NUMBERED}


def count_overlaps(result: Sweep) -> tuple[int, int]:
    """Return how many pairs of a bench and another part there are, and how many of them overlapped on one machine."""
    exports, benches = [row.exported for row in result.trials], [row.timed for row in result.trials]
    pairs = [
        (bench, part)
        for (number, bench), (other, part) in product(enumerate(benches), enumerate([*exports, *benches]))
        if bench and part and number + len(exports) != other
    ]
    return len(pairs), sum(overlap(bench, part) for bench, part in pairs)


def overlap(first: WorkPeriod, second: WorkPeriod) -> bool:
    """Return True if two parts ran on one machine at the same time."""
    return first.boot == second.boot and first.began < second.ended and second.began < first.ended


def list_findings(together: Sweep, killed: str, equal: bool) -> list[str]:
    """Return the lines above the table."""
    import ray

    pairs, overlaps = count_overlaps(together)
    nodes = sorted({part.node for row in together.trials for part in (row.exported, row.timed) if part})
    counts = ", ".join(f"{number} {status}" for status, number in together.counts.items())
    return [
        "# A sweep on three nodes, one of which dies",
        "",
        "The sweep of `demo:digits` below ran on one machine, and then on a Ray cluster of three nodes, all on that",
        "machine. The first node but the head that had work was killed with SIGKILL. The nodes share the cores, so the",
        "times show when a part ran, not how fast a cluster is. Made by `python -m benchmarks.ray_sweep`.",
        "",
        f"{describe_machine('onnxruntime', 'openvino', 'torch')} Ray {ray.__version__}.",
        "",
        "| question | answer |",
        "|---|---|",
        f"| what the killed node was doing | {killed} |",
        f"| trials | {counts}, of {len(together.trials)} |",
        f"| nodes that finished parts | {len(nodes)} |",
        f"| pairs of a bench and another part that overlapped on the machine | {overlaps} of {pairs} |",
        f"| results as on one machine, but for times and `{_NUMBERED}` | {'all' if equal else 'not all'} |",
    ]


if __name__ == "__main__":
    main()
