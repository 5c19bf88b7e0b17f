"""The smoke command of Dockerfile.jetson, on a machine that lacks more or less of what it asks for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FAKES = ROOT / "tests" / "fakes"


def smoke(folder: Path, *, bindings: bool, trtexec: bool) -> subprocess.CompletedProcess[str]:
    """Run it where Python finds a `tensorrt` that is a version and nothing else, and PATH a trtexec that is a fake."""
    programs = folder / "bin"
    programs.mkdir()
    (programs / "python3").symlink_to(sys.executable)
    (programs / "vitdeploy").write_text(f'#!/bin/sh\nexec {sys.executable} -m vitdeploy "$@"\n')
    (programs / "vitdeploy").chmod(0o755)
    if trtexec:
        (programs / "trtexec").symlink_to(FAKES / "trtexec")
    if bindings:
        (folder / "tensorrt.py").write_text("__version__ = '10.3.0'\n")
    environment = os.environ | {
        "PATH": f"{programs}:/usr/bin:/bin", "PYTHONPATH": f"{folder}:{ROOT}", "FAKE_TRTEXEC": "10.3",
    }  # fmt: skip
    command = ["bash", ROOT / ".ci" / "jetson-smoke"]
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("bindings", "trtexec", "said"),
    [
        (False, False, "No module named 'tensorrt'"),
        (True, False, "trtexec does not run"),
        (True, True, "tensorrt is not available: this machine has no NVIDIA GPU"),
    ],
)
def test_it_fails_at_the_first_thing_that_is_missing(bindings: bool, trtexec: bool, said: str, tmp_path: Path) -> None:
    if bindings and trtexec and Path("/dev/nvidia0").exists():
        pytest.skip("this machine has a GPU")
    done = smoke(tmp_path, bindings=bindings, trtexec=trtexec)
    assert done.returncode == 1
    assert said in done.stderr
    assert "smoke test passed" not in done.stdout
    assert ("TensorRT v100300" in done.stdout) == trtexec
