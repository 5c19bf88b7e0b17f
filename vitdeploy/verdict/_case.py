"""What every check of the gate stands on: the evidence of one artifact, and how a limit is decided."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from vitdeploy.evidence import Audit, Bench, Check, Eval, Run, Status

Kind = Literal["audit", "bench", "eval"]

MIB = 1 << 20


@dataclass(frozen=True)
class Case:
    """The evidence of one artifact, and why a piece of it may not be used."""

    audit: Audit | None
    bench: Bench | None
    evaluation: Eval | None
    missing: Mapping[str, str]
    stage: str
    manifest: str
    size_bytes: int | None = None
    """Of the files that are deployed."""

    def unusable(self, kind: Kind) -> str | None:
        """Why nothing can be concluded from this piece of evidence; None when something can."""
        found: Audit | Bench | Eval | None = {"audit": self.audit, "bench": self.bench, "eval": self.evaluation}[kind]
        if self.stage != "artifact":
            return "only a bundle: compile it on the device"
        if kind in self.missing:
            return self.missing[kind]
        if found is None:
            return f"there is no {kind}.json"
        if found.manifest != self.manifest:
            return f"{kind}.json is about another manifest: make it again"
        return None

    @property
    def run(self) -> Run | None:
        """The timing of this artifact, where it may be used."""
        return None if self.unusable("bench") or self.bench is None else self.bench.own


def unproven(audit: Audit | None) -> str | None:
    """Why the fusion in this audit proves nothing; None when it does."""
    if audit is None or not audit.attention.sites:
        return "no attention site to judge"
    if audit.attention.evidence != "compiled":
        return f"the fusion is {audit.attention.evidence} evidence, not read from what the device runs"
    return None


def fused_percent(audit: Audit | None) -> tuple[float, str]:
    """How much of the attention is fused, and that in words."""
    attention = audit.attention if audit else None
    if attention is None or attention.percent is None:
        return 0.0, "no attention site"
    told = f"{attention.fused} of {attention.sites} attention sites run as one kernel"
    if attention.unfused:
        told += f"; {attention.unfused[0].site}: {attention.unfused[0].reason}"
    return attention.percent, told


def decide(low: float, high: float, limit: float) -> Status:
    """Where the interval of something that must stay small lies."""
    return "pass" if high <= limit else "fail" if low > limit else "invalid"


def doubt(bench: Bench | None) -> str:
    """The first reason not to trust these timings."""
    return f"doubtful: {bench.doubts[0]}" if bench and bench.doubts else "no two sides were timed against each other"


def invalid(name: str, limit: float | str, why: str) -> Check:
    """A check that could not be decided."""
    return Check(name=name, observed=None, limit=limit, status="invalid", why=why)
