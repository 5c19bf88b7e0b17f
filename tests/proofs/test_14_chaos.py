"""Point 14: file operations fail and processes are killed, and nothing is lost. `make chaos` tries all of them."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.robustness import faults
from tests.robustness.faults import COUNT, FAIL, KILL, Faults, Operation

SEED = os.environ.get("VITDEPLOY_SEED", "0")
SAMPLE = "14"  # of about 1,500 attempts; each takes a second and is followed by another run

pytestmark = pytest.mark.skipif(bool(faults.missing_tools()), reason=faults.missing_tools())

# What is written here, the command line does too: a file beside its place, synced and renamed, and one removed.
PROGRAM = """
import os, sys
from pathlib import Path
from tests.robustness.faults import Faults

mode, target, error = map(int, sys.argv[1:])
root = Path(os.environ["CHAOS_ROOT"])
os.setsid()
Faults().arm(mode, target, error)
try:
    with (root / "new").open("wb") as file:
        file.write(b"new")
        file.flush()
        os.fsync(file.fileno())
    (root / "new").rename(root / "kept")
    (root / "other").unlink()
except OSError as failure:
    sys.exit(f"{failure.errno}")
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Run the program in a fresh folder; return how it ended, the operations, and what is in the folder."""
    library = faults.build(tmp_path)

    def start(mode: int, target: int = 0, error: int = 0) -> tuple[int, list[Operation], dict[str, str]]:
        for name, value in faults.environment(library, tmp_path).items():
            if name != "LD_PRELOAD":
                monkeypatch.setenv(name, value)
        root = tmp_path / "root"
        for path in root.iterdir():
            path.unlink()
        for name in ("kept", "other"):
            (root / name).write_text("old")
        words = [sys.executable, "-c", PROGRAM, *map(str, (mode, target, error))]
        ended = subprocess.run(words, env={**os.environ, "LD_PRELOAD": str(library)}, capture_output=True, text=True)
        code = int(ended.stderr) if ended.returncode == 1 else ended.returncode
        return code, Faults().operations(), {path.name: path.read_text() for path in root.iterdir()}

    return start


def test_the_library_numbers_fails_and_kills(run: Callable[..., Any]) -> None:
    code, operations, files = run(COUNT)
    assert (code, files) == (0, {"kept": "new"})
    kinds = [operation.kind for operation in operations]
    assert kinds == ["create", "write", "sync", "rename", "remove"]
    for operation in operations:
        code, _, files = run(FAIL, operation.number, errno.ENOSPC)
        assert code == errno.ENOSPC, operation
        assert files["kept"] == ("new" if operation.kind == "remove" else "old")
        code, _, files = run(KILL, operation.number)
        assert code == -signal.SIGKILL, operation
        assert files["kept"] == ("new" if operation.kind == "remove" else "old")


def test_commands_survive_failing_disks_and_kills(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    words = ["--sample", SAMPLE, "--seed", SEED, "--scenario", "export", "replace", "compile", "eval", "gate"]
    command = [sys.executable, "-m", "tests.robustness.chaos", *words, "--json", str(results)]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    outcomes = json.loads(results.read_text())["outcomes"]
    assert sum(outcome["reached"] for outcome in outcomes) >= int(SAMPLE) - 2  # numbers move when timing does
