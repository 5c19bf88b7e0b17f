"""A test that cannot be interrupted fails, and the others go on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

_TESTS = """
import ctypes, time
import pytest

@pytest.mark.parametrize("number", range(4))
def test_in_turn(number):
    time.sleep(0.1)
    if number == 1:
        while True:
            ctypes.PyDLL(None).sleep(60)  # holds the interpreter: no signal handler and no thread runs

def test_in_another_file():
    time.sleep(0.1)
"""


def test_what_hangs_in_native_code_ends_its_worker_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text('pytest_plugins = ("tests.turns",)\n')
    (tmp_path / "test_hangs.py").write_text(_TESTS)
    (tmp_path / "test_waits.py").write_text("import pytest\n\n@pytest.mark.timing\ndef test_alone():\n    pass\n")
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\nmarkers = timing\nfaulthandler_timeout = 8\nfaulthandler_exit_on_timeout = true\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "2", "-p", "no:cacheprovider", "-p", "no:timeout", "-q", tmp_path],
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert "1 failed, 5 passed" in ended.stdout, ended.stdout + ended.stderr
    assert "crashed while running 'test_hangs.py::test_in_turn[1]'" in ended.stdout
    assert "in test_in_turn" in ended.stderr, "where it hung"
