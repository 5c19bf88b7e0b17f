"""Point 12: a folder is replaced only where that is still allowed, in one step, and nothing is lost on the way."""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import hashlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.artifact.test_artifact import manifest, write
from tests.evidence import audit
from vitdeploy import artifact as artifacts
from vitdeploy.artifact import MANIFEST, locks, renames, staging, temporary
from vitdeploy.errors import ArtifactError
from vitdeploy.evidence import Audit
from vitdeploy.frozen import replace
from vitdeploy.pipeline.graph_cache import GraphCache

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "a")


def write_other(folder: Path) -> Path:
    """An artifact whose manifest differs from that of `write`."""
    write(folder)
    artifacts.seal(folder, replace(manifest(), labels=("another",)))
    return folder


def left_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def run_python(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Start `code` in a process of its own, in which `staging` is imported."""
    head = "import os, sys; from pathlib import Path\nfrom vitdeploy.artifact import staging\n"
    command = [sys.executable, "-c", head + code, *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


@contextmanager
def writer(out: Path, *, force: bool = False) -> Iterator[subprocess.Popen[str]]:
    """A process that is writing `out`. A line on its stdin lets it finish."""
    code = f"""
with staging.atomic_folder(Path(sys.argv[1]), force={force}) as folder:
    (folder / "manifest.json").write_text("{{}}")
    print("writing", flush=True)
    sys.stdin.readline()
"""
    with run_python(code, out) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        try:
            yield process
        finally:
            process.kill()


def stage(out: Path, meanwhile: Callable[[], object], **options: Any) -> None:
    """Write an artifact; `meanwhile` happens right before it takes its place."""
    with artifacts.atomic_folder(out, **options) as inside:
        write(inside)
        meanwhile()


# ------------------------------------------------------------------------------------------- two writers


def test_a_folder_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    out = tmp_path / "a"
    with pytest.raises(ArtifactError, match=r"a exists\. Use --force"):
        stage(out, lambda: write_other(out))  # somebody who knows no locks: cp, tar, an older version
    assert artifacts.load(out).manifest.labels == ("another",)
    assert left_in(tmp_path) == {"a"}


def test_what_appears_meanwhile_and_is_no_artifact_is_not_replaced_with_force(folder: Path) -> None:
    def exchange() -> None:
        folder.rename(folder.with_name("moved"))
        folder.mkdir()
        (folder / "thesis.tex").touch()

    with pytest.raises(ArtifactError, match="exists and is not an artifact"):
        stage(folder, exchange, force=True)
    assert left_in(folder.parent) == {"a", "moved"}
    assert left_in(folder) == {"thesis.tex"}


def test_only_the_artifact_that_was_read_is_replaced(folder: Path) -> None:
    read = artifacts.load(folder)
    with pytest.raises(ArtifactError, match="was replaced by another process meanwhile"):
        stage(folder, lambda: write_other(folder), force=True, replaces=read.digest)
    assert artifacts.load(folder).manifest.labels == ("another",)
    with artifacts.atomic_folder(folder, force=True, replaces=artifacts.load(folder).digest) as inside:
        write(inside)
    assert artifacts.load(folder).digest == read.digest


@pytest.mark.parametrize("force", [False, True])
def test_a_second_writer_is_told_at_once(tmp_path: Path, *, force: bool) -> None:
    out = tmp_path / "a"
    with writer(out) as process:
        begin = time.monotonic()
        with (
            pytest.raises(ArtifactError, match=r"another process is writing .*a\. Wait until it ends, or choose"),
            artifacts.atomic_folder(out, force=force),
        ):
            pytest.fail("two processes write one folder")
        assert time.monotonic() - begin < 20
        process.communicate("\n", timeout=300)
        assert process.returncode == 0
    assert left_in(tmp_path) == {"a"}


def start_export(out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "vitdeploy", "export", "demo:digits", "--target", "onnxruntime", "-o", out]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def test_two_exports_to_one_path_are_not_both_done(tmp_path: Path) -> None:
    both = [start_export(tmp_path / "a") for _ in range(2)]
    errors = [process.communicate(timeout=300)[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 1], errors
    line = next(error for process, error in zip(both, errors, strict=True) if process.returncode)
    assert "another process is writing" in line or "exists. Use --force" in line
    assert artifacts.load(tmp_path / "a").manifest.stage == "artifact"
    assert left_in(tmp_path) == {"a"}


def test_folders_beside_each_other_do_not_wait(tmp_path: Path) -> None:
    with writer(tmp_path / "a"), writer(tmp_path / "a.partial-1"), artifacts.atomic_folder(tmp_path / "b") as inside:
        write(inside)
    assert "b" in left_in(tmp_path)


# ------------------------------------------------------------------------------------------- one step


def no_renameat2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renames, "_renameat2", lambda *_: False)


def test_the_name_is_never_free(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the exchange of two names there is no moment at which the path leads nowhere."""
    if not renames.exchange(write(folder.with_name("b")), write(folder.with_name("c"))):
        pytest.skip("this system cannot exchange two names")
    monkeypatch.setattr(Path, "rename", lambda *_: pytest.fail("a rename would leave the name free for a moment"))
    with artifacts.atomic_folder(folder, force=True) as inside:
        write_other(inside)
    assert artifacts.load(folder).manifest.labels == ("another",)
    assert left_in(folder.parent) == {"a", "b", "c"}


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EXDEV])
def test_where_names_cannot_be_exchanged_two_renames_do(
    folder: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Libc:
        def __init__(self, *_: object, **__: object) -> None: ...

        @staticmethod
        def renameat2(*_: object) -> int:
            ctypes.set_errno(number)
            return -1

    monkeypatch.setattr(renames.ctypes, "CDLL", Libc)
    assert renames.exchange(folder, folder) is False
    with artifacts.atomic_folder(folder, force=True) as inside:
        write_other(inside)
    assert artifacts.load(folder).manifest.labels == ("another",)
    assert left_in(folder.parent) == {"a"}


def test_another_failure_of_the_exchange_keeps_the_old_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> bool:
        raise OSError(errno.EIO, "Input/output error")

    digest = artifacts.load(folder).digest
    monkeypatch.setattr(renames, "_renameat2", fail)
    with (
        pytest.raises(ArtifactError, match=r"a cannot be written: Input/output error\. Check the disk"),
        artifacts.atomic_folder(folder, force=True) as inside,
    ):
        write(inside)
    assert artifacts.load(folder).digest == digest
    assert left_in(folder.parent) == {"a"}


KILLED = """
from vitdeploy.artifact import renames
renames._renameat2 = lambda *_: False
number, moment = 0, int(sys.argv[2])
def killing(verb):
    def call(*arguments, **options):
        global number
        number += 1
        if number == moment:
            os.kill(os.getpid(), 9)
        return verb(*arguments, **options)
    return call
for verb in ("mkdir", "rename", "fsync", "replace", "unlink", "rmdir"):
    setattr(os, verb, killing(getattr(os, verb)))
out = Path(sys.argv[1])
with staging.atomic_folder(out, force=True) as folder:
    import shutil
    shutil.copytree(out.with_name("new"), folder, dirs_exist_ok=True)
print("done", flush=True)
"""


def test_a_kill_at_any_moment_leaves_the_old_or_the_new_one(tmp_path: Path) -> None:
    """Where names cannot be exchanged, a kill between two renames left the path empty."""
    new = write_other(tmp_path / "new")
    digests = {artifacts.load(write(tmp_path / "old")).digest, artifacts.load(new).digest}
    kills, outcomes, recovered = 0, set(), 0
    out = write(tmp_path / "a")
    for moment in range(1, 100):
        process = run_python(KILLED, out, moment)
        process.communicate(timeout=300)
        kills += process.returncode == -signal.SIGKILL
        recovered += not out.exists()
        outcomes.add(artifacts.load(out).digest)  # it puts the old one back where it is missing
        with artifacts.atomic_folder(out, force=True) as inside:  # a run after that removes what is left
            write(inside)
        assert left_in(tmp_path) == {"a", "new", "old"}, moment
        if process.returncode == 0:
            break
    print(f"kills {kills}, empty paths that were recovered {recovered}")
    assert process.returncode == 0, process.stderr
    assert kills >= 10
    assert recovered >= 1
    assert outcomes == digests


def test_a_folder_that_was_moved_away_is_put_back_by_every_command(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = artifacts.load(folder).digest
    for old in (".a.old-0123abcd", ".a.old-x_y9"):
        folder.rename(folder.with_name(old))
        with pytest.raises(ArtifactError, match=r"exists\. Use --force"):
            artifacts.refuse_existing(folder, force=False)  # export
        folder.rename(folder.with_name(old))
        monkeypatch.chdir(folder.parent)
        assert artifacts.load(Path("a")).digest == digest  # inspect, gate, bench, …
    nested = folder.with_name(".a.old-abc")  # where an earlier version has put it
    nested.mkdir()
    folder.rename(nested / "a")
    assert artifacts.load(folder).digest == digest
    assert left_in(folder.parent) == {"a"}


def test_a_folder_that_cannot_be_put_back_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EROFS, "Read-only file system")

    folder.rename(folder.with_name(".a.old-1"))
    monkeypatch.setattr(staging, "rename_new", refuse)
    with pytest.raises(ArtifactError, match=r"\.a\.old-1, which cannot be renamed: Read-only file system"):
        artifacts.load(folder)


# ------------------------------------------------------------------------------------------- leftovers


def test_leftovers_of_dead_processes_are_removed_and_those_of_live_ones_are_not(tmp_path: Path) -> None:
    with writer(tmp_path / "a") as killed:
        killed.kill()
        killed.wait()
        (left,) = left_in(tmp_path)
        assert left.startswith(".a.partial-")
    with writer(tmp_path / "b"):
        with artifacts.atomic_folder(tmp_path / "a") as inside:
            write(inside)
        assert sorted(left_in(tmp_path))[0].startswith(".b.partial-")
        assert len(left_in(tmp_path)) == 2


def test_names_of_others_are_not_taken_for_leftovers(folder: Path) -> None:
    others = {".a.partial-notes.txt", ".a.partial-", ".ab.partial-12", ".a.old-of-mine", "a.partial-12", ".a"}
    for name in others:
        folder.with_name(name).mkdir()
    with artifacts.atomic_folder(folder, force=True) as inside:
        write(inside)
    assert left_in(folder.parent) == {"a", *others}


def test_a_link_named_like_a_leftover_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    (tmp_path / ".a.partial-1").symlink_to("photos")
    with artifacts.atomic_folder(tmp_path / "a") as inside:
        write(inside)
    assert left_in(tmp_path / "photos") == {"cat.jpg"}


def test_the_cache_forgets_what_killed_processes_have_left(tmp_path: Path) -> None:
    cache, graph = GraphCache(tmp_path / "cache"), tmp_path / "g.onnx"
    graph.write_bytes(b"graph")
    with writer(tmp_path / "cache" / "dead") as killed:
        killed.kill()
        killed.wait()
    record = manifest().export
    with writer(tmp_path / "cache" / "live"):
        cache.keep("key", graph, record)
        assert {name.partition(".partial")[0] for name in left_in(cache.folder)} == {"key", ".live"}
    assert cache.fetch("key", tmp_path) is not None


def test_temporary_files_of_dead_processes_are_removed(folder: Path) -> None:
    old, young = folder / ".audit.json.partial-4711", folder / ".audit.json.partial-4712"
    for path in (old, young):
        path.write_text("half")
    os.utime(old, (time.time() - 3600,) * 2)
    with locks.locked(young):
        artifacts.load(folder).write_evidence(audit())
    assert not old.exists()
    assert young.exists(), "another process may be about to lock it"


# ------------------------------------------------------------------------------------------- modes and the disk


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_the_umask_is_respected(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        with artifacts.atomic_folder(tmp_path / "deep" / "a") as inside:
            write(inside)
            artifacts.load(inside).write_evidence(audit())
        with artifacts.atomic_file(tmp_path / "gate.md") as file:
            file.write_text("passed")
    finally:
        os.umask(before)
    for path in [tmp_path / "deep", *(tmp_path / "deep").rglob("*"), tmp_path / "gate.md"]:
        assert path.stat().st_mode & 0o777 == (0o777 if path.is_dir() else 0o666) & ~mask, path


def synced(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    names: set[str] = set()
    monkeypatch.setattr(os, "fsync", lambda handle: names.add(str(Path(f"/proc/self/fd/{handle}").readlink())))
    return names


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_the_parent_folder_and_evidence_are_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = synced(monkeypatch)
    with artifacts.atomic_folder(tmp_path / "a") as inside:
        write(inside)
        files = {str(path) for path in (inside, *inside.rglob("*"))}
    assert names == files | {str(tmp_path)}
    names.clear()
    artifacts.load(tmp_path / "a").write_evidence(audit())
    (file,) = names - {str(tmp_path / "a")}
    assert Path(file).name.startswith(".audit.json.partial-")
    assert str(tmp_path / "a") in names


def test_temporary_names_are_unique_and_exclusive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with artifacts.atomic_file(tmp_path / "a") as first, artifacts.atomic_file(tmp_path / "a") as second:
        assert first != second
    monkeypatch.setattr(temporary.secrets, "token_hex", lambda _: "guessed")
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / ".b.partial-guessed").symlink_to(victim)
    with pytest.raises(FileExistsError), artifacts.atomic_file(tmp_path / "b"):
        pytest.fail("it opened what another user has put there")
    assert victim.read_text() == "mine"


def test_an_interrupt_inside_of_an_extension_keeps_the_exit_code() -> None:
    """One time in seven, an export was interrupted where an extension runs Python code."""
    code = (
        "import ctypes, typer\nfrom vitdeploy.cli import command, signals\napp = typer.Typer()\n"
        "@app.command()\ndef main() -> None:\n"
        "    ctypes.pythonapi.PyRun_SimpleString(b'raise KeyboardInterrupt')\n"
        "    signals._interrupted = 1.0\n    raise typer.Exit(130)\n"
        "command.run_app(app)"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False)
    assert ended.returncode == 130, ended.stderr


def test_a_hang_up_ends_an_export_like_ctrl_c(tmp_path: Path) -> None:
    with start_export(tmp_path / "a") as process:
        assert process.stderr is not None
        while not left_in(tmp_path):
            time.sleep(0.05)
        process.send_signal(signal.SIGHUP)
        _, rest = process.communicate(timeout=300)
    assert process.returncode == 130
    assert rest.splitlines()[-1] == "note: interrupted; no incomplete files are left behind"
    assert left_in(tmp_path) == set()


# ------------------------------------------------------------------------------------------- evidence


def test_evidence_gets_into_no_other_artifact(folder: Path) -> None:
    measured = artifacts.load(folder)
    write_other(folder)
    with pytest.raises(ArtifactError, match="was replaced by another artifact while this command ran"):
        measured.write_evidence(audit())
    assert not (folder / "audit.json").exists()


def test_evidence_gets_into_no_artifact_that_comes_at_the_last_moment(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is exchanged after the manifest was compared, right before the file takes its place."""
    measured, check = artifacts.load(folder), artifacts.Artifact._check_in_place
    other = write_other(folder.with_name("b"))

    def check_and_exchange(artifact: artifacts.Artifact) -> None:
        check(artifact)
        if other.exists():
            folder.rename(folder.with_name("c"))
            other.rename(folder)

    monkeypatch.setattr(artifacts.Artifact, "_check_in_place", check_and_exchange)
    with pytest.raises(ArtifactError, match="was replaced by another artifact"):
        measured.write_evidence(audit())
    assert left_in(folder) == {MANIFEST, "graph.onnx", "model.onnx", "reference"}


def _write_rounds(path: str, rounds: int) -> None:
    """Replace an artifact and store evidence about it, again and again."""
    for number in range(rounds):
        with suppress(ArtifactError):  # another process writes it, or has replaced it before the evidence was stored
            with artifacts.atomic_folder(Path(path), force=True) as inside:
                write(inside)
                mine = artifacts.seal(inside, replace(manifest(), labels=(f"{os.getpid()}-{number}",)))
            dataclasses.replace(mine, path=Path(path)).write_evidence(audit())


def test_parallel_runs_do_not_mix_their_evidence(folder: Path) -> None:
    pairs = mixed = 0
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        pending = pool.starmap_async(_write_rounds, [(str(folder), 25)] * 3)
        while not pending.ready():
            handle = os.open(folder, os.O_RDONLY)  # one folder, whatever takes its place
            try:
                manifest_text, evidence = (_read_in(handle, name) for name in (MANIFEST, "audit.json"))
            except FileNotFoundError:
                continue
            finally:
                os.close(handle)
            pairs += 1
            mixed += json.loads(evidence)["manifest"] != hashlib.sha256(manifest_text).hexdigest()
        pending.get(60)
    print(f"pairs {pairs}, mixed {mixed}")
    assert pairs > 0
    assert mixed == 0
    assert artifacts.load(folder).manifest.stage == "artifact"
    assert left_in(folder.parent) == {"a"}


def _read_in(folder: int, name: str) -> bytes:
    with os.fdopen(os.open(name, os.O_RDONLY, dir_fd=folder), "rb") as file:
        return file.read()


def _write_pairs(path: str, name: str) -> None:
    found = artifacts.load(Path(path), verify=False)
    for number in range(20):
        text = f"{name}-{number}"
        found.write_evidence(audit(doubts=(text,)), raw={"raw.npz": text.encode()})


def test_evidence_and_its_raw_data_are_of_one_process(folder: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        pool.starmap(_write_pairs, [(str(folder), f"process-{number}") for number in range(3)])
    stored, reason = artifacts.load(folder, verify=False).read_evidence(Audit)
    assert stored is not None, reason
    assert (folder / "raw.npz").read_text() == stored.doubts[0]


def test_scratch_folders_of_dead_processes_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(temporary.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(temporary.tempfile, "tempdir", str(tmp_path))
    names = ("vitdeploy-scratch-ranges-ab1_", "mine", "vitdeploy-scratch-x-1")
    dead, other, linked = (tmp_path / name for name in names)
    for folder in (dead, other):
        folder.mkdir()
        (folder / "probe.onnx").touch()
    linked.symlink_to(other)
    with temporary.scratch_folder("ranges") as live:
        for folder in (dead, live, other):
            os.utime(folder, (time.time() - 3600,) * 2)
        with temporary.scratch_folder("debug") as second:
            assert left_in(tmp_path) == {live.name, second.name, "mine", linked.name}
        assert live.stat().st_mode & 0o777 == 0o700, "graphs of a user are not for others"
    assert left_in(tmp_path) == {"mine", linked.name}
    assert (other / "probe.onnx").exists()
