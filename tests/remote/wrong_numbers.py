"""Planted faults over `--host`: a board behind a real sshd, with a TensorRT that miscompiles.

Run by `python -m tests.fakes.wrong_numbers --host`. Each case of `planted` is compiled over SSH with each version, and
so is each healthy model. Once with each version the link is cut in the middle of the builds, and stays away until the
command gives up. Then the same command runs again.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import islice, product
from pathlib import Path
from typing import Any

from tests.cli.conftest import Ended, listing, run
from tests.fakes.board import Board
from tests.fakes.fixtures import VITS, compile_driver
from tests.remote.conftest import when
from tests.remote.cutter import Wire
from tests.remote.far import make_far_venv, make_keys, make_near, make_wheel, site_packages, sshd, url_of
from tests.remote.planted import CASES, CUT, Case, Outcome, read_outcome
from vitdeploy import recipe as recipes
from vitdeploy.artifact import Artifact, Trial, load
from vitdeploy.commands.export import export
from vitdeploy.frozen import replace
from vitdeploy.pipeline.graph_cache import GraphCache
from vitdeploy.progress import Silent
from vitdeploy.remote.near import ssh

MODELS = ("deit", "rope", "swin", "detector")


@dataclass(frozen=True)
class Result:
    """A compile over `--host`: what came back, the trials without their timing, and the builds on the board."""

    outcome: Outcome
    trials: tuple[Trial, ...]
    builds: int
    repeated: int


@dataclass(frozen=True)
class Bench:
    """A board, the wire to its sshd on `port`, its address through the wire, and bundles by the name of their model."""

    board: Board
    wire: Wire
    port: int
    host: str
    bundle: Callable[[str], Artifact]

    def compile(self, case: Case, release: str, seed: int = 0) -> Result:
        """Compile the model of a case on a board with its fault."""
        self.board.install(release, [case.fault] if case.fault else [], seed=seed)
        with tempfile.TemporaryDirectory() as folder:
            return self.read(self.start(self.bundle(case.model).path, "-o", Path(folder) / "out"), Path(folder) / "out")

    def start(self, bundle: Path, *words: object) -> Ended:
        """Run `compile` with `--host` in this process."""
        return run("compile", bundle, "--host", self.host, "--json", *words)

    def read(self, ended: Ended, folder: Path) -> Result:
        """Read what came back from the board."""
        assert ended.code == 0, ended.err
        begun = self.board.begun()
        trials = load(folder).manifest.trials
        return Result(
            read_outcome(folder, json.loads(ended.out)), tuple(map(_without_timing, trials)), len(begun),
            len(begun) - len({*begun}),
        )  # fmt: skip


@dataclass(frozen=True)
class Cut:
    """A compile whose link was cut: the error, whether the bundle here stayed as it was, and the second try."""

    error: str
    unchanged: bool
    resumed: bool
    again: Result


def cut_link(bench: Bench, case: Case, release: str, folder: Path, builds: int) -> Cut:
    """Compile in place, with the link cut after so many builds until the command gives up. Then compile again."""
    bench.board.install(release, [case.fault] if case.fault else [])
    here = Path(shutil.copytree(bench.bundle(case.model).path, folder / "here"))
    before, patience = listing(here), ssh.PATIENCE_S

    def leave() -> None:
        bench.wire.then_to(1)
        bench.wire.cut()

    leaving = when(lambda: len(bench.board.struck()) >= builds, leave)
    ssh.PATIENCE_S = 1.0
    try:
        first = bench.start(here)
    finally:
        leaving.join()
        ssh.PATIENCE_S = patience
        bench.wire.then_to(bench.port)
    unchanged = listing(here) == before and load(here).manifest.stage == "bundle"
    second = bench.start(here)
    again = bench.read(second, here)
    return Cut(first.error, unchanged, "already has this job" in second.err, again)


def run_faults(bench: Bench, releases: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield a row for each case and version."""
    for case, release in product(CASES, releases):
        result = bench.compile(case, release)
        struck, expected = bench.board.struck(), case.expect(release)
        assert struck[0] if expected.noticed else any(struck), f"{case} strikes nothing"
        assert case.fault is not None
        yield {
            "model": case.model, "fault": case.fault.name, "in": case.block, "release": release,
            **result.outcome.as_row(), "located": result.outcome.located == case.block,
            "held": bool(result.outcome.form) and result.outcome.sound, "right": result.outcome == expected,
            "builds": result.builds, "repeated": result.repeated,
        }  # fmt: skip


def run_healthy(bench: Bench, count: int, releases: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield a row for each healthy compile, all models and versions in turns, each with another order of sums."""
    turns = ((seed, *each) for seed in range(count) for each in product(MODELS, releases))
    for seed, model, release in islice(turns, count):
        outcome = bench.compile(Case(model), release, seed=seed + 1).outcome
        alarm = outcome != Case(model).expect(release)
        yield {"model": model, "release": release, "seed": seed, "alarm": alarm, **outcome.as_row()}


def run_cuts(bench: Bench, folder: Path, releases: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield a row for each version: a compile whose link is cut, against one whose link is not."""
    for release in releases:
        whole = bench.compile(CUT, release)
        cut = cut_link(bench, CUT, release, Path(tempfile.mkdtemp(dir=folder)), builds=4)
        yield {
            "model": CUT.model, "release": release, "error": cut.error, "unchanged": cut.unchanged,
            "resumed": cut.resumed, "builds": cut.again.builds, "same": cut.again == whole,
        }  # fmt: skip


@contextmanager
def open_bench(folder: Path, bundles: Path) -> Iterator[Bench]:
    """Set up a board in a folder. The `ssh` of this process has a key for it."""
    keys, venv, far, drivers = (folder / name for name in ("keys", "venv", "far", "drivers"))
    for each in (keys, far, drivers):
        each.mkdir()
    make_far_venv(venv, make_wheel(folder / "wheel"))
    programs = make_near(folder / "near", make_keys(keys))
    os.environ |= {"PATH": f"{programs}:{os.environ['PATH']}", "XDG_CONFIG_HOME": str(folder / "settings")}
    board = Board(site_packages(venv), compile_driver(drivers, "-Wl,-soname,libcuda.so.1"))
    with sshd(far, keys, venv, "host") as port, Wire(port) as wire:
        yield Bench(board, wire, port, url_of(wire.port), cache(lambda model: _export(model, bundles)))


def run_all(bundles: Path | None, releases: Sequence[str], healthy: int, show: Callable[[Any], Any]) -> dict[str, Any]:
    """Run everything, `show` each row, and print the figures. Return the rows."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with open_bench(folder, bundles or folder) as bench:
            faults = [*map(show, run_faults(bench, releases))]
            sound = [*map(show, run_healthy(bench, healthy, releases))]
            cuts = [*map(show, run_cuts(bench, folder, releases))]
    for model in MODELS:
        of = [row for row in faults if row["model"] == model]
        noticed, located, held = (sum(row[key] for row in of) for key in ("noticed", "located", "held"))
        complete, right = sum(not row["missing"] for row in of), sum(row["right"] for row in of)
        print(
            f"{model}: of {len(of)} faults {noticed} noticed, {located} located, {held} repaired ({right} by the "
            f"expected form); {complete} came back complete"
        )
    print(f"healthy: {sum(row['alarm'] for row in sound)} false alarms in {len(sound)} compiles")
    whole = sum(row["unchanged"] and row["resumed"] and row["same"] for row in cuts)
    print(f"cut: {whole} of {len(cuts)} ended as without a cut")
    return {"faults": faults, "healthy": sound, "cuts": cuts}


def _export(model: str, bundles: Path) -> Artifact:
    """Export a model in FP16 and INT8, with the safe forms of FP16."""
    out = bundles / f"{model}-fp16-int8"
    if not out.exists():
        recipe = recipes.compose(
            f"{VITS}:{model}", target="tensorrt", precision="fp16,int8", calibration="demo:digits",
            judge=model != "detector",  # digits have no boxes
        )  # fmt: skip
        export(recipes.with_target_options(recipe, {"rehearsal": False}), out, Silent(), cache=GraphCache())
    return load(out)


def _without_timing(trial: Trial) -> Trial:
    """Leave out what differs from run to run: the timing, and the choice between variants that both hold."""
    why = trial.why if trial.located else ""
    return replace(trial, speedup=None, kept=False, why=why)
