"""Power mode and clocks of a Jetson while a job runs: changed only on request, and restored whatever happens.

The old settings are written to disk first. If the process that changed them is killed, the next one that holds the
device restores them.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vitdeploy.artifact import atomic_file
from vitdeploy.remote.messages import ClockSettings

_TIMEOUT_S = 30


@contextmanager
def apply(settings: ClockSettings, backup: Path) -> Iterator[list[str]]:
    """Apply `settings` for the block, then restore the old ones. Yield notes about settings that failed.

    Notes about the restoring are appended when the block ends.

    Args:
        settings: the power mode and clocks that the job asks for.
        backup: a folder for the old settings.
    """
    notes = restore(backup)
    try:
        if settings.power_mode is not None:
            notes += _set_mode(settings.power_mode, backup)
        if settings.lock_clocks:
            notes += _lock_clocks(backup)
        yield notes
    finally:
        notes += restore(backup)


def restore(backup: Path) -> list[str]:
    """Restore the settings saved in `backup`. Return a note for each failure; those stay saved for the next time."""
    notes = []
    clocks, mode = backup / "clocks", backup / "power_mode"
    if clocks.exists():  # before the power mode: the clocks were saved in the mode that is set now
        failure, _ = _run_as_root("jetson_clocks", "--restore", str(clocks))
        notes += _discard_or_report(clocks, failure, "the clocks could not be restored")
    if mode.exists():
        number = mode.read_text(encoding="utf-8").strip()
        if number.isdecimal():
            notes += _discard_or_report(mode, _switch_mode(int(number)), f"power mode {number} could not be restored")
        else:
            mode.unlink()
            notes.append("the old power mode could not be restored: the file with its number is damaged")
    return notes


def read_power_mode() -> tuple[int | None, str]:
    """Return the number of the power mode and its name, or None and the reason why it is unknown."""
    if shutil.which("nvpmodel") is None:
        return None, "nvpmodel is not installed"
    output = _read_output("nvpmodel", "-q")
    number = re.search(r"^\s*(\d+)\s*$", output, re.MULTILINE)
    name = re.search(r"NV Power Mode:\s*(\S+)", output)
    if number is None:
        return None, f"nvpmodel -q prints {output.strip()[:100]!r}"
    return int(number[1]), name[1] if name else ""


def _set_mode(mode: int, backup: Path) -> list[str]:
    old, reason = read_power_mode()
    if old is None:
        return [f"power mode {mode} was not set: {reason}"]
    if old == mode:
        return []
    _save(backup / "power_mode", str(old))
    failure = _switch_mode(mode)
    if not failure:
        return []
    if read_power_mode()[0] == old:
        (backup / "power_mode").unlink()
    return [f"power mode {mode} was not set: {failure}"]


def _switch_mode(mode: int) -> str:
    """Switch the power mode. Return why that failed, or an empty string.

    Some modes need a restart. nvpmodel then only asks whether it may restart.
    """
    failure, output = _run_as_root("nvpmodel", "-m", str(mode))
    current, name_or_reason = read_power_mode()
    if current == mode:
        return ""
    state = name_or_reason if current is None else f"nvpmodel stays in mode {current} {name_or_reason}"
    if re.search(r"reboot", output, re.IGNORECASE):
        return f"{state}: the mode needs a restart of the device"
    return failure or state


def _lock_clocks(backup: Path) -> list[str]:
    if shutil.which("jetson_clocks") is None:
        return ["the clocks are not locked: jetson_clocks is not installed"]
    clocks = backup / "clocks"
    if clocks.exists():
        return ["the clocks are not locked: an earlier job's clocks must be restored first"]
    backup.mkdir(parents=True, exist_ok=True)
    failure, _ = _run_as_root("jetson_clocks", "--store", str(clocks))
    if failure:
        clocks.unlink(missing_ok=True)  # a file that is cut short could never be restored
    else:
        failure, _ = _run_as_root("jetson_clocks")
    return [f"the clocks are not locked: {failure}"] if failure else []


def _save(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _discard_or_report(saved: Path, failure: str, message: str) -> list[str]:
    """Remove the saved setting after it was restored; after a failure, keep it and return a note."""
    if failure:
        return [f"{message}: {failure}"]
    saved.unlink(missing_ok=True)
    return []


def _run_as_root(*words: str) -> tuple[str, str]:
    """Run a command as root, without a password prompt. Return why it failed (or an empty string) and its output.

    `jetson_clocks` ends with exit code 0 after "Error: Failed to restore ..", so its output decides as well.
    """
    sudo = () if os.geteuid() == 0 else ("sudo", "-n")
    try:
        process = subprocess.run(
            [*sudo, *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired) as problem:
        return str(problem), ""
    output = f"{process.stderr}\n{process.stdout}".strip()
    error = re.search(r"^.*\b(?:error|failed)\b.*$", output, re.IGNORECASE | re.MULTILINE)
    if error or process.returncode:
        return error[0].strip() if error else output.partition("\n")[0] or f"exit code {process.returncode}", output
    return "", output


def _read_output(*words: str) -> str:
    try:
        process = subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return process.stdout or process.stderr
