"""The evidence of one artifact, and how a check decides a limit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from vitdeploy.evidence import Audit, Bench, Check, Eval, Run, Status
from vitdeploy.measure.baseline import Baseline
from vitdeploy.recipe import REFERENCE

Kind = Literal["audit", "bench", "eval"]

MIB = 1 << 20


@dataclass(frozen=True)
class Case:
    """An artifact with the evidence about it.

    Attributes:
        audit: what the compiled thing does.
        bench: latencies of this artifact and what it was timed against.
        evaluation: accuracy of both sides.
        missing: "audit", "bench" or "eval" -> why that evidence is absent or stale.
        stage: "bundle" or "artifact".
        manifest: digest of the manifest that all evidence must be about.
        machine: where the artifact was measured; the machine that the bench names goes first.
        model_digest: of the weights.
        recipe: the part of the recipe that decides speed and accuracy (`baseline.decisive`); None: not compared.
        size_bytes: of the files that are deployed.
        random_weights: whether the weights are random, so that accuracy means nothing.
        against: what the recipe wants the artifact timed against.
        against_artifact: whether that is another artifact.
    """

    audit: Audit | None
    bench: Bench | None
    evaluation: Eval | None
    missing: Mapping[str, str] = field(default_factory=dict)
    stage: str = "artifact"
    manifest: str = ""
    machine: str = ""
    model_digest: str = ""
    recipe: Mapping[str, str] | None = None
    size_bytes: int | None = None
    random_weights: bool = False
    against: str = REFERENCE
    against_artifact: bool = False

    def unusable(self, kind: Kind) -> str | None:
        """Return why nothing can be concluded from this piece of evidence; None when something can."""
        evidence = {"audit": self.audit, "bench": self.bench, "eval": self.evaluation}[kind]
        if self.stage != "artifact":
            return "only a bundle: compile it on the device"
        if kind in self.missing:
            return self.missing[kind]
        if evidence is None:
            return f"there is no {kind}.json"
        if evidence.manifest != self.manifest:
            return f"{kind}.json is about another manifest: make it again"
        return None

    @property
    def run(self) -> Run | None:
        """The timing of this artifact; None where it may not be used."""
        return None if self.unusable("bench") or self.bench is None else self.bench.own


@dataclass(frozen=True)
class Before:
    """An earlier artifact that a case is held against.

    Attributes:
        baseline: what is known about it; None where only the timing below is.
        interleaved: the earlier artifact and this one timed against each other, which beats two speed-ups that were
            taken at different times.
        untimed: why the two, which should have been timed in turns, were not; empty where they were.
    """

    baseline: Baseline | None = None
    interleaved: Bench | None = None
    untimed: str = ""


def unproven(audit: Audit | None) -> str | None:
    """Return why the fusion in this audit proves nothing; None when it does."""
    if audit is None or not audit.attention.sites:
        return "no attention site to judge"
    if audit.attention.evidence != "compiled":
        return f"the fusion is {audit.attention.evidence} evidence, not read from what the device runs"
    return None


def fused_percent(audit: Audit | None) -> tuple[float, str]:
    """Return the share of fused attention sites in percent, and a sentence about them."""
    attention = audit.attention if audit else None
    if attention is None or attention.percent is None:
        return 0.0, "no attention site"
    sentence = f"{attention.fused} of {attention.sites} attention sites run as one kernel"
    if attention.unfused:
        sentence += f"; {attention.unfused[0].site}: {attention.unfused[0].reason}"
    return attention.percent, sentence


def decide(low: float, high: float, limit: float) -> Status:
    """Return pass, fail or invalid, by the side of `limit`, a maximum, that the interval lies on."""
    return "pass" if high <= limit else "fail" if low > limit else "invalid"


def first_doubt(bench: Bench | None) -> str:
    """Return the first reason to distrust these timings."""
    return f"doubtful: {bench.doubts[0]}" if bench and bench.doubts else "no two sides were timed against each other"


def invalid(name: str, limit: float | str, why: str) -> Check:
    """Return a check that could not be decided."""
    return Check(name=name, observed=None, limit=limit, status="invalid", why=why)
