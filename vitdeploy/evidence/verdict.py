"""The gate's verdict and its checks."""

from __future__ import annotations

from typing import ClassVar, Literal

from vitdeploy.evidence.fact import Evidence, Fact
from vitdeploy.evidence.timing import Bench

Status = Literal["pass", "fail", "invalid"]


class Check(Fact):
    """One limit, the figure that was observed, and the result of their comparison."""

    name: str
    observed: float | str | None
    limit: float | str
    status: Status
    why: str


class Gate(Evidence):
    """The verdict: "fail" if any check fails, else "invalid" if any cannot be decided, else "pass"."""

    file: ClassVar[str] = "gate.json"

    verdict: Status
    checks: tuple[Check, ...]
    timing: Bench | None = None
    """The timing made for this verdict: a baseline folder (first run) and the artifact, in turns."""
