"""On a busy machine, spinning threads take the CPU from the threads that they wait for."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.cli.conftest import onnxruntime_fp32, spawn
from vitdeploy.runtime.waiting import sleep_while_waiting

__all__ = ["onnxruntime_fp32"]


@pytest.fixture(autouse=True)
def without_a_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)


def read_spins(text: str) -> int:
    """How often a waiting thread of PyTorch's OpenMP looks before it sleeps, as it says."""
    (count,) = set(re.findall(r"GOMP_SPINCOUNT = '(\d+)'", text))
    return int(count)


def test_threads_sleep_in_eval_and_spin_in_bench(
    onnxruntime_fp32: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reference whose threads sleep would be slower, and the artifact would look faster than it is."""
    monkeypatch.setenv("OMP_DISPLAY_ENV", "VERBOSE")
    words = (onnxruntime_fp32, "--evidence", tmp_path, "--quiet")
    assert read_spins(spawn("eval", *words, "--limit", "2").err) == 0
    assert read_spins(spawn("bench", *words, "--seconds", "0.1").err) > 0


@pytest.mark.parametrize(("variable", "value"), [("OMP_WAIT_POLICY", "ACTIVE"), ("GOMP_SPINCOUNT", "100")])
def test_a_choice_of_the_user_stays(variable: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, value)
    before = dict(os.environ)
    sleep_while_waiting()
    assert dict(os.environ) == before
