"""Point 14: a thousand damaged and hostile inputs. `make fuzz` tries as many as asked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.robustness.fuzz import KINDS

SEED = os.environ.get("VITDEPLOY_SEED", "0")
CASES = {"evidence": 120, "onnx": 20, "weights": 80, "data": 100, "recipes": 260, "answers": 380, "injection": 40}


def test_there_are_a_thousand_of_all_kinds() -> None:
    assert set(CASES) == set(KINDS)
    assert sum(CASES.values()) == 1000


@pytest.mark.parametrize("kind", CASES)
def test_nothing_bad_comes_of_it(kind: str, tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    words = ["--kind", kind, "-n", str(CASES[kind]), "--seed", SEED, "--json", str(results)]
    done = subprocess.run([sys.executable, "-m", "tests.robustness.fuzz", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (tally,) = json.loads(results.read_text())
    assert sum(tally["outcomes"].values()) == CASES[kind]
    ended = {"fine"} if kind == "injection" else {"fine", "refused"}  # text is shown, whatever is in it
    assert set(tally["outcomes"]) == ended, "some must be accepted, and some refused"
