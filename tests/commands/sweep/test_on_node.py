"""A part of a trial on a node."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from vitdeploy.commands.sweep import on_node
from vitdeploy.errors import HostUnreachable


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


def test_the_settings_of_a_command_do_not_outlive_its_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray reuses the process for the work of other commands."""
    monkeypatch.setenv("PATH", "/of/the/node")
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    with on_node._environment({"PATH": "/of/the/command", "SSH_AUTH_SOCK": "/agent"}):
        assert (os.environ["PATH"], os.environ["SSH_AUTH_SOCK"]) == ("/of/the/command", "/agent")
    assert os.environ["PATH"] == "/of/the/node"
    assert "SSH_AUTH_SOCK" not in os.environ


def test_a_call_that_fails_gives_the_settings_back_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/of/the/node")
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    with (
        pytest.raises(HostUnreachable),
        on_node._environment({"PATH": "/of/the/command", "SSH_AUTH_SOCK": "/agent"}),
    ):
        raise HostUnreachable("pi does not answer", fix="Start it.")
    assert os.environ["PATH"] == "/of/the/node"
    assert "SSH_AUTH_SOCK" not in os.environ
