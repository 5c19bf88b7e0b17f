"""Jobs on the device. Each has a folder and a process of its own, which goes on when nobody listens.

jobs/NAME/
  job.json      the command and its files
  alive         locked as long as the worker lives; a process id alone could be reused by another process
  pid, boot     the worker's process id, and the system's boot id when it was started
  work/         the files; vitdeploy runs here
  stdout        the output of its --json
  stderr        its progress and notes
  ended.json    its exit code; if this file and the worker are both missing, the job is lost
  taken         the client has the results, or has cancelled the job

cancelled/ATTEMPT    an attempt to start a job that was cancelled: if it arrives late, it starts nothing
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from vitdeploy.artifact import DISK_FULL, atomic_file, file_digest
from vitdeploy.errors import RemoteError
from vitdeploy.remote.device.store import Store
from vitdeploy.remote.messages import FileParts, Job, JobEnd, JobFile, JobStart, ResultFiles

_CHUNK = 1 << 20
_POLL_S = 0.2
_KEEP_TAKEN_S = 600  # an equal command may still be following the same job
_KEEP_UNTAKEN_S = 7 * 86400
_KEEP_CANCELLED_S = 86400  # no link delays an attempt for so long
_MAX_STOPPING_S = 60


class Jobs:
    """All jobs of a cache folder."""

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        self._folder = cache / "jobs"
        self._cancelled = cache / "cancelled"
        for folder in (self._folder, self._cancelled):
            folder.mkdir(parents=True, exist_ok=True)

    def start(self, job: Job, store: Store) -> JobStart:
        """Start the job, or return the equal one that still runs or whose results nobody has taken.

        Raises:
            RemoteError: a file that it needs is not stored here, the disk is full, or this attempt was cancelled.
        """
        name = job.name
        with self._exclusive():
            self._remove_old()
            if job.attempt and (self._cancelled / job.attempt).exists():
                raise RemoteError("the job was cancelled before it was started", fix="Run the command again.")
            folder = self._folder / name
            _wait_for_cancelled(folder)
            if _is_alive(folder) or _has_untaken_results(folder):
                return JobStart(job=name, resumed=True)
            shutil.rmtree(folder, ignore_errors=True)
            self._prepare(job, store, folder)
            self._launch(name, folder)
        return JobStart(job=name, resumed=False)

    def folder(self, name: str) -> Path:
        """Return the folder of a job.

        Raises:
            RemoteError: there is no such job.
        """
        folder = self._folder / name
        if not (name.isalnum() and folder.is_dir()):
            raise RemoteError(f"there is no job {name!r} on the device", fix="Run the command again.")
        return folder

    def follow(self, name: str, offset: int, out: int, caller: BinaryIO) -> JobEnd:
        """Copy the job's stderr from byte `offset` on, until the job ends or the caller goes away.

        Args:
            name: the job.
            offset: the bytes that the caller has already.
            out: the descriptor to write to.
            caller: a stream whose end means that the caller is gone.
        """
        folder = self.folder(name)
        listening = True
        with (folder / "stderr").open("rb") as stderr:
            stderr.seek(offset)
            while True:
                ended = not _is_alive(folder)  # asked before reading, so that the last lines are not missed
                while chunk := stderr.read(_CHUNK):
                    os.write(out, chunk)
                if ended or not listening:
                    return _read_end(folder)
                ready, _, _ = select.select([caller], [], [], _POLL_S)
                listening = not ready or bool(caller.read(1))

    def results(self, name: str, below: str) -> ResultFiles:
        """List the files in the folder `below` of a job, with their sha256."""
        root = self.folder(name) / "work" / below
        files = sorted(p for p in root.rglob("*") if p.is_file() and not p.is_symlink())
        return ResultFiles(
            files=tuple(
                JobFile(path=p.relative_to(root).as_posix(), bytes=p.stat().st_size, sha256=file_digest(p))
                for p in files
            )
        )

    def send(self, name: str, below: str, parts: FileParts, out: BinaryIO) -> None:
        """Write the bytes of these files to `out`, one after the other."""
        root = self.folder(name) / "work" / below
        for part in parts.pieces:
            with (root / part.path).open("rb") as file:
                file.seek(part.offset)
                shutil.copyfileobj(file, out, _CHUNK)
        out.flush()

    def take(self, name: str) -> None:
        """Record that the client has the results."""
        (self.folder(name) / "taken").touch()

    def cancel(self, name: str, attempt: str = "") -> None:
        """End the job, as Ctrl-C would. Its results are discarded.

        Args:
            name: the job.
            attempt: the attempt to start it, which may still be on its way here; it will start nothing then.

        Raises:
            RemoteError: there is no such job, and no attempt.
        """
        with self._exclusive():  # else a job that is just being started has no pid yet
            if attempt.isalnum():
                (self._cancelled / attempt).touch()
                if not (self._folder / name).is_dir():
                    return
            folder = self.folder(name)
            (folder / "taken").touch()
            if not _is_alive(folder):
                return
            with suppress(ProcessLookupError):
                os.kill(int((folder / "pid").read_text()), signal.SIGTERM)

    def count_alive(self) -> int:
        """Count the jobs that run or wait for the device."""
        return sum(_is_alive(folder) for folder in self._folder.iterdir())

    def clean(self) -> None:
        """Remove every job that does not run, except those whose results are still to be fetched."""
        with self._exclusive():  # so that no job is being started
            for folder in self._folder.iterdir():
                if folder.is_dir() and not _is_alive(folder) and not _has_untaken_results(folder):
                    shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        with (self._cache / "jobs.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _prepare(self, job: Job, store: Store, folder: Path) -> None:
        new = Path(tempfile.mkdtemp(prefix=".new-", dir=self._folder))
        try:
            (new / "work").mkdir()
            for file in job.files:
                store.place(file, new / "work" / file.path)
            (new / "job.json").write_text(job.model_dump_json(), encoding="utf-8")
            (new / "boot").write_text(_read_boot_id())
            new.rename(folder)
        except BaseException as error:
            shutil.rmtree(new, ignore_errors=True)
            if isinstance(error, OSError) and error.errno in DISK_FULL:
                raise RemoteError(f"the disk of {self._cache} is full", fix="Free some space on the device.") from None
            raise

    def _launch(self, name: str, folder: Path) -> None:
        """Start the worker in a session of its own. It inherits the lock on `alive`."""
        words = ["-m", "vitdeploy", "device", "work", name, "--cache", str(self._cache)]
        with (folder / "alive").open("w") as alive, (folder / "stderr").open("ab") as stderr:
            fcntl.flock(alive, fcntl.LOCK_EX)
            worker = subprocess.Popen(
                [sys.executable, *words], stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr, cwd="/",
                start_new_session=True, pass_fds=[alive.fileno()],
            )  # fmt: skip
        (folder / "pid").write_text(str(worker.pid))

    def _remove_old(self) -> None:
        now = time.time()
        for folder in self._folder.iterdir():
            age = now - folder.stat().st_mtime
            if not _is_alive(folder) and age > (_KEEP_TAKEN_S if (folder / "taken").exists() else _KEEP_UNTAKEN_S):
                shutil.rmtree(folder, ignore_errors=True)
        for attempt in self._cancelled.iterdir():
            if now - attempt.stat().st_mtime > _KEEP_CANCELLED_S:
                attempt.unlink(missing_ok=True)


def write_end(folder: Path, code: int, notes: list[str]) -> None:
    """Record a job's exit code, and notes about settings that failed."""
    with atomic_file(folder / "ended.json") as temporary:
        temporary.write_text(json.dumps({"code": code, "notes": notes}), encoding="utf-8")


def _is_alive(folder: Path) -> bool:
    try:
        with (folder / "alive").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _wait_for_cancelled(folder: Path) -> None:
    """Wait until a cancelled job has stopped, so that it can start anew. A build stops within some seconds."""
    deadline = time.monotonic() + _MAX_STOPPING_S
    while _is_alive(folder) and (folder / "taken").exists():
        if time.monotonic() > deadline:
            raise RemoteError("the job that you interrupted has not stopped yet", fix="Try again in a minute.")
        time.sleep(_POLL_S)


def _has_untaken_results(folder: Path) -> bool:
    return (folder / "ended.json").exists() and not (folder / "taken").exists()


def _read_end(folder: Path) -> JobEnd:
    try:
        end = json.loads((folder / "ended.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return JobEnd(state="lost", rebooted=(folder / "boot").read_text() != _read_boot_id())
    return JobEnd(state="done", code=end["code"], notes=tuple(end["notes"]), result=_read_json(folder / "stdout"))


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return result if isinstance(result, dict) else None


def _read_boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
