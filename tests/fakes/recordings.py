"""Recordings of `vitdeploy doctor --record`, for tests: opened, and laid out as a machine that can be read again."""

from __future__ import annotations

import stat
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vitdeploy.commands.board import facts
from vitdeploy.commands.board.recording import FILE, Recording

RTX = Path(__file__).parents[1] / "fixtures" / "recordings" / "tensorrt-rtx-1.7-cpu.tar.gz"
"""TensorRT-RTX 1.7 on a CPU: built ahead of time for real, and not run."""


@contextmanager
def opened(path: Path) -> Iterator[Path]:
    """The folder of a recording that is a folder or an archive. Other files in the archive are left out."""
    if path.is_dir():
        yield path
        return
    with tempfile.TemporaryDirectory() as work, tarfile.open(path) as archive:
        archive.extractall(work, filter="data")
        yield next(Path(work).rglob(FILE)).parent


def write_system(recording: Recording, root: Path) -> None:
    """Write the recorded files of /sys, /etc and /proc below `root`."""
    for name, text in recording.files.items():
        _write(root / name.lstrip("/"), text)
    for group, values in recording.before.numbers.items():
        folder = root / Path(facts.NUMBERS[group][0]).parent
        for name, text in values.items():
            _write(folder / name, text)


def write_programs(recording: Recording, folder: Path) -> None:
    """Write programs that print what those of the recorded machine printed. Those it did not have are left out."""
    outputs = {facts.COMMANDS[name][0]: output for name, output in recording.commands.items()}
    for name, output in {**outputs, "tegrastats": recording.before.tegrastats}.items():
        if output.startswith("not run: "):
            continue
        _write(folder / f"{name}.txt", output)
        _write(folder / name, f'#!/bin/sh\nexec cat "{folder / name}.txt"\n')
        (folder / name).chmod(stat.S_IRWXU)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
