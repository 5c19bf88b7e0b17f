"""What the two sides say to each other: the JSON that `vitdeploy device …` reads on stdin and prints on stdout."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from vitdeploy.commands.doctor import Diagnosis

INTERFACE = 1
"""Of these messages. Raise it when one changes so that the other side would misread it."""


class Message(BaseModel):
    """A frozen message. Unknown keys are dropped: a newer side may say more."""

    model_config = ConfigDict(frozen=True, extra="ignore")


def _inside(path: str) -> str:
    name = PurePosixPath(path)
    if not name.parts or name.is_absolute() or ".." in name.parts or "\0" in path:
        raise ValueError(f"{path!r} leaves the folder")
    return path


def _digest(text: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        raise ValueError(f"{text!r} is not a sha256")
    return text


InnerPath = Annotated[str, AfterValidator(_inside)]
"""A relative POSIX path that stays below its folder."""
Sha256 = Annotated[str, AfterValidator(_digest)]


class Blob(Message):
    """Contents, whatever their name."""

    sha256: Sha256
    bytes: int = Field(ge=0)


class Wanted(Message):
    """Contents that a job will need: which of them are missing?"""

    blobs: tuple[Blob, ...]


class Gap(Blob):
    """Contents that are not there; the first `have` bytes are, from a transfer that was cut."""

    have: int = 0


class Missing(Message):
    """What has to be sent, and the free bytes where it will lie."""

    gaps: tuple[Gap, ...]
    free_bytes: int


class Header(Blob):
    """One line before the bytes of a file on its way: which, and from where on."""

    offset: int = Field(ge=0)


class Placed(Blob):
    """A file of a job's folder."""

    path: InnerPath


class Care(Message):
    """What is to be set on the device while the job runs, and set back after it. Nothing unless asked for."""

    power_mode: int | None = None
    lock_clocks: bool = False


class Job(Message):
    """What is to be done: `vitdeploy WORDS… --json` in a folder with these files. One client's equal jobs are one."""

    words: tuple[str, ...]
    files: tuple[Placed, ...]
    client: str
    """Who asks, for the queue: user, host and folder."""
    care: Care = Care()


class Started(Message):
    """The job's name; `resumed` when it ran already, or ended while nobody listened."""

    job: str
    resumed: bool


class Ended(Message):
    """How a job ended. `lost`: its process is gone without an exit code, killed or with the device.

    `result` is what it printed with --json, `notes` what could not be done as asked (clocks that stayed unlocked).
    """

    state: Literal["done", "lost"]
    code: int | None = None
    result: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()
    rebooted: bool = False


class Results(Message):
    """The files that a job left in a folder of its."""

    files: tuple[Placed, ...]


class Piece(Message):
    """A file of a job to be sent from `offset` on."""

    path: InnerPath
    offset: int = Field(ge=0)


class Pieces(Message):
    """Files to be sent, one after the other."""

    pieces: tuple[Piece, ...]


class Condition(Message):
    """The state that a measurement depends on; what cannot be read is None, and `unknown` says why."""

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


class Holder(Message):
    """Who holds the device's lock, since when (Unix time)."""

    client: str
    words: tuple[str, ...]
    since: float


class Probe(Message):
    """A device: the vitdeploy that answers there, what it can do, and its state.

    `notes` is what could not be set back of what a killed job had set.
    """

    interface: int
    version: str
    python: str
    cache: str
    doctor: Diagnosis
    condition: Condition
    busy: Holder | None = None
    queued: int = 0
    notes: tuple[str, ...] = ()
