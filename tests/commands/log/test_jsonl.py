"""Lines of a log appear whole or not at all, whoever else writes and whatever the disk does."""

from __future__ import annotations

import json
import os
import resource
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.commands.log.entries import entry
from vitdeploy.artifact import locks
from vitdeploy.commands.log import jsonl
from vitdeploy.commands.log.jsonl import JsonLines
from vitdeploy.errors import UsageError


def read(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_several_writers_at_once_lose_no_line(tmp_path: Path) -> None:
    path, entries = tmp_path / "log.jsonl", [entry(doubts=("x" * 5000,)) for _ in range(60)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda one: JsonLines(path).write(one, ()), entries))
    assert {str(line["id"]) for line in read(path)} == {one.id for one in entries}
    assert len(read(path)) == 60


def test_a_line_that_another_program_left_unfinished_stays_alone(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"half": ', encoding="utf-8")
    JsonLines(path).write(entry(name="whole"), ())
    first, second = path.read_text(encoding="utf-8").splitlines()
    assert (first, json.loads(second)["name"]) == ('{"half": ', "whole")
    assert JsonLines(path).list_digests("no sweep") == {}


def test_a_disk_that_gets_full_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    JsonLines(path).write(entry(), ())
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 100, limits[1]))  # a write of more is cut off there
    try:
        with pytest.raises(UsageError, match="cannot be written"):
            JsonLines(path).write(entry(), ())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    JsonLines(path).write(entry(), ())
    assert len(read(path)) == 2


def test_a_file_that_stays_locked_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text("{}\n", encoding="utf-8")
    monkeypatch.setattr(jsonl, "_PATIENCE_S", 0.05)
    with path.open("rb") as other:
        assert locks.try_lock(other.fileno()) == "ours"
        with pytest.raises(UsageError, match=r"another process has locked it for 0\.05 s"):
            JsonLines(path).write(entry(), ())
    assert path.read_text(encoding="utf-8") == "{}\n"
    JsonLines(path).write(entry(), ())
    assert len(read(path)) == 2


def test_without_locks_a_full_disk_cuts_no_line_of_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, write_part = tmp_path / "log.jsonl", os.write

    def fill(handle: int, line: bytes) -> int:
        with path.open("ab") as other:  # it appends at the same time
            other.write(b'{"id": "other"}\n')
        return write_part(handle, line[:9])

    monkeypatch.setattr(locks, "try_lock", lambda _: "unknown")
    with monkeypatch.context() as full:
        full.setattr(os, "write", fill)
        with pytest.raises(UsageError, match="cannot be written: No space left"):
            JsonLines(path).write(entry(), ())
    JsonLines(path).write(entry(name="later"), ())
    first, part, last = path.read_text(encoding="utf-8").splitlines()
    assert (json.loads(first)["id"], len(part), json.loads(last)["name"]) == ("other", 9, "later")


def test_windows_has_no_pread_and_no_text_mode_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags: list[int] = []
    open_file, binary = os.open, 1 << 40  # a flag that no system has
    monkeypatch.delattr(os, "pread")
    monkeypatch.setattr(os, "O_BINARY", binary, raising=False)

    def record_flags(path: Path, mask: int, *mode: int) -> int:
        flags.append(mask)
        return open_file(path, mask & ~binary, *mode)

    monkeypatch.setattr(os, "open", record_flags)
    for _ in range(2):
        JsonLines(tmp_path / "log.jsonl").write(entry(), ())
    assert all(flag & binary for flag in flags)
    assert len(read(tmp_path / "log.jsonl")) == 2


def test_what_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a folder"):
        JsonLines(tmp_path).check()
    with pytest.raises(UsageError, match="there is no folder"):
        JsonLines(tmp_path / "nowhere" / "log.jsonl").check()
    with pytest.raises(UsageError, match="not a plain file"):
        JsonLines(Path("/dev/null")).check()
    JsonLines(tmp_path / "log.jsonl").check()
    assert not list(tmp_path.iterdir()), "checking writes nothing"


def test_the_trials_of_a_sweep_are_read_back_with_their_newest_result(tmp_path: Path) -> None:
    log = JsonLines(tmp_path / "log.jsonl")
    old, new = (entry(kind="trial", id="s-1", parent="s", metrics={"drop": drop}) for drop in (0.1, 0.2))
    for one in (entry(), old, new, entry(kind="trial", id="o-1", parent="other"), entry(status="running")):
        log.write(one, ())
    assert log.list_digests("s") == {"s-1": new.digest}
    assert old.digest != new.digest
    assert len(read(tmp_path / "log.jsonl")) == 4, "the sweep that is still running has no line"
