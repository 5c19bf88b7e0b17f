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
CASES = {"evidence": 180, "onnx": 20, "weights": 60, "data": 80, "recipes": 140, "answers": 420, "injection": 100}


def test_there_are_a_thousand_of_all_kinds() -> None:
    assert set(CASES) == set(KINDS)
    assert sum(CASES.values()) == 1000


@pytest.mark.long  # minutes on two cores
@pytest.mark.parametrize("kind", CASES)
def test_nothing_bad_comes_of_it(kind: str, tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    words = ["--kind", kind, "-n", str(CASES[kind]), "--seed", SEED, "--json", str(results)]
    ended = subprocess.run([sys.executable, "-m", "tests.robustness.fuzz", *words], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    (tally,) = json.loads(results.read_text())
    assert sum(tally["outcomes"].values()) == CASES[kind]
    assert set(tally["outcomes"]) == {"fine", "refused"}, "some must be accepted, and some refused"
