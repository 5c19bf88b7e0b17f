"""Real faults between two machines: cut links, wrong keys, full disks, killed processes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.conftest import listing, run, start
from tests.cli.test_contract import answer
from tests.remote.conftest import on, process_of, script, size_of, wait_until, waiting, when, working
from tests.remote.cutter import Wire
from tests.remote.far import Far, sshd
from vitdeploy import artifact as artifacts
from vitdeploy.remote.near import ssh

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("near")]


def test_a_link_cut_in_mid_upload_goes_on_where_it_was(
    lab: Callable[..., Far], wire: Wire, artifact: Path, copy: Callable[[Path], Path]
) -> None:
    far = lab(port=wire.port)
    here = copy(artifact)
    total = sum(path.stat().st_size for path in here.rglob("*"))
    assert total > 1_500_000, "there has to be something to cut"
    wire.bytes_per_second = 800_000  # else all is under way before vitdeploy has started over there
    cutting = when(lambda: any(size_of(part) > total / 2 for part in far.cache.glob("partial/*")), wire.cut)
    result = run("compile", here, "--host", "lab", "--json")
    cutting.join()
    assert answer(result)["stage"] == "artifact"
    assert wire.cuts == 1
    assert "the connection to lab dropped" in result.err
    assert wire.carried < 1.3 * total, "what had arrived was not sent again"
    artifacts.load(here)


def test_a_link_that_never_carries_all_of_it_gets_there_too(
    lab: Callable[..., Far], wire: Wire, artifact: Path, copy: Callable[[Path], Path]
) -> None:
    lab(port=wire.port)
    wire.bytes_per_second = 800_000
    wire.cut_after(900_000, times=100)
    assert answer(run("compile", copy(artifact), "--host", "lab", "--json"))["stage"] == "artifact"
    assert wire.cuts >= 2


def test_a_link_cut_in_mid_build_loses_nothing(
    lab: Callable[..., Far], wire: Wire, bundle: Path, copy: Callable[[Path], Path]
) -> None:
    far = lab(port=wire.port)
    here = copy(bundle)
    cutting = when(lambda: working(far), wire.cut)
    result = run("compile", here, "--host", "lab", "--json")
    cutting.join()
    assert answer(result)["stage"] == "artifact"
    assert wire.cuts == 1
    assert "the connection to lab dropped" in result.err
    assert len(far.jobs()) == 1, "it was followed again, not started again"
    steps = re.findall(r"lab: ✓ (.*?) \d", result.err)
    expected = ["Compile and audit with openvino", "Run it, and compare it with the reference"]
    assert steps == expected, "each line of progress came once"


def test_what_was_said_before_a_cut_is_not_said_again(
    lab: Callable[..., Far], wire: Wire, artifact: Path, copy: Callable[[Path], Path]
) -> None:
    lab(port=wire.port)
    client = start("bench", copy(artifact), "--seconds", "2", "--host", "lab", "--json")
    assert client.stderr is not None
    heard = next(line for line in client.stderr if line.startswith("lab: ✓"))
    wire.cut()
    out, rest = client.communicate(timeout=300)
    assert json.loads(out)["runs"]
    assert "the connection to lab dropped" in rest
    title = heard.rpartition("✓ ")[2].rsplit(" ", 2)[0]
    assert not re.search(rf"lab: ✓ {re.escape(title)} \d", rest)
    assert "lab: ✓ " in rest, "what came later was heard"


def test_a_link_cut_while_the_result_comes_back_goes_on_where_it_was(
    lab: Callable[..., Far], wire: Wire, bundle: Path, copy: Callable[[Path], Path]
) -> None:
    lab(port=wire.port)
    wire.cut_after(500_000, back=True)
    wire.bytes_per_second = 1e6  # so that what was carried has arrived, and does not lie in a buffer that dies
    here = copy(bundle)
    result = run("compile", here, "--host", "lab", "--json")
    assert answer(result)["stage"] == "artifact"
    assert wire.cuts == 1
    assert "the connection to lab dropped" in result.err
    model_bytes = sum(path.stat().st_size for path in here.glob("model.*"))
    assert model_bytes > 700_000
    assert wire.carried_back < 1.4 * model_bytes, "what had arrived did not come again"
    artifacts.load(here)


def test_a_link_that_ends_behind_the_result_costs_nothing(
    lab: Callable[..., Far], far: Far, bundle: Path, copy: Callable[[Path], Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(ssh, "_MAX_DROPS", 1)
    ended = 'case "$2" in take) exit 255;; esac'  # ssh's own code for a connection that ended
    lab(command=script(tmp_path / "ends", ended, f'exec {far.venv}/bin/vitdeploy "$@"'))
    here = copy(bundle)
    result = run("compile", here, "--host", "lab", "--json")
    assert answer(result)["stage"] == "artifact"
    assert "lab was not told that its results have arrived: the connection to lab dropped" in result.err
    assert artifacts.load(here).manifest.stage == "artifact"


def test_a_client_that_dies_finds_its_job_again(
    lab: Callable[..., Far], artifact: Path, copy: Callable[[Path], Path]
) -> None:
    far = lab()
    here = copy(artifact)
    words = ("bench", here, "--seconds", "3", "--host", "lab", "--json")
    first = start(*words)
    wait_until(lambda: working(far), "the job runs")
    first.kill()
    first.communicate()
    result = run(*words)
    assert answer(result)["runs"][0]["samples"] >= 30
    assert "lab already has this job from an earlier run: waiting for its result" in result.err
    assert len(far.jobs()) == 1
    again = run(*words)
    assert answer(again)["runs"] != answer(result)["runs"], "once taken, a result does not serve again"


def test_a_result_that_is_refused_here_is_not_offered_again(
    lab: Callable[..., Far], far: Far, bundle: Path, copy: Callable[[Path], Path], tmp_path: Path
) -> None:
    lose = f'case "$2" in results) [ -e $0.lossy ] && rm {tmp_path}/far-cache/jobs/*/work/artifact/audit.json;; esac'
    lab(command=script(tmp_path / "there", lose, f'exec {far.venv}/bin/vitdeploy "$@"'))
    here = copy(bundle)
    before = listing(here)
    (tmp_path / "there.lossy").touch()
    refused = run("compile", here, "--host", "lab")
    assert "lab sent back an artifact without an audit" in refused.error
    assert listing(here) == before
    (tmp_path / "there.lossy").unlink()
    again = run("compile", here, "--host", "lab", "--json")
    assert answer(again)["stage"] == "artifact"
    assert "already has this job" not in again.err


def test_two_clients_at_once_queue_and_both_are_right(
    lab: Callable[..., Far], artifact: Path, bundle: Path, copy: Callable[[Path], Path]
) -> None:
    far = lab()
    timed, compiled = copy(artifact), copy(bundle)
    first = start("bench", timed, "--seconds", "1", "--host", "lab", "--json")
    wait_until(lambda: working(far), "the first has the device")
    _, holder = process_of(far)
    os.kill(holder, signal.SIGSTOP)  # until the second one waits: its start takes a while
    try:
        listed = answer(run("hosts", "lab", "--json"))["hosts"][0]
        assert (listed["state"], listed["device"]["queued"]) == ("busy", 1)
        assert listed["why"].startswith("`bench` of ")
        second = start("compile", compiled, "--host", "lab", "--json")
        wait_until(lambda: waiting(far), "the second waits")
        assert artifacts.load(compiled).manifest.stage == "bundle"
    finally:
        os.kill(holder, signal.SIGCONT)  # it has the lock that all jobs of this machine wait for
    (out, err), (compiled_out, compiled_err) = first.communicate(timeout=300), second.communicate(timeout=180)
    assert "waiting for the device: `bench` of" in compiled_err
    assert json.loads(compiled_out)["stage"] == "artifact"
    assert artifacts.load(compiled).manifest.stage == "artifact"
    assert first.returncode == 0, err
    assert json.loads(out)["runs"][0]["samples"] >= 30
    assert "waiting" not in err


@pytest.mark.parametrize(
    ("victims", "message"),
    [("child", "`bench` was killed on lab by signal 9;"), ("both", "the job was killed on lab;")],
)
def test_a_job_that_is_killed_is_told_and_frees_the_device(
    lab: Callable[..., Far], artifact: Path, copy: Callable[[Path], Path], victims: str, message: str
) -> None:
    far = lab()

    def kill() -> None:
        worker, child = process_of(far)
        for victim in (worker, child)[0 if victims == "both" else 1 :]:
            os.kill(victim, signal.SIGKILL)

    killing = when(lambda: working(far), kill)
    here = copy(artifact)
    before = listing(here)
    result = run("bench", here, "--seconds", "60", "--host", "lab")
    killing.join()
    assert result.code == 1
    assert re.search(message, result.error)
    assert "memory" in result.error
    assert listing(here) == before
    wait_until(lambda: answer(run("hosts", "lab", "--json"))["hosts"][0]["state"] == "ready", "the lock is free")
    assert answer(run("bench", here, "--seconds", "0.2", "--host", "lab", "--json"))["runs"]


def test_another_host_key_is_refused(
    lab: Callable[..., Far], far: Far, keys: Path, bundle: Path, copy: Callable[[Path], Path], tmp_path: Path
) -> None:
    (tmp_path / "impostor").mkdir()
    here = copy(bundle)
    before = listing(here)
    with sshd(tmp_path / "impostor", keys, far.venv, "other_host") as port:
        lab(port=port)
        result = run("compile", here, "--host", "lab")
    assert result.code == 1
    assert "lab shows another host key than before" in result.error
    assert "ssh-keygen -R" in result.error
    assert listing(here) == before
    assert "Accepted" not in (tmp_path / "impostor" / "sshd.log").read_text()


def test_a_host_key_that_changes_in_the_middle_is_refused(
    lab: Callable[..., Far],
    far: Far,
    keys: Path,
    wire: Wire,
    artifact: Path,
    copy: Callable[[Path], Path],
    tmp_path: Path,
) -> None:
    """Coming back after a cut is a login like the first one: it is not retried, and nothing is sent."""
    (tmp_path / "impostor").mkdir()
    lab(port=wire.port)
    here = copy(artifact)
    with sshd(tmp_path / "impostor", keys, far.venv, "other_host") as port:
        wire.cut_after(600_000, then_to=port)
        started = time.monotonic()
        result = run("compile", here, "--host", "lab")
    assert "lab shows another host key than before" in result.error
    assert time.monotonic() - started < ssh.PATIENCE_S


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("known_hosts", "", "is not among your known hosts"),
        ("config", "IdentityFile {keys}/stranger", "refuses the login"),
    ],
)
def test_who_is_not_known_does_not_get_in(
    far: Far, near: Path, keys: Path, artifact: Path, file: str, content: str, message: str
) -> None:
    original = (near / file).read_text() if content else ""
    line = content.format(keys=keys)
    (near / file).write_text(re.sub("IdentityFile .*", line, original) if original else "")
    result = on(far, "bench", artifact)
    assert result.code == 1
    assert message in result.error
    assert "ssh" in result.error.partition(message)[2], "what to do"


def test_nobody_there(artifact: Path) -> None:
    result = run("bench", artifact, "--host", "ssh://127.0.0.1:1")
    assert result.code == 1
    assert "cannot be reached" in result.error
    assert "Connection refused" in result.error


def test_a_host_that_stays_away_is_given_up(
    lab: Callable[..., Far], wire: Wire, artifact: Path, copy: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh, "PATIENCE_S", 1.0)
    far = lab(port=wire.port)

    def leave() -> None:
        wire.then_to(1)
        wire.cut()

    leaving = when(lambda: working(far), leave)
    here = copy(artifact)
    result = run("compile", here, "--host", "lab")
    leaving.join()
    assert "lab cannot be reached" in result.error


def test_a_full_disk_there_is_told(
    lab: Callable[..., Far], far: Far, artifact: Path, copy: Callable[[Path], Path], tmp_path: Path
) -> None:
    """A limit on the size of files is a full disk that any user can have."""
    wrapper = script(tmp_path / "limited", "ulimit -f 1000", f'exec {far.venv}/bin/vitdeploy "$@"')
    there = lab(command=wrapper)
    here = copy(artifact)
    before = listing(here)
    result = run("compile", here, "--host", "lab")
    assert result.code == 1
    assert f"lab: the disk of {there.cache} is full" in result.error
    assert listing(here) == before
    assert list((there.cache / "partial").iterdir()) == [], "nothing half-sent fills it further"


@contextmanager
def disk_of(size: str, folder: Path) -> Iterator[None]:
    """A disk of so many bytes on this folder, where this user may mount one."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_disk_without_room_is_told_before_anything_is_sent(
    lab: Callable[..., Far], artifact: Path, tmp_path: Path
) -> None:
    with disk_of("1m", tmp_path / "far-cache"):
        lab()
        result = run("compile", artifact, "-o", tmp_path / "out", "--host", "lab")
        assert "the disk of lab is full" in result.error
        assert "--clean" in result.error
        assert not (tmp_path / "out").exists()


def test_a_disk_that_gets_full_in_mid_build_is_told(lab: Callable[..., Far], artifact: Path, tmp_path: Path) -> None:
    with disk_of("2500k", tmp_path / "far-cache"):
        far = lab()
        result = run("compile", artifact, "-o", tmp_path / "out", "--host", "lab")
        assert re.search("error: lab: .*(full|No space left)", result.error)
        assert not (tmp_path / "out").exists()
        [job] = far.jobs()
        assert not list((job / "work").glob("*artifact*")), "nothing half-written fills it further"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            ['PYTHONPATH={old} exec {far} "$@"'],
            "lab has vitdeploy 0.0.7, which does not work together with .* -m pip install --upgrade 'vitdeploy==",
        ),
        (['shift; exec {far} deviate "$@"'], "lab has an older vitdeploy, which does not work together with"),
        (['echo "Segmentation fault" >&2; exit 139'], "does not answer in JSON: Segmentation fault"),
        (['exec /nowhere/vitdeploy "$@"'], "lab has no command"),
    ],
    ids=["older", "without device", "broken", "missing"],
)
def test_a_vitdeploy_that_does_not_fit_is_told_with_the_way_to_update(
    lab: Callable[..., Far], far: Far, artifact: Path, tmp_path: Path, lines: list[str], message: str
) -> None:
    old = tmp_path / "old"
    old.mkdir()
    (old / "sitecustomize.py").write_text("import vitdeploy.version\n\nvitdeploy.version.__version__ = '0.0.7'\n")
    filled = (line.format(old=old, far=far.venv / "bin" / "vitdeploy") for line in lines)
    lab(command=script(tmp_path / "wrapper", *filled))
    result = run("bench", artifact, "--host", "lab")
    assert result.code == 1
    assert re.search(message, result.error)
    listed = answer(run("hosts", "lab", "--json"))["hosts"][0]
    assert listed["state"] == "unusable"
    assert listed["fix"]


def test_what_a_login_prints_does_no_harm(
    lab: Callable[..., Far], far: Far, artifact: Path, bundle: Path, copy: Callable[[Path], Path], tmp_path: Path
) -> None:
    """Answers are found after it; files that it damages are refused."""
    lab(command=script(tmp_path / "chatty", "echo 'Welcome to {the} lab'", f'exec {far.venv}/bin/vitdeploy "$@"'))
    assert answer(run("bench", copy(artifact), "--seconds", "0.2", "--host", "lab", "--json"))["runs"]
    here = copy(bundle)
    before = listing(here)
    result = run("compile", here, "--host", "lab")
    assert "was damaged on the way from lab" in result.error
    assert listing(here) == before
