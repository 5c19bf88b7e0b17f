"""A board that is not there: a fake TensorRT and driver in every process, and the programs of a Jetson."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
TEGRASTATS = (
    "11-25-2026 10:15:02 RAM 2448/7620MB (lfb 7x4MB) CPU [8%@729,off] GR3D_FREQ 14%@[407] cpu@47.343C tj@49.5C "
    "VDD_IN 4756mW/4712mW VDD_CPU_GPU_CV 680mW/651mW VDD_SOC 1479mW/1479mW"
)
PROGRAMS = {
    "nvpmodel": "echo 'NV Power Mode: MAXN_SUPER'; echo 2",
    "tegrastats": f"while true; do echo '{TEGRASTATS}'; sleep 0.1; done",
    "jetson_clocks": "echo 'Error: Please run as root'; exit 1",
    "dpkg-query": "echo 'nvidia-l4t-core 36.4.7-20250918154033'; echo 'libnvinfer10 10.3.0.30-1+cuda12.5'",
}


def write_program(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def board(driver: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put a board with a fake TensorRT into the environment of processes that are started from now on."""

    def install(release: str = "10.3", faults: str = "", programs: dict[str, str] = PROGRAMS, **more: str) -> None:
        folder = tmp_path / "programs"
        folder.mkdir(exist_ok=True)
        for name, script in programs.items():
            write_program(folder, name, script)
        (tmp_path / "tmp").mkdir(exist_ok=True)
        environment = {
            "FAKE_TENSORRT": release, "FAKE_FAULTS": faults, "LD_LIBRARY_PATH": str(driver.parent),
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests' / 'fakes' / 'importable'}",
            "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1",
            "TMPDIR": str(tmp_path / "tmp"), **more,
        }  # fmt: skip
        for name, value in environment.items():
            monkeypatch.setenv(name, value)

    return install


def start(*words: object) -> subprocess.Popen[str]:
    """`vitdeploy doctor --record` in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "vitdeploy", "doctor", *map(str, words)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
