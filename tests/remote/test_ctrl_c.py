"""Ctrl-C here ends the job there, wherever it is, or says how to end it."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import start
from tests.remote.conftest import script, wait_until, working
from tests.remote.far import Far

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("near")]


def test_ctrl_c_ends_the_job_there(lab: Callable[..., Far], artifact: Path, copy: Callable[[Path], Path]) -> None:
    far = lab()
    words = ("bench", copy(artifact), "--seconds", "60", "--host", "lab", "--json")
    for _ in range(2):  # the same command starts anew: what was interrupted is nobody's result
        client = start(*words)
        wait_until(lambda: working(far), "the job runs")
        client.send_signal(signal.SIGINT)
        _, stderr = client.communicate(timeout=300)
        assert client.returncode == 130
        assert "was interrupted on" not in stderr
        [job] = far.jobs()
        wait_until(lambda job=job: (job / "ended.json").exists(), "the job ends")  # type: ignore[misc]
        assert json.loads((job / "ended.json").read_text())["code"] == 130


@pytest.mark.parametrize("moment", ["before", "after"])
def test_ctrl_c_while_the_job_is_being_started_leaves_nothing_running(
    lab: Callable[..., Far], far: Far, artifact: Path, copy: Callable[[Path], Path], tmp_path: Path, moment: str
) -> None:
    """The request to stop overtakes the start, or comes when the start has done its work and not yet answered."""
    asked, go, ended = tmp_path / "asked", tmp_path / "go", tmp_path / "ended"
    vitdeploy = f'{far.venv}/bin/vitdeploy "$@"'
    pause = f"touch {asked}; until [ -e {go} ]; do sleep 0.1; done"
    steps = f"{pause}; {vitdeploy}" if moment == "before" else f"{vitdeploy}; {pause}"
    slow = f'case "$2" in start) {steps}; touch {ended}; exit;; esac'
    there = lab(command=script(tmp_path / "slow", slow, f"exec {vitdeploy}"))
    client = start("bench", copy(artifact), "--seconds", "60", "--host", "lab")
    wait_until(asked.exists, "the start is on its way")
    client.send_signal(signal.SIGINT)
    _, stderr = client.communicate(timeout=300)
    assert client.returncode == 130
    assert "did not get the request" not in stderr
    go.touch()
    wait_until(ended.exists, "the start has arrived")
    for job in there.jobs():
        wait_until((job / "ended.json").exists, "the job ends", 30)
    assert len(there.jobs()) == (moment == "after")
    assert not working(there)


def test_ctrl_c_that_cannot_be_passed_on_says_how_to_end_the_job(
    lab: Callable[..., Far], far: Far, artifact: Path, copy: Callable[[Path], Path], tmp_path: Path
) -> None:
    refuse = 'case "$2" in cancel) [ -e $0.deaf ] && { echo broken; exit 1; };; esac'
    command = script(tmp_path / "deaf", refuse, f'exec {far.venv}/bin/vitdeploy "$@"')
    there = lab(command=command)
    client = start("bench", copy(artifact), "--seconds", "60", "--host", "lab")
    wait_until(lambda: working(there), "the job runs")
    (tmp_path / "deaf.deaf").touch()
    client.send_signal(signal.SIGINT)
    _, stderr = client.communicate(timeout=300)
    assert client.returncode == 130
    [job] = there.jobs()
    (tmp_path / "deaf.deaf").unlink()
    told = " ".join(stderr.split())
    assert f"{command} device cancel {job.name} --cache {there.cache} --json" in told
    assert f"(ssh -p {far.port} " in told
    assert there.vitdeploy("device", "cancel", job.name, "--cache", str(there.cache)).returncode == 0
    wait_until((job / "ended.json").exists, "the job ends", 30)
