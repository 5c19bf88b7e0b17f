"""Ctrl-C and SIGTERM, at any moment: exit 130, a line that says so, and nothing half-written."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.cli.conftest import listing, start
from vitdeploy.cli.console import Console

_PATIENCE_SECONDS = 300


def interrupted(process: subprocess.Popen[str], after: str, *signals: int, writes: str | None = None) -> str:
    """Send `signals` as soon as stderr says `after`, while it has what `writes` globs; what it says from then on."""
    assert process.stderr is not None
    for line in process.stderr:
        if after in line:
            break
    else:
        pytest.fail(f"it never said {after!r}")
    time.sleep(0.2)  # into the step that follows
    assert process.poll() is None, "it ended before it could be interrupted"
    if writes is not None:
        folder, _, pattern = writes.rpartition("/")
        assert list(Path(folder).glob(pattern)), "there is nothing half-written yet"
    for number in signals:
        process.send_signal(number)
        time.sleep(0.01)
    _, rest = process.communicate(timeout=_PATIENCE_SECONDS)
    return rest


@pytest.mark.parametrize(
    "signals",
    [[signal.SIGINT], [signal.SIGTERM], [signal.SIGTERM, signal.SIGTERM, signal.SIGINT]],
    ids=["Ctrl-C", "SIGTERM", "timeout's two and an impatient person"],
)
def test_export(tmp_path: Path, signals: list[int]) -> None:
    process = start("export", "demo:digits", "--target", "onnxruntime", "-o", tmp_path / "new" / "a")
    rest = interrupted(process, "Run the FP32 reference", *signals, writes=f"{tmp_path}/new/.a.partial-*")
    assert process.returncode == 130
    assert rest.splitlines()[-1] == "note: interrupted; no incomplete files are left behind"
    assert "Traceback" not in rest
    assert listing(tmp_path) == []


def test_export_over_an_artifact_keeps_it(onnxruntime_fp32: Path, copy: Callable[[Path], Path]) -> None:
    artifact = copy(onnxruntime_fp32)
    before = {p: p.read_bytes() for p in artifact.rglob("*") if p.is_file()}
    process = start("export", "demo:digits", "--target", "openvino", "-o", artifact, "--force")
    interrupted(process, "Run the FP32 reference", signal.SIGINT, writes=f"{artifact.parent}/.*.partial-*")
    assert process.returncode == 130
    assert {p: p.read_bytes() for p in artifact.parent.rglob("*") if p.is_file()} == before


def test_bench(onnxruntime_fp32: Path, copy: Callable[[Path], Path]) -> None:
    artifact = copy(onnxruntime_fp32)
    process = start("bench", artifact, "--seconds", "60")
    rest = interrupted(process, "Open pytorch-fp32", signal.SIGINT)
    assert process.returncode == 130
    assert "interrupted" in rest
    assert listing(artifact.parent) == listing_with(onnxruntime_fp32)


def test_eval(onnxruntime_fp32: Path, copy: Callable[[Path], Path], tmp_path: Path) -> None:
    artifact = copy(onnxruntime_fp32)
    np.savez(tmp_path / "many.npz", images=np.zeros((50_000, 32, 32), np.uint8), labels=np.zeros(50_000, np.int64))
    process = start("eval", artifact, "--data", tmp_path / "many.npz")
    rest = interrupted(process, "Load the reference", signal.SIGINT)
    assert process.returncode == 130
    assert "interrupted" in rest
    assert listing(artifact.parent) == listing_with(onnxruntime_fp32)


def test_started_in_the_background_it_ignores_ctrl_c(tmp_path: Path) -> None:
    """`nohup` and `&` in a script start a process with SIGINT ignored: it has to stay so."""
    process = start("doctor", ignore_ctrl_c=True)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=_PATIENCE_SECONDS)
    assert process.returncode == 0


def listing_with(artifact: Path) -> list[str]:
    """What the folder of an untouched copy of `artifact` lists."""
    name = artifact.name
    return sorted([name, *(f"{name}/{inside}" for inside in listing(artifact))])


@pytest.mark.parametrize("quiet", [False, True])
def test_a_signal_that_a_library_swallowed_counts_at_the_end_of_the_step(quiet: bool) -> None:
    """Python drops an exception that is raised in a destructor or in a callback from C."""
    console = Console(quiet=quiet, interrupted=lambda: True)
    with pytest.raises(KeyboardInterrupt), console.step("Export"):
        pass
