"""Power mode and clocks of a Jetson while a job runs: set only where asked and allowed, set back whatever happens.

What was there before is written down first. When the process that set it is killed, the next one that holds the device
sets it back.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vitdeploy.artifact.staging import atomic_file
from vitdeploy.remote.messages import Care

_TIMEOUT_S = 30


@contextmanager
def cared_for(care: Care, memory: Path) -> Iterator[list[str]]:
    """Set what is asked for; the notes that are yielded say what could not be.

    Args:
        care: what is asked for.
        memory: a folder for what was there before.
    """
    notes = restore(memory)
    try:
        if care.power_mode is not None:
            notes += _set_mode(care.power_mode, memory)
        if care.lock_clocks:
            notes += _lock_clocks(memory)
        yield notes
    finally:
        notes += restore(memory)


def restore(memory: Path) -> list[str]:
    """Set back what was written down and is not set back yet; what failed is noted, and kept for the next time."""
    notes = []
    stored, mode = memory / "clocks", memory / "power_mode"
    if stored.exists():  # before the power mode, whose clocks they are
        failed, _ = _run("jetson_clocks", "--restore", str(stored))
        notes += _done(failed, stored, "the clocks could not be set back")
    if mode.exists():
        before = mode.read_text(encoding="utf-8").strip()
        if before.isdecimal():
            notes += _done(_switch(int(before)), mode, f"power mode {before} could not be set back")
        else:
            mode.unlink()
            notes.append("which power mode there was before is not known: it was not written down whole")
    return notes


def power_mode() -> tuple[int | None, str]:
    """The number of the power mode and its name, or None and why it is not known."""
    if shutil.which("nvpmodel") is None:
        return None, "nvpmodel is not installed"
    said = _output("nvpmodel", "-q")
    number = re.search(r"^\s*(\d+)\s*$", said, re.MULTILINE)
    name = re.search(r"NV Power Mode:\s*(\S+)", said)
    if number is None:
        return None, f"nvpmodel -q says {said.strip()[:100]!r}"
    return int(number[1]), name[1] if name else ""


def _set_mode(wanted: int, memory: Path) -> list[str]:
    found, why = power_mode()
    if found is None:
        return [f"power mode {wanted} was not set: {why}"]
    if found == wanted:
        return []
    _remember(memory / "power_mode", str(found))
    failed = _switch(wanted)
    if not failed:
        return []
    if power_mode()[0] == found:
        (memory / "power_mode").unlink()
    return [f"power mode {wanted} was not set: {failed}"]


def _switch(wanted: int) -> str:
    """Why the mode is not that one now, or nothing. Some modes need a restart, for which nvpmodel only asks."""
    failed, said = _run("nvpmodel", "-m", str(wanted))
    found, why = power_mode()
    if found == wanted:
        return ""
    stays = why if found is None else f"nvpmodel stays in mode {found} {why}"
    return f"{stays}: it wants a restart" if re.search(r"reboot", said, re.IGNORECASE) else failed or stays


def _lock_clocks(memory: Path) -> list[str]:
    if shutil.which("jetson_clocks") is None:
        return ["clocks are not locked: jetson_clocks is not installed"]
    stored = memory / "clocks"
    if stored.exists():
        return ["clocks are not locked: those of before are not set back yet"]
    memory.mkdir(parents=True, exist_ok=True)
    failed, _ = _run("jetson_clocks", "--store", str(stored))
    if failed:
        stored.unlink(missing_ok=True)  # half of it could never be set back
    else:
        failed, _ = _run("jetson_clocks")
    return [f"clocks are not locked: {failed}"] if failed else []


def _remember(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _done(failed: str, path: Path, what: str) -> list[str]:
    if failed:
        return [f"{what}: {failed}"]
    path.unlink(missing_ok=True)
    return []


def _run(*words: str) -> tuple[str, str]:
    """Run it as root without asking: why it failed, or nothing, and all that it said.

    `jetson_clocks` ends with exit code 0 after "Error: Failed to restore ..", so what it says counts.
    """
    as_root = () if os.geteuid() == 0 else ("sudo", "-n")
    try:
        done = subprocess.run(
            [*as_root, *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired) as problem:
        return str(problem), ""
    said = f"{done.stderr}\n{done.stdout}".strip()
    error = re.search(r"^.*\b(?:error|failed)\b.*$", said, re.IGNORECASE | re.MULTILINE)
    if error or done.returncode:
        return error[0].strip() if error else said.partition("\n")[0] or f"exit code {done.returncode}", said
    return "", said


def _output(*words: str) -> str:
    try:
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return done.stdout or done.stderr
