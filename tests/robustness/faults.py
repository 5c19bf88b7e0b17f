"""The library that fails file operations, and the state that it shares with the harness."""

from __future__ import annotations

import mmap
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

OFF, COUNT, FAIL, KILL = range(4)
CHANGES = ("create", "open-to-write", "write", "truncate", "sync", "chmod", "rename", "remove", "remove-folder",
           "make-folder", "link", "times")  # fmt: skip
"""Operations that change the disk. The others read: `open`, `read`, `list`."""

_LAYOUT = struct.Struct("4i3l")  # `struct state` of faults.c
_SOURCE = Path(__file__).with_name("faults.c")


@dataclass(frozen=True)
class Operation:
    """One file operation of a run: its number (from 1), its kind, and its path below the root."""

    number: int
    kind: str
    path: str


def missing_tools() -> str:
    """Return the reason why faults cannot be simulated here; empty if they can."""
    if not sys.platform.startswith("linux"):
        return "faults are simulated on Linux only"
    return "" if shutil.which("cc") else "there is no C compiler to build the library of faults"


def build(folder: Path) -> Path:
    """Compile the library into `folder`."""
    library = folder / "faults.so"
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", str(_SOURCE), "-o", str(library), "-ldl"], check=True
    )
    return library


def environment(library: Path, folder: Path) -> Mapping[str, str]:
    """Return what a process needs in its environment so that the library watches `folder`/root."""
    (folder / "root").mkdir(exist_ok=True)
    (folder / "state").write_bytes(bytes(_LAYOUT.size))
    (folder / "log").touch()
    return {
        "LD_PRELOAD": str(library),
        "CHAOS_ROOT": str(folder / "root"),
        "CHAOS_STATE": str(folder / "state"),
        "CHAOS_LOG": str(folder / "log"),
    }


class Faults:
    """The shared state, of the harness and of the process under test."""

    def __init__(self) -> None:
        """Map the state that the environment names."""
        self.root = Path(os.environ["CHAOS_ROOT"])
        self._log = Path(os.environ["CHAOS_LOG"])
        with Path(os.environ["CHAOS_STATE"]).open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), _LAYOUT.size)

    def arm(self, mode: int, target: int = 0, error: int = 0) -> None:
        """Start to number the operations of this process group; fail or kill at number `target`."""
        if mode == COUNT:
            self._log.write_bytes(b"")
        _LAYOUT.pack_into(self._memory, 0, mode, error, os.getpgrp(), 0, target, 0, 0)

    def disarm(self) -> bool:
        """Stop. Return True if the operation was reached."""
        reached = bool(_LAYOUT.unpack_from(self._memory)[6])
        _LAYOUT.pack_into(self._memory, 0, OFF, 0, 0, 0, 0, 0, 0)
        return reached

    def operations(self) -> list[Operation]:
        """Return the operations that were counted."""
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        parts = (line.split("\t", 2) for line in lines)
        return [Operation(int(number), kind, path) for number, kind, path in parts]
