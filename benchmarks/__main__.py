"""Run every benchmark again, one after the other, and write its page: hours in all.

    python -m benchmarks [--list] [PAGE…]

What was finished on this commit and this kind of CPU is not done again, and what was stopped in the middle goes on. A
page of another commit or another CPU begins anew, so that no table mixes two of either. Timed pages want an idle
machine; rows that carry a doubt are measured again by the next run.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.tables import describe_cpu

ROOT = Path(__file__).parents[1]
FOLDER = Path(__file__).parent
STATE = ROOT / "build" / "benchmarks.json"


@dataclass(frozen=True)
class Page:
    """A page, and what writes it.

    Attributes:
        name: of the file, without `.md`.
        commands: the arguments of `python -m`, in order; the module alone if empty.
        timed: whether it measures time.
        removed: what else, beside the page, a new beginning removes.
        depends: the folders and files whose changes make it old.
    """

    name: str
    commands: tuple[str, ...] = ()
    timed: bool = False
    removed: tuple[Path, ...] = ()
    depends: tuple[str, ...] = ("vitdeploy", "benchmarks", "constraints.txt")


_SIDE_BY_SIDE = "build/side_by_side"
_GATE = "benchmarks.gate_error_rates"
PAGES = (
    Page(
        "zoo", ("benchmarks.zoo",), removed=(FOLDER / "zoo" / "rows.jsonl",),
        depends=("vitdeploy/onnx_export", "vitdeploy/graph", "vitdeploy/passes", "benchmarks/zoo"),
    ),
    Page("int8_fusion"),
    Page("hybrids"),
    Page("merged_fusion"),
    Page("detector_regions"),
    Page("quantization"),
    Page("prompts"),
    Page("promptable"),
    Page("processors"),
    Page("tensorrt_rtx", ("benchmarks.rtx_engines",)),
    Page("safe_forms"),
    Page("bundles"),
    Page("wrong_numbers", ("tests.fakes.wrong_numbers",)),
    Page("checkpoint_forms"),
    Page("releases"),
    Page("robustness"),
    Page("calibration_memory"),
    Page("install_sizes"),
    Page(
        "side_by_side",
        tuple(f"benchmarks.side_by_side {step} --work {_SIDE_BY_SIDE}" for step in ("make", "pick", "answer", "time")),
        timed=True, removed=(ROOT / _SIDE_BY_SIDE,),
    ),
    Page("quantizers", (f"benchmarks.quantizers --work {_SIDE_BY_SIDE}",)),
    Page("dense_heads", timed=True),
    Page("sweeps", timed=True),
    Page("scale", timed=True),
    Page("side_by_side_profile", (f"benchmarks.side_by_side_profile --work {_SIDE_BY_SIDE}",), timed=True),
    Page("fewer_tokens", timed=True),
    Page("fewer_tokens_dense", timed=True),
    Page("int8_speed", timed=True),
    Page("int8_attention", timed=True),
    Page("int8_forms", timed=True),
    Page("pointwise", timed=True),
    Page("fp32_speed", timed=True),
    Page("attention_forms", timed=True),
    Page("weight_only", ("benchmarks.weight_only speed", "benchmarks.weight_only accuracy"), timed=True),
    Page("roofline", timed=True),
    Page("streams", timed=True),
    Page("against_benchmark_app", timed=True),
    Page("served", timed=True),
    Page("ray_sweep"),
    Page("large_evaluation"),
    Page(
        "gate_error_rates",
        (
            f"{_GATE} run --what same --times 200", f"{_GATE} run --what slower --times 100",
            f"{_GATE} run --what loaded --times 40", f"{_GATE} table",
        ),
        timed=True, removed=(FOLDER / "gate_error_rates.jsonl",),
    ),
)  # fmt: skip


def main() -> int:
    """Run what is missing. Return 1 if something failed."""
    names = [page.name for page in PAGES]
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--list", action="store_true", help="show what is done on this commit and CPU, and run nothing")
    parser.add_argument("pages", nargs="*", metavar="PAGE", help=f"default: all ({', '.join(names)})")
    arguments = parser.parse_args()
    unknown = set(arguments.pages) - set(names)
    if unknown:
        parser.error(f"no such page: {', '.join(sorted(unknown))}")
    failed = []
    for page in PAGES:
        if arguments.pages and page.name not in arguments.pages:
            continue
        if arguments.list:
            print(f"{page.name:22} {_describe(page)}")
        elif not run(page):
            failed.append(page.name)
    if failed:
        print(f"failed: {', '.join(failed)}. Run the same command to go on with them.")
    return int(bool(failed))


def run(page: Page) -> bool:
    """Run what is missing of a page. Return False if one of its commands failed."""
    stamp = make_stamp(page)
    state = _read_state().get(page.name, {})
    if state.get("stamp") != stamp:
        clear(page)
        state = {"stamp": stamp, "finished": 0, "minutes": 0.0}
    commands = page.commands or (f"benchmarks.{page.name}",)
    for command in commands[state["finished"] :]:
        _write_state(page, state)  # before it runs, so that what was stopped goes on
        print(f"{page.name}: python -m {command}", flush=True)
        begin = time.monotonic()
        if subprocess.run([sys.executable, "-m", *command.split()], check=False, cwd=ROOT).returncode:
            return False
        minutes = state["minutes"] + (time.monotonic() - begin) / 60
        state |= {"finished": state["finished"] + 1, "minutes": round(minutes, 1)}
    _write_state(page, state)
    print(f"{page.name}: {_describe(page)}", flush=True)
    return True


def make_stamp(page: Page) -> dict[str, str]:
    """Return what the figures of a page depend on: the commit that changed its code last, and the kind of CPU."""
    log = ["git", "log", "-1", "--format=%h", "--", *page.depends, ":!*.md", ":!*.jsonl"]
    commit = subprocess.run(log, check=True, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    return {"commit": commit, "cpu": describe_cpu()}


def clear(page: Page) -> None:
    """Remove a page and its rows, so that all of it is measured anew. Git has what was committed."""
    for path in (FOLDER / f"{page.name}.md", *page.removed):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _describe(page: Page) -> str:
    state = _read_state().get(page.name, {})
    if state.get("stamp") != make_stamp(page):
        return "to do" + (", timed" if page.timed else "")
    done = state["finished"] == max(1, len(page.commands))
    return f"done in {state['minutes']:g} minutes" if done else "to go on"


def _read_state() -> dict[str, Any]:
    return dict(json.loads(STATE.read_text(encoding="utf-8"))) if STATE.exists() else {}


def _write_state(page: Page, state: dict[str, Any]) -> None:
    STATE.parent.mkdir(exist_ok=True)
    STATE.write_text(json.dumps(_read_state() | {page.name: state}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
