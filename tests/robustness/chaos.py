"""Fail every file operation of a command once, and kill the process before each; then look what is left.

    python -m tests.robustness.chaos [--sample N] [--seed S] [--scenario NAME …] [--case NAME:NUMBER:FAULT] [--json F]
                                     [--share K/N]

FAULT is EIO, ENOSPC or kill. Operations that only read fail with EIO, the others with EIO and ENOSPC. Afterwards

- the old or the new artifact loads, with every digest, and each piece of evidence beside it is whole and about it,
- the command has ended with one line of error and exit code 1, or it has done all of its work,
- running it again succeeds, and leaves the same files as a run without any fault.

One process imports the libraries, and each command runs in a fork of it.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path

from tests.robustness import faults, scenarios
from tests.robustness.faults import Faults, Operation
from tests.robustness.scenarios import Scenario

KILL_FAULT = "kill"
_ERRORS = {"EIO": errno.EIO, "ENOSPC": errno.ENOSPC}
_SECONDS = 180.0  # for a command that takes a second or two, on a busy machine
_POLL_SECONDS = 0.005
_PROGRESS_EVERY = 20
_TWO_MINUTES = 120.0
_HANG, _PYTHON_FAILED = -1000, 99


@dataclass(frozen=True)
class Attempt:
    """One operation of a scenario, and the fault that it meets."""

    scenario: str
    operation: Operation
    fault: str

    @property
    def case(self) -> str:
        """The id that repeats it."""
        return f"{self.scenario}:{self.operation.number}:{self.fault}"


@dataclass(frozen=True)
class Outcome:
    """What an attempt left: `bad` says what is wrong, empty if nothing is; `reached` is False if it never happened."""

    case: str
    kind: str
    path: str
    bad: str
    reached: bool
    code: int
    message: str = ""


@dataclass(frozen=True)
class Clean:
    """A run of a scenario without a fault: its exit code, its operations, and the files that it leaves."""

    code: int
    operations: Sequence[Operation]
    files: frozenset[str]


class Laboratory:
    """The warm process: it restores folders, forks commands, and judges what they leave."""

    def __init__(self, scratch: Path) -> None:
        self._faults = Faults()
        self._scratch = scratch
        self._folder = self._faults.root / "work"
        self._clean: dict[str, Clean] = {}
        for name in ("tmp", "cache"):
            (self._faults.root / name).mkdir()

    def measure(self, scenario: Scenario) -> Clean:
        """Prepare a scenario's folder once, and run its command twice without a fault; the first imports libraries."""
        if scenario.name not in self._clean:
            template = self._template(scenario)
            scenarios.prepare(template, scenario, lambda words, folder: self._run(words, folder)[0])
            scenarios.restore(template, self._folder)
            self._run(scenario.words, self._folder)
            for name in (self._scratch / "modules").read_text().split():
                with suppress(Exception):  # parts of libraries that do not import alone
                    import_module(name)
            scenarios.restore(template, self._folder)
            code, errors = self._run(scenario.words, self._folder, faults.COUNT)
            self._faults.disarm()
            if code not in (0, 3) or scenario.check(self._folder):
                raise RuntimeError(f"{scenario.name}: {code} {scenario.check(self._folder)} {errors}")
            self._clean[scenario.name] = Clean(code, self._faults.operations(), self._list())
        return self._clean[scenario.name]

    def attempt(self, scenario: Scenario, attempt: Attempt) -> Outcome:
        """Make one attempt, and judge it."""
        clean = self.measure(scenario)
        scenarios.restore(self._template(scenario), self._folder)
        kill = attempt.fault == KILL_FAULT
        mode = faults.KILL if kill else faults.FAIL
        number, error = attempt.operation.number, 0 if kill else _ERRORS[attempt.fault]
        code, errors = self._run(scenario.words, self._folder, mode, number, error)
        reached = self._faults.disarm()
        bad = self._judge_end(code, errors, clean, killed=kill and reached) or scenario.check(self._folder)
        bad = bad or self._judge_next_run(scenario, clean)
        line = next((line for line in errors.splitlines() if line.startswith("error:")), "")
        operation = attempt.operation
        return Outcome(attempt.case, operation.kind, operation.path, bad, reached, code, line)

    def _judge_end(self, code: int, errors: str, clean: Clean, *, killed: bool) -> str:
        if killed:
            return "" if code == -signal.SIGKILL else f"it was not killed: {code}"
        if code == _HANG:
            return f"it had not ended after {_SECONDS:.0f} s"
        if code < 0 or code == _PYTHON_FAILED:
            return f"it crashed ({code}): {errors[-300:]}"
        lines = [line for line in errors.splitlines() if line.startswith("error:")]
        if code == clean.code and not lines:
            missing = clean.files - self._list()
            return f"it reported success without {', '.join(sorted(missing))}" if missing else ""
        if "Traceback" in errors or len(lines) > 1 or any("error: unexpected" in line for line in lines):
            return f"not one clear line: {errors[-300:]}"
        if code == 1 and not lines:
            return f"exit code 1 without a reason: {errors[-300:]}"
        return "" if code in (1, 3) else f"exit code {code}: {errors[-300:]}"

    def _judge_next_run(self, scenario: Scenario, clean: Clean) -> str:
        self._faults.disarm()
        _let_time_pass(self._folder)
        words = [*scenario.words, "--force"] if scenario.name == "export" else scenario.words
        code, errors = self._run(words, self._folder)
        if code != clean.code:
            return f"the next run ended with {code}: {errors[-300:]}"
        files = self._list()
        if files != clean.files:
            return f"after the next run, files differ: {', '.join(sorted(files ^ clean.files))}"
        return scenario.check(self._folder)

    def _template(self, scenario: Scenario) -> Path:
        return self._scratch / f"template-{scenario.name}"

    def _list(self) -> frozenset[str]:
        return frozenset(p.relative_to(self._folder).as_posix() for p in self._folder.rglob("*"))

    def _run(
        self, words: Sequence[str], folder: Path, mode: int = faults.OFF, target: int = 0, error: int = 0
    ) -> tuple[int, str]:
        """Run a command in a fork. Return its exit code, minus the signal if it was killed, and its stderr."""
        log = self._scratch / "stderr"
        child = os.fork()
        if child == 0:
            _become_command(
                words, folder, log, self._scratch / "modules", lambda: self._faults.arm(mode, target, error)
            )
        return _wait(child, _SECONDS), log.read_text(encoding="utf-8", errors="replace")


def _let_time_pass(folder: Path) -> None:
    """Make files two minutes older: a temporary file counts as abandoned after one."""
    for path in folder.rglob("*"):
        with suppress(OSError):
            then = path.lstat().st_mtime - _TWO_MINUTES
            os.utime(path, (then, then), follow_symlinks=False)


def _become_command(words: Sequence[str], folder: Path, log: Path, modules: Path, arm: Callable[[], None]) -> None:
    """Run the command line in this process, and end it."""
    code = _PYTHON_FAILED
    try:
        os.setsid()
        os.chdir(folder)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(output, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        sys.argv = ["vitdeploy", *words, "--quiet"]
        known = set(sys.modules)
        from vitdeploy import cli

        arm()
        try:
            cli.main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        sys.stderr.flush()
        modules.write_text("\n".join(sorted(set(sys.modules) - known)), encoding="utf-8")
    except BaseException:  # noqa: BLE001  the parent reads the traceback
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _wait(child: int, seconds: float) -> int:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(_POLL_SECONDS)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return _HANG


def _list_attempts(scenario: Scenario, operations: Iterable[Operation]) -> Iterator[Attempt]:
    for operation in _thin(operations):
        yield Attempt(scenario.name, operation, KILL_FAULT)
        yield Attempt(scenario.name, operation, "EIO")
        if operation.kind in faults.CHANGES:
            yield Attempt(scenario.name, operation, "ENOSPC")


def _thin(operations: Iterable[Operation]) -> list[Operation]:
    """Keep the first, the middle and the last of equal operations on one file: a profile is written in 1,000."""
    alike: dict[tuple[str, str], list[Operation]] = {}
    for operation in operations:
        alike.setdefault((operation.kind, operation.path), []).append(operation)
    kept = {part[at].number: part[at] for part in alike.values() for at in (0, len(part) // 2, -1)}
    return [kept[number] for number in sorted(kept)]


def _stub_the_machine() -> None:
    """Leave out of `run` what measures the machine for seconds and writes no file of the artifact."""
    from vitdeploy.commands.bench import costs, host_peak

    host_peak.measure_peaks = lambda threads: {}
    costs.measure_startup = lambda *_: None


def run_chaos(
    names: Sequence[str], sample: int | None, seed: int, case: str | None, share: tuple[int, int] = (1, 1)
) -> Iterator[tuple[Sequence[Outcome], Mapping[str, int]]]:
    """Make the attempts. Yield, after each, all outcomes so far and the number of file operations of each scenario."""
    chosen = [s for s in scenarios.SCENARIOS if not names or s.name in names]
    if case is not None:
        chosen = [s for s in scenarios.SCENARIOS if s.name == case.split(":")[0]]
    with tempfile.TemporaryDirectory(prefix="chaos-", dir=os.environ["CHAOS_SCRATCH"]) as scratch:
        laboratory = Laboratory(Path(scratch))
        by_name = {scenario.name: scenario for scenario in chosen}
        counts = {s.name: len(laboratory.measure(s).operations) for s in chosen}
        attempts = [a for s in chosen for a in _list_attempts(s, laboratory.measure(s).operations)]
        if case is not None:
            attempts = [attempt for attempt in attempts if attempt.case == case]
        elif sample is not None and sample < len(attempts):
            attempts = random.Random(seed).sample(attempts, sample)
        attempts = attempts[share[0] - 1 :: share[1]]
        print(f"file operations: {counts}; to try: {len(attempts)}", flush=True)
        outcomes: list[Outcome] = []
        for attempt in attempts:
            outcomes.append(laboratory.attempt(by_name[attempt.scenario], attempt))
            yield outcomes, counts


def main() -> None:
    """Set up the library of faults, start again with it, and make the attempts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sample", type=int, help="make so many attempts, drawn by the seed (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scenario", nargs="*", default=[], help="their names (default: all)")
    parser.add_argument("--case", help="repeat one attempt, such as replace:17:EIO")
    parser.add_argument(
        "--share", type=_parse_share, default=(1, 1), help="make every Nth attempt, from the Kth on: K/N"
    )
    parser.add_argument("--json", type=Path, help="write the outcomes to this file")
    options = parser.parse_args()
    if "CHAOS_ROOT" not in os.environ:
        sys.exit(_start_again())
    _stub_the_machine()
    outcomes: Sequence[Outcome] = ()
    for outcomes, counts in run_chaos(options.scenario, options.sample, options.seed, options.case, options.share):
        last = outcomes[-1]
        if last.bad or options.case is not None:
            print(f"{last.case} ({last.kind} {last.path}): {last.bad or last.message or 'fine'}", flush=True)
        elif len(outcomes) % _PROGRESS_EVERY == 0:
            print(f"tried {len(outcomes)}", flush=True)
        if options.json is not None:  # after each, so that a run that is stopped has told what it saw
            results = {"seed": options.seed, "operations": counts, "outcomes": [asdict(each) for each in outcomes]}
            options.json.write_text(json.dumps(results, indent=1), encoding="utf-8")
    bad = [outcome for outcome in outcomes if outcome.bad]
    tried = Counter(o.case.rpartition(":")[2] for o in outcomes if o.reached)
    print(f"tried {dict(tried)}; bad {len(bad)}")
    sys.exit(1 if bad else 0)


def _parse_share(text: str) -> tuple[int, int]:
    part, _, parts = text.partition("/")
    return int(part), int(parts)


def _start_again() -> int:
    """Run this command in an environment that has the library of faults. Return its exit code."""
    import subprocess

    if reason := faults.missing_tools():
        print(reason)
        return 2
    with tempfile.TemporaryDirectory(prefix="vitdeploy-chaos-") as name:
        folder = Path(name).resolve()
        environment = {
            **os.environ,
            **faults.environment(faults.build(folder), folder),
            "CHAOS_SCRATCH": str(folder),
            "TMPDIR": str(folder / "root" / "tmp"),
            "XDG_CACHE_HOME": str(folder / "root" / "cache"),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }
        return subprocess.run(
            [sys.executable, "-m", "tests.robustness.chaos", *sys.argv[1:]], env=environment
        ).returncode


if __name__ == "__main__":
    main()
