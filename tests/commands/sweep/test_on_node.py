"""A part of a trial on a node."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from vitdeploy.commands.sweep import on_node


def test_folders_of_killed_parts_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with on_node._folder("a") as folder:
        killed = folder.with_name(f"{folder.name[:-8]}00000000")
    (killed / "trials").mkdir(parents=True)
    os.utime(killed, (0, 0))
    with on_node._folder("a") as folder:
        assert not killed.exists()
        os.utime(folder, (0, 0))
        with on_node._folder("a"):  # another part on the same machine
            assert folder.exists()
