"""The messages between the two sides: the JSON that `vitdeploy device …` reads on stdin and prints on stdout."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from vitdeploy.commands.doctor import Diagnosis

INTERFACE = 1
"""The version of these messages. Raise it when one changes so that the other side would misread it."""


class Message(BaseModel):
    """A frozen message. Unknown keys are dropped, because a newer side may send more."""

    model_config = ConfigDict(frozen=True, extra="ignore")


_LONGEST_NAME, _LONGEST_PATH = 255, 2048  # bytes of a name on most file systems; room below the local folder


def _check_path(path: str) -> str:
    name = PurePosixPath(path)
    if not name.parts or name.is_absolute() or ".." in name.parts or "\0" in path:
        raise ValueError(f"{path!r} leaves the folder")
    if len(path) > _LONGEST_PATH or any(len(os.fsencode(part)) > _LONGEST_NAME for part in name.parts):
        raise ValueError(f"{path[:40]!r}… is too long for a file system")
    return path


def _check_attempt(text: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{0,32}", text):
        raise ValueError(f"{text!r} is not the id of an attempt")
    return text


def _check_sha256(text: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        raise ValueError(f"{text!r} is not a sha256")
    return text


InnerPath = Annotated[str, AfterValidator(_check_path)]
"""A relative POSIX path that stays below its folder."""
AttemptId = Annotated[str, AfterValidator(_check_attempt)]
"""Names one attempt to start a job, so that only that one is cancelled if it arrives late."""
Sha256 = Annotated[str, AfterValidator(_check_sha256)]


class Blob(Message):
    """The contents of a file, without its name."""

    sha256: Sha256
    bytes: int = Field(ge=0)


class NeededBlobs(Message):
    """All contents that a job will need. The device answers with those that it does not have."""

    blobs: tuple[Blob, ...]


class MissingBlob(Blob):
    """Contents that the device does not have. It has the first `have` bytes, from an interrupted transfer."""

    have: int = Field(default=0, ge=0)


class MissingBlobs(Message):
    """The contents to send, and the free bytes on the device's disk."""

    gaps: tuple[MissingBlob, ...]
    free_bytes: int


class FileHeader(Blob):
    """The line before the bytes of a file in a transfer. The bytes start at `offset`."""

    offset: int = Field(ge=0)


class JobFile(Blob):
    """A file in the folder of a job."""

    path: InnerPath


class ClockSettings(Message):
    """Power mode and clocks to set while the job runs, and to restore after it. The default changes nothing."""

    power_mode: int | None = None
    lock_clocks: bool = False


class Job(Message):
    """A command to run: `vitdeploy WORDS… --json` in a folder with these files. Equal jobs of one client are one."""

    words: tuple[str, ...]
    files: tuple[JobFile, ...]
    client: str
    """User, host and folder of the client, shown to others who wait."""
    care: ClockSettings = ClockSettings()
    versions: Mapping[str, str] = {}
    """The versions on both sides: a result of others is not what the client asks for."""
    attempt: AttemptId = ""
    """Not part of the name."""

    @property
    def name(self) -> str:
        """The digest of what is asked for, on both sides the same."""
        return hashlib.sha256(self.model_dump_json(exclude={"attempt"}).encode()).hexdigest()[:16]


class JobStart(Message):
    """The name of a job. `resumed`: it was running already, or had ended while nobody listened."""

    job: str
    resumed: bool


class JobEnd(Message):
    """The end of a job. `lost`: its process is gone without an exit code, because it or the device was stopped.

    `result` is what it printed with --json. `notes` says which settings failed, such as clocks that stayed unlocked.
    `rebooted` is true when a lost job was lost with the device.
    """

    state: Literal["done", "lost"]
    code: int | None = None
    result: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()
    rebooted: bool = False


class ResultFiles(Message):
    """Files that a job left in one of its folders."""

    files: tuple[JobFile, ...]


class FilePart(Message):
    """A file of a job, to be sent from byte `offset` on."""

    path: InnerPath
    offset: int = Field(ge=0)


class FileParts(Message):
    """Files to send, one after the other."""

    pieces: tuple[FilePart, ...]


class Condition(Message):
    """The device's state that a measurement depends on. A value that cannot be read is None; `unknown` says why."""

    module: str | None = None
    l4t: str | None = None
    jetpack: str | None = None
    tensorrt: str | None = None
    power_mode: str | None = None
    cpu_mhz: float | None = None
    gpu_mhz: float | None = None
    temperature_c: float | None = None
    memory_free_gib: float | None = None
    disk_free_gib: float | None = None
    unknown: Mapping[str, str] = {}


class LockHolder(Message):
    """The job that holds the device's lock: its client, its command, and since when (Unix time)."""

    client: str
    words: tuple[str, ...]
    since: float


class Probe(Message):
    """A device: its vitdeploy, its targets and its state.

    `notes` lists settings of a killed job that could not be restored.
    """

    interface: int
    version: str
    python: str
    cache: str
    doctor: Diagnosis
    condition: Condition
    busy: LockHolder | None = None
    queued: int = 0
    notes: tuple[str, ...] = ()
