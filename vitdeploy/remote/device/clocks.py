"""Power mode and clocks of a Jetson while a job runs: changed only on request, and restored whatever happens.

The old settings are written to disk first. If the process that changed them is killed, the next one that holds the
device restores them. They belong to the machine, as its lock does, whatever cache a job uses; the first record is what
the owner of the device had, and stays until it is restored. A power mode outlasts a restart and so does its record;
clocks do not.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vitdeploy.artifact import atomic_file
from vitdeploy.machine_lock import shared_folder
from vitdeploy.remote.messages import ClockSettings

_TIMEOUT_S = 30
_MAX_DIGITS = 8
_LASTING_FOLDERS = ("/var/tmp",)  # noqa: S108  all users share the device; unlike /tmp it outlasts a restart
_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # anybody may put anything into these folders


@contextmanager
def apply(settings: ClockSettings) -> Iterator[list[str]]:
    """Apply `settings` for the block, then restore the old ones. Yield notes about settings that failed.

    Hold the device's lock. Notes about the restoring are appended when the block ends.
    """
    notes = restore()
    try:
        if settings.power_mode is not None:
            notes += _set_mode(settings.power_mode)
        if settings.lock_clocks:
            notes += _lock_clocks()
        yield notes
    finally:
        notes += restore()


def restore() -> list[str]:
    """Restore the saved settings. Return a note for each failure; those stay saved for the next time."""
    notes = []
    clocks, mode = _clocks_record(), _mode_record()
    if os.path.lexists(clocks):  # before the power mode: the clocks were saved in the mode that is set now
        failure = _restore_clocks(clocks)
        notes += _discard_or_report(clocks, failure, "the clocks could not be restored")
    if number := _read_mode(mode):
        if number.isdecimal():
            notes += _discard_or_report(mode, _switch_mode(int(number)), f"power mode {number} could not be restored")
        else:
            _discard(mode)
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


def _clocks_record() -> Path:
    return shared_folder() / "vitdeploy.clocks"


def _mode_record() -> Path:
    return Path(_LASTING_FOLDERS[0]) / "vitdeploy.power_mode"


def _restore_clocks(record: Path) -> str:
    """Restore the clocks. Return why that failed, or an empty string.

    `jetson_clocks` writes what the file says where the file says, as root: another user's file is not for it.
    """
    facts = record.lstat()
    if not stat.S_ISREG(facts.st_mode) or facts.st_uid != os.geteuid():
        return (
            f"{record} is of the user with the id {facts.st_uid}, whose next command restores them; "
            "so does a restart of the device"
        )
    return _run_as_root("jetson_clocks", "--restore", str(record))[0]


def _set_mode(mode: int) -> list[str]:
    old, reason = read_power_mode()
    if old is None:
        return [f"power mode {mode} was not set: {reason}"]
    if old == mode:
        return []
    record = _mode_record()
    is_first = not _read_mode(record)  # else an earlier mode is still to be restored, which no job may replace
    if is_first:
        try:
            _save_mode(record, old)
        except OSError as error:
            return [f"power mode {mode} was not set: {record} cannot be written: {error.strerror}"]
    failure = _switch_mode(mode)
    if not failure:
        return []
    if is_first and read_power_mode()[0] == old:
        _discard(record)
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


def _lock_clocks() -> list[str]:
    if shutil.which("jetson_clocks") is None:
        return ["the clocks are not locked: jetson_clocks is not installed"]
    record = _clocks_record()
    if os.path.lexists(record):
        return ["the clocks are not locked: an earlier job's clocks must be restored first"]
    with tempfile.TemporaryDirectory() as private:  # root writes there, where nobody can have put a link
        clocks = Path(private) / "clocks"
        failure, _ = _run_as_root("jetson_clocks", "--store", str(clocks))
        if not failure:
            failure = _save_clocks(clocks, record)
    if not failure:
        failure, _ = _run_as_root("jetson_clocks")
    return [f"the clocks are not locked: {failure}"] if failure else []


def _save_clocks(clocks: Path, record: Path) -> str:
    """Copy the stored clocks to their record. Return why that failed, or an empty string."""
    try:
        with atomic_file(record) as temporary:
            shutil.copyfile(clocks, temporary)
    except OSError as error:
        return f"{record} cannot be written: {error.strerror}"
    return ""


def _read_mode(record: Path) -> str:
    """Return the mode to restore, or an empty string."""
    try:
        with os.fdopen(os.open(record, os.O_RDONLY | _FLAGS), encoding="utf-8", errors="replace") as file:
            return file.read(_MAX_DIGITS).strip()
    except OSError:
        return ""


def _save_mode(record: Path, mode: int) -> None:
    try:
        descriptor = os.open(record, os.O_WRONLY | _FLAGS)  # another user's, emptied by `_discard`
    except FileNotFoundError:
        descriptor = os.open(record, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS, 0o666)
        os.fchmod(descriptor, 0o666)  # despite the umask: whoever restores the mode empties the record
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(str(mode))
        file.flush()
        os.fsync(file.fileno())


def _discard(record: Path) -> None:
    """Remove a record. One of another user can only be emptied, which says the same."""
    with suppress(OSError):
        os.close(os.open(record, os.O_WRONLY | os.O_TRUNC | _FLAGS))
    with suppress(OSError):
        record.unlink()


def _discard_or_report(saved: Path, failure: str, message: str) -> list[str]:
    """Remove the saved setting after it was restored; after a failure, keep it and return a note."""
    if failure:
        return [f"{message}: {failure}"]
    _discard(saved)
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
