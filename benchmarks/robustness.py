"""Try failing disks, kills, damaged and hostile input, and threads; count what went wrong.

    python -m benchmarks.robustness [--only ROW …] [--n N] [--sample N] [--seed S]

Rows are kept from earlier runs unless they are made again. Each row names the commit that it was made with. Writes
benchmarks/robustness.md.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.tables import describe_machine, format_table, read_rows
from tests.robustness.fuzz import KINDS

TABLE = Path(__file__).with_suffix(".md")
COLUMNS = ("what", "tried", "bad", "how they ended", "seed", "commit")
BAD_COLUMNS = ("bad case", "what was seen")
_ROOT = Path(__file__).parents[1]
_THREADED = ("openvino", "onnxruntime", "tensorrt")
_CALLS = 2000  # of each of 8 threads
_SHOWN_CHARACTERS = 160

KILLS, FAULTS = "kills before a file operation", "file operations that fail"
FUZZED = {
    "evidence": "evidence and manifests",
    "onnx": "ONNX files",
    "weights": "weights",
    "data": "images and data",
    "recipes": "recipes",
    "answers": "answers of a host",
    "injection": "injected text",
}
THREADS = "threads, 8 × 2,000 calls"


@dataclass(frozen=True)
class Row:
    """What was tried, how the cases ended, and the bad ones: id -> what was seen."""

    what: str
    outcomes: dict[str, int]
    bad: dict[str, str]
    seed: str

    def cells(self, commit: str) -> tuple[str, ...]:
        """The row of the table."""
        ended = ", ".join(f"{count:,} {name}" for name, count in sorted(self.outcomes.items()))
        return self.what, f"{sum(self.outcomes.values()):,}", f"{len(self.bad):,}", ended, self.seed, commit


def main() -> None:
    """Make the rows that were asked for, and write the page after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=["chaos", *KINDS, "threads"], help="default: all")
    parser.add_argument("--n", type=int, help="cases of each kind (default: see tests/robustness/fuzz.py)")
    parser.add_argument("--sample", type=int, help="attempts of chaos (default: all, which takes an hour)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for part in options.only or ["chaos", *KINDS, "threads"]:
        if part == "chaos":
            rows = list(_try_chaos(options.sample, options.seed))
        elif part == "threads":
            rows = list(_try_threads())
        else:
            rows = [_try_kind(part, options.n or KINDS[part][2], options.seed)]
        _write(rows)
    print(TABLE.read_text(encoding="utf-8"))


def _run(module: str, *words: str) -> Any:
    """Run a module that writes its results as JSON, and return them."""
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.json"
        command = [sys.executable, "-m", module, *words, "--json", str(results)]
        subprocess.run(command, check=False, cwd=_ROOT)  # its exit code says only whether a case was bad
        return json.loads(results.read_text(encoding="utf-8"))


def _try_chaos(sample: int | None, seed: int) -> Iterator[Row]:
    """Make the attempts, on each core a share of them."""
    words = ["--seed", str(seed), *([] if sample is None else ["--sample", str(sample)])]
    cores = len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(cores) as pool:
        shares = [f"{part}/{cores}" for part in range(1, cores + 1)]
        results = list(pool.map(lambda share: _run("tests.robustness.chaos", *words, "--share", share), shares))
    outcomes = {outcome["case"]: outcome for result in results for outcome in result["outcomes"]}
    reached = [outcome for outcome in outcomes.values() if outcome["reached"]]
    for what, is_kill in ((KILLS, True), (FAULTS, False)):
        chosen = [outcome for outcome in reached if outcome["case"].endswith(":kill") == is_kill]
        scenarios = Counter(outcome["case"].split(":")[0] for outcome in chosen)
        bad = {outcome["case"]: outcome["bad"] for outcome in chosen if outcome["bad"]}
        yield Row(what, dict(scenarios), bad, str(seed))


def _try_kind(kind: str, count: int, seed: int) -> Row:
    (tally,) = _run("tests.robustness.fuzz", "--kind", kind, "-n", str(count), "--seed", str(seed))
    return Row(FUZZED[kind], tally["outcomes"], tally["bad"], str(seed))


def _try_threads() -> Iterator[Row]:
    """Run the test of point 13 with more calls, and read what it prints."""
    test = "tests/proofs/test_13_threads.py::test_each_thread_gets_its_own_answers"
    command = [sys.executable, "-m", "pytest", "-q", "-s", "--timeout", "3600", test]
    environment = {**os.environ, "VITDEPLOY_THREAD_CALLS": str(_CALLS)}
    ended = subprocess.run(command, check=False, cwd=_ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    for side, calls, wrong in re.findall(r"threads (\w+): (\d+) calls, (\d+) wrong", ended.stdout):
        if side in _THREADED:
            name = "the fake TensorRT" if side == "tensorrt" else side
            outcomes = {"right": int(calls) - int(wrong)} | ({"wrong": int(wrong)} if int(wrong) else {})
            bad = {f"{side}:{number}": "a wrong answer" for number in range(int(wrong))}
            yield Row(f"{THREADS}: {name}", outcomes, bad, "0")


def _write(rows: Sequence[Row]) -> None:
    """Put the rows into the table, in their order, and list the bad cases."""
    made = {row.what: row.cells(_find_commit()) for row in rows}
    kept = {cells[0]: cells for cells in read_rows(TABLE, COLUMNS)}
    bad = [cells for cells in read_rows(TABLE, BAD_COLUMNS) if cells[0].split(" ")[0] not in made and cells[0] != "–"]
    order = [KILLS, FAULTS, *FUZZED.values()]
    table = kept | made
    known = [table[what] for what in order if what in table]
    threads = [cells for what, cells in table.items() if what not in order]
    bad = [cells for cells in bad if not _is_of(cells[0], rows)]
    bad += [(case, why[:_SHOWN_CHARACTERS]) for row in rows for case, why in row.bad.items()]
    lines = [*_heading(), "", *format_table(COLUMNS, [*known, *threads]), "", *_ending(bad), ""]
    TABLE.write_text("\n".join(lines), encoding="utf-8")


def _is_of(case: str, rows: Sequence[Row]) -> bool:
    """Return True if a bad case belongs to rows that were made again."""
    kinds = {kind for kind, what in FUZZED.items() if what in {row.what for row in rows}}
    is_chaos = case.rpartition(":")[2] in ("kill", "EIO", "ENOSPC")
    return case.split(":")[0] in kinds or (is_chaos and any(row.what == KILLS for row in rows))


def _find_commit() -> str:
    """The commit, marked if anything but the page was changed since."""

    def ask(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=_ROOT, check=True, capture_output=True, text=True).stdout.strip()

    is_changed = ask("status", "--porcelain", "--untracked-files=no", "--", ".", f":!benchmarks/{TABLE.name}")
    return ask("rev-parse", "--short", "HEAD") + ("-dirty" if is_changed else "")


def _heading() -> list[str]:
    return [
        "# Robustness",
        "",
        "What was tried, and how often it went wrong. Made by `python -m benchmarks.robustness`; the code is in",
        "`tests/robustness/`. `make chaos` and `make fuzz` try it again, CI tries a sample of it.",
        "",
        "- **Kills** and **failing file operations**: the commands export (new, and over an older artifact; for ONNX",
        "  Runtime and OpenVINO), compile, eval, gate and run. A library under libc numbers their file operations. It",
        "  kills the process group before one of them, or lets it fail with EIO or ENOSPC. Good is: the old or the new",
        "  artifact loads with every digest, the command has said one line or has done all of its work, and the next",
        "  run succeeds and leaves the same files as a run without any fault. Of many equal operations on one file,",
        "  the first, the middle and the last one are tried.",
        "- **Evidence and manifests**: one place is changed, and the gate judges. Bad is a crash, or a pass on",
        "  evidence that is impossible, is about another manifest, or did not pass before.",
        "- **ONNX files**, **weights**: bad is also a file that is accepted with other numbers than it has. Its",
        "  numbers are read by ONNX Runtime without optimisations, and by readers that share no code with PyTorch.",
        "- **Images and data**, **recipes**, **answers of a host**: refused in one line, or read as they are written.",
        "- **Injected text**: HTML, Markdown, terminal and workflow commands in names, labels, evidence and arguments;",
        "  bad is a control character, a tag, a cell or a command that gets through.",
        "",
        "Every case has a limit of time and of memory. Bad cases are repeated with `--case`.",
        "",
        describe_machine("torch", "onnxruntime", "openvino", "numpy", "pillow", "safetensors"),
    ]


def _ending(bad: Sequence[tuple[str, ...]]) -> list[str]:
    if not bad:
        return ["No case was bad."]
    return ["## What is still bad", "", *format_table(BAD_COLUMNS, bad)]


if __name__ == "__main__":
    main()
