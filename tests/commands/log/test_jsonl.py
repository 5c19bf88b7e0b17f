"""Lines of a log appear whole or not at all, whoever else writes and whatever the disk does."""

from __future__ import annotations

import json
import resource
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.commands.log.entries import entry
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
