"""The store of engines that a killed compile has built."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from vitdeploy.pipeline.build_store import BuildStore
from vitdeploy.targets import Compiled

NAMES = (("input",), ("output",))


def keep(folder: Path) -> BuildStore:
    """A store with an engine of two files."""
    built, store = folder / "built", BuildStore(folder / "builds")
    built.mkdir()
    (built / "engine.plan").write_bytes(b"engine")
    (built / "engine.weights").write_bytes(b"weights")
    store.keep("key", Compiled(built, "engine.plan", "fake 1", None, *NAMES))
    shutil.rmtree(built)
    return store


def test_an_engine_that_is_fetched_in_part_only_leaves_nothing_to_write_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first file is a link to the stored one: the engine that is built now would be written into both."""
    store, link = keep(tmp_path), os.link

    def link_one(source: Path, target: Path) -> None:
        if source.name != "engine.plan":
            raise OSError(errno.EMLINK, "Too many links")
        link(source, target)

    def fill_disk(source: Path, target: Path) -> None:
        target.write_bytes(source.read_bytes()[:3])
        raise OSError(errno.ENOSPC, "No space left on device")

    work = tmp_path / "work"
    work.mkdir()
    with monkeypatch.context() as full:
        full.setattr(os, "link", link_one)
        full.setattr(shutil, "copyfile", fill_disk)
        assert store.fetch("key", work, NAMES) is None
    assert list(work.iterdir()) == []
    (work / "engine.plan").write_bytes(b"another")
    (work / "engine.plan").unlink()
    fetched = store.fetch("key", work, NAMES)
    assert fetched is not None
    assert (work / fetched.runs).read_bytes() == b"engine"
