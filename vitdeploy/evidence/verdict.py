"""The gate's verdict and its checks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from vitdeploy.evidence.fact import Evidence, Fact
from vitdeploy.evidence.release import Release
from vitdeploy.evidence.timing import Bench

Status = Literal["pass", "fail", "invalid"]


class Check(Fact):
    """One limit, the figure that was observed, and the result of their comparison."""

    name: str
    observed: float | str | None
    limit: float | str
    status: Status
    why: str
    details: tuple[str, ...] = ()
    """More about it, one line each, such as the classes and images that got worse."""


class Gate(Evidence):
    """The verdict: "fail" if any check fails, else "invalid" if any cannot be decided, else "pass"."""

    file: ClassVar[str] = "gate.json"

    verdict: Status
    checks: tuple[Check, ...]
    timing: Bench | None = None
    """The timing made for this verdict: a baseline folder (first run) and the artifact, in turns."""
    digest: str = ""
    """sha256 over the manifest and all evidence and raw data that were judged; see `Artifact.evidence_digest`."""
    limits: Mapping[str, float | str] = {}
    """The limits, by their names in a recipe."""
    baseline: Mapping[str, Any] | None = None
    """The facts about the earlier artifact, as `--save-baseline` writes them; None if there was none."""
    release: Release | None = None
    """The accuracy of the earlier artifact and of this one on the same samples; None if they were not compared."""
    untimed: str = ""
    """The reason why a baseline folder was not timed."""
    against: str = ""
    """The folder of the artifact that the bench must have timed this one against; empty: the recipe's opponent."""
    against_digest: str = ""
    """The sha256 of that artifact's manifest."""
