"""Jobs on the device. Each is a folder and a process of its own, which goes on when nobody listens.

jobs/NAME/job.json     what is to be done
alive         locked as long as the worker lives; no process id can be mistaken for another's
pid, boot     the worker, and which start of the system it belongs to
work/         the files: where vitdeploy runs
stdout        its --json
stderr        what it says meanwhile
ended.json    its exit code; without it and without a worker, the job is lost
taken         somebody has the results, or wants none any more
"""

from __future__ import annotations

import fcntl
import hashlib
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
from vitdeploy.remote.messages import Ended, Job, Pieces, Placed, Results, Started

_CHUNK = 1 << 20
_LOOK_S = 0.2
# Taken results stay for a while: an equal command may be following the same job.
_TAKEN_S = 600
_FORGOTTEN_S = 7 * 86400
_STOPS_WITHIN_S = 60


class Jobs:
    """The jobs below a folder."""

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        self._folder = cache / "jobs"
        self._folder.mkdir(parents=True, exist_ok=True)

    def start(self, job: Job, store: Store) -> Started:
        """Start the job, or find it: one that still runs, or that ended and whose results nobody took.

        Raises:
            RemoteError: a file that it needs has not been sent, or the disk is full.
        """
        name = hashlib.sha256(job.model_dump_json().encode()).hexdigest()[:16]
        with self._one_by_one():
            self._tidy()
            folder = self._folder / name
            _wait_for_the_end_of_a_cancelled_one(folder)
            if _alive(folder) or _waits_to_be_taken(folder):
                return Started(job=name, resumed=True)
            shutil.rmtree(folder, ignore_errors=True)
            self._prepare(job, store, folder)
            self._launch(name, folder)
        return Started(job=name, resumed=False)

    def folder(self, name: str) -> Path:
        """The folder of a job.

        Raises:
            RemoteError: there is none of that name.
        """
        folder = self._folder / name
        if not (name.isalnum() and folder.is_dir()):
            raise RemoteError(f"there is no job {name!r}", fix="Run the command again.")
        return folder

    def follow(self, name: str, offset: int, out: int, caller: BinaryIO) -> Ended:
        """Copy what the job says, from byte `offset` on, until it ends.

        Args:
            name: the job.
            offset: what the caller has already.
            out: a descriptor.
            caller: its end means that nobody listens any more.
        """
        folder = self.folder(name)
        listens = True
        with (folder / "stderr").open("rb") as said:
            said.seek(offset)
            while True:
                over = not _alive(folder)  # asked before the last words are read
                while piece := said.read(_CHUNK):
                    os.write(out, piece)
                if over or not listens:
                    return _ended(folder)
                ready, _, _ = select.select([caller], [], [], _LOOK_S)
                listens = not ready or bool(caller.read(1))

    def results(self, name: str, below: str) -> Results:
        """The files that the job left below a folder of its own."""
        root = self.folder(name) / "work" / below
        files = sorted(p for p in root.rglob("*") if p.is_file() and not p.is_symlink())
        return Results(
            files=tuple(
                Placed(path=p.relative_to(root).as_posix(), bytes=p.stat().st_size, sha256=file_digest(p))
                for p in files
            )
        )

    def send(self, name: str, below: str, wanted: Pieces, out: BinaryIO) -> None:
        """The bytes of these files, one after the other."""
        root = self.folder(name) / "work" / below
        for piece in wanted.pieces:
            with (root / piece.path).open("rb") as file:
                file.seek(piece.offset)
                shutil.copyfileobj(file, out, _CHUNK)
        out.flush()

    def take(self, name: str) -> None:
        """Somebody has the results."""
        (self.folder(name) / "taken").touch()

    def cancel(self, name: str) -> None:
        """End the job, as Ctrl-C would; nobody waits for what becomes of it."""
        folder = self.folder(name)
        (folder / "taken").touch()
        if _alive(folder):
            with suppress(ProcessLookupError):
                os.kill(int((folder / "pid").read_text()), signal.SIGTERM)

    def running(self) -> int:
        """Jobs that run or wait for the device."""
        return sum(_alive(folder) for folder in self._folder.iterdir())

    def clean(self) -> None:
        """Remove every job that does not run, but for results that somebody has yet to fetch."""
        with self._one_by_one():  # nothing is being started meanwhile
            for folder in self._folder.iterdir():
                if folder.is_dir() and not _alive(folder) and not _waits_to_be_taken(folder):
                    shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def _one_by_one(self) -> Iterator[None]:
        with (self._cache / "jobs.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _prepare(self, job: Job, store: Store, folder: Path) -> None:
        made = Path(tempfile.mkdtemp(prefix=".new-", dir=self._folder))
        try:
            (made / "work").mkdir()
            for placed in job.files:
                store.place(placed, made / "work" / placed.path)
            (made / "job.json").write_text(job.model_dump_json(), encoding="utf-8")
            (made / "boot").write_text(_boot())
            made.rename(folder)
        except BaseException as error:
            shutil.rmtree(made, ignore_errors=True)
            if isinstance(error, OSError) and error.errno in DISK_FULL:
                raise RemoteError(f"the disk of {self._cache} is full", fix="Free some space there.") from None
            raise

    def _launch(self, name: str, folder: Path) -> None:
        """A process in a session of its own; it inherits the lock that says it lives."""
        words = ["-m", "vitdeploy", "device", "work", name, "--cache", str(self._cache)]
        with (folder / "alive").open("w") as alive, (folder / "stderr").open("ab") as said:
            fcntl.flock(alive, fcntl.LOCK_EX)
            worker = subprocess.Popen(
                [sys.executable, *words], stdin=subprocess.DEVNULL, stdout=said, stderr=said, cwd="/",
                start_new_session=True, pass_fds=[alive.fileno()],
            )  # fmt: skip
        (folder / "pid").write_text(str(worker.pid))

    def _tidy(self) -> None:
        now = time.time()
        for folder in self._folder.iterdir():
            age = now - folder.stat().st_mtime
            if not _alive(folder) and age > (_TAKEN_S if (folder / "taken").exists() else _FORGOTTEN_S):
                shutil.rmtree(folder, ignore_errors=True)


def end(folder: Path, code: int, notes: list[str]) -> None:
    """Write down how a job ended."""
    with atomic_file(folder / "ended.json") as temporary:
        temporary.write_text(json.dumps({"code": code, "notes": notes}), encoding="utf-8")


def _alive(folder: Path) -> bool:
    try:
        with (folder / "alive").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _wait_for_the_end_of_a_cancelled_one(folder: Path) -> None:
    """So that the same command can start anew. A build stops at its next step, which may take some seconds."""
    deadline = time.monotonic() + _STOPS_WITHIN_S
    while _alive(folder) and (folder / "taken").exists():
        if time.monotonic() > deadline:
            raise RemoteError("the job that was interrupted has not stopped yet", fix="Try again in a minute.")
        time.sleep(_LOOK_S)


def _waits_to_be_taken(folder: Path) -> bool:
    return (folder / "ended.json").exists() and not (folder / "taken").exists()


def _ended(folder: Path) -> Ended:
    try:
        told = json.loads((folder / "ended.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Ended(state="lost", rebooted=(folder / "boot").read_text() != _boot())
    return Ended(state="done", code=told["code"], notes=tuple(told["notes"]), result=_printed(folder / "stdout"))


def _printed(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
