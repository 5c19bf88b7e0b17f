"""A board without PyTorch: an artifact is timed, compared with another engine and with stored answers, and gated."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.cli.conftest import run
from vitdeploy import artifact as artifacts
from vitdeploy.evidence import Bench, Eval, Power, RailEnergy, Run
from vitdeploy.frozen import replace
from vitdeploy.verdict import recompute_bench

pytestmark = pytest.mark.slow


def test_every_limit_of_a_board_is_judged_without_pytorch(far_venv: Path, artifact: Path, tmp_path: Path) -> None:
    def there(*words: object) -> subprocess.CompletedProcess[str]:
        program = [str(far_venv / "bin" / "vitdeploy"), *map(str, words)]
        return subprocess.run(program, capture_output=True, text=True, check=False, cwd=tmp_path)

    board, other, answers = tmp_path / "board", tmp_path / "other", tmp_path / "answers.zip"
    for folder in (board, other):
        shutil.copytree(artifact, folder)
    saved = run("eval", board, "--limit", "100", "--save-reference", answers, "--quiet")
    assert saved.code == 0, saved.err

    evaluated = there("eval", board, "--limit", "100", "--reference", answers, "--json")
    assert evaluated.returncode == 0, evaluated.stderr
    assert Eval.model_validate_json(evaluated.stdout).reference == "pytorch-fp32"
    benched = there("bench", board, "--against", other, "--seconds", "1", "--json")
    assert benched.returncode == 0, benched.stderr

    # A machine that tests share gives doubts, which the gate is right to refuse, and no power monitor: the bench is
    # given steady times and quiet conditions, and the energy of a board.
    loaded = artifacts.load(board)
    bench, reason = loaded.read_evidence(Bench)
    assert bench is not None, reason
    windows = (48.0, 49.0, 49.5, 50.0, 50.0, 50.5, 51.0, 52.0, 90.0)
    rail = RailEnergy(
        name="VDD_IN", watts=10, idle_watts=None, millijoules=50, windows=windows, millijoules_ci95=(49, 52)
    )
    energy = Power(source="hwmon", rails=(rail,), total="VDD_IN", seconds=5.0, inferences=1000)
    calm = {
        batch: tuple(state.model_copy(update={"others": 0.0, "steal": 0.0, "switches": 0.0}) for state in states)
        for batch, states in bench.conditions.items()
    }
    steady = tuple(_steady(timed) for timed in bench.runs)
    loaded.write_evidence(
        recompute_bench(replace(bench, runs=steady, power=energy, conditions=calm, doubts=(), valid=True))
    )

    limits = ("--max-drop", "5", "--max-energy", "60", "--max-latency", "100000", "--min-speedup", "0.001")
    judged = there("gate", board, *limits, "--against", other, "--json")
    checks = {check["name"]: check for check in json.loads(judged.stdout)["checks"]}
    assert {"accuracy drop", "speed-up", "latency p50 (ms)", "energy (mJ)"} == set(checks), checks
    assert checks["energy (mJ)"]["status"] == "pass"
    assert checks["accuracy drop"]["status"] in {"pass", "invalid"}  # of 100 images
    timing = [checks[name] for name in ("speed-up", "latency p50 (ms)")]
    assert all(check["status"] == "pass" for check in timing), timing
    assert "torch is not installed" not in judged.stdout + judged.stderr


def _steady(timed: Run) -> Run:
    """Return the run with as many samples in as many blocks, which vary by 1 % around its median."""
    random = np.random.default_rng(0)
    return replace(
        timed, blocks=tuple(tuple(timed.p50_ms * random.normal(1, 0.01, len(block))) for block in timed.blocks)
    )
