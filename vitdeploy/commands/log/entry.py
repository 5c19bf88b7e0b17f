"""One entry of a log: a run, a sweep, a trial of it, or a verdict of the gate."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from typing import Literal

from pydantic import BaseModel, ConfigDict

from vitdeploy.evidence import Status

LOG_SCHEMA = 1
_NO_RESULT = {"started", "ended", "files", "digest"}
"""Keys that may change although the result is the same."""

Kind = Literal["run", "sweep", "trial", "gate"]
State = Literal["running", "finished", "failed", "interrupted"]
Value = str | float | int | bool


class Entry(BaseModel):
    """An entry. `jsonl:FILE` writes it as one line with these keys.

    Attributes:
        schema_version: the version of the keys.
        kind: the command, or "trial" for a trial of a sweep.
        id: of this entry. The last line with an id counts.
        parent: the id of a trial's sweep; empty for all others.
        name: the name of the artifact's folder, of the trial or of the sweep.
        started: the time in UTC, as ISO 8601.
        ended: the same of the end.
        status: a verdict of the gate does not change it.
        reason: why it failed, or why nothing was measured.
        fix: what to do about it.
        verdict: of the gate; empty if nothing was judged.
        failing: the checks that are not passed, in words.
        valid: True if it was measured, and nothing about the figures is in doubt.
        doubts: reasons to distrust the figures.
        limits: the limits that the verdict is about, by their keys in a recipe.
        parameters: what was asked for, and with what it was done: keys of the recipe, machine, versions.
        metrics: figures by name. NAME.ci_low and NAME.ci_high are the ends of its 95 % interval.
        files: the evidence.
        digest: sha256 of the result. An entry with the same id and another digest is a newer result.
    """

    model_config = ConfigDict(frozen=True)

    schema_version: int = LOG_SCHEMA
    kind: Kind
    id: str
    parent: str = ""
    name: str
    started: str
    ended: str = ""
    status: State = "finished"
    reason: str = ""
    fix: str = ""
    verdict: Status | Literal[""] = ""
    failing: tuple[str, ...] = ()
    valid: bool = False
    doubts: tuple[str, ...] = ()
    limits: Mapping[str, float | str] = {}
    parameters: Mapping[str, Value] = {}
    metrics: Mapping[str, float] = {}
    files: tuple[str, ...] = ()
    digest: str = ""

    def sealed(self) -> Entry:
        """Return this entry with the digest of its result."""
        result = json.dumps(self.model_dump(mode="json", exclude=_NO_RESULT), sort_keys=True)
        return self.model_copy(update={"digest": hashlib.sha256(result.encode()).hexdigest()})


def new_id() -> str:
    """Return an id that no other entry has."""
    return uuid.uuid4().hex


def now(ago: timedelta = timedelta()) -> str:
    """Return the time in UTC, to the millisecond, or the time that was some time ago."""
    return _format(datetime.now(timezone.utc) - ago)


def from_seconds(seconds: float) -> str:
    """Return the time that is some seconds after the beginning of 1970, in the form of `now`."""
    return _format(datetime.fromtimestamp(seconds, timezone.utc))


def _format(time: datetime) -> str:
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def to_milliseconds(time: str) -> int:
    """Return a time of `now` in milliseconds since 1970."""
    return round(datetime.fromisoformat(time.replace("Z", "+00:00")).timestamp() * 1000)
