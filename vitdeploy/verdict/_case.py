"""The evidence about one artifact, and the decision of a check."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from vitdeploy.evidence import Audit, Bench, Check, Eval, OperatingPoint, Release, Run, Status
from vitdeploy.measure.baseline import Baseline
from vitdeploy.recipe import REFERENCE

EvidenceName = Literal["audit", "bench", "eval"]

REFERENCES = ("pytorch-fp32", "onnxruntime-fp32", "onnxruntime-quantized")
"""The names of the reference: of a PyTorch model, and of an ONNX file in float or quantized, whose graph it is."""
MIB = 1 << 20
ONLY_A_BUNDLE = "only a bundle, with nothing compiled yet: on the device run vitdeploy compile"


@dataclass(frozen=True)
class Signature:
    """The result of a verification: by which key, and why the signatures do not hold, or could not be verified."""

    key: str
    problem: str = ""
    undecided: str = ""


@dataclass(frozen=True)
class Case:
    """An artifact with the evidence about it.

    Attributes:
        audit: fusion and precision of what was compiled.
        bench: latencies of this artifact and of its opponents.
        evaluation: accuracy of the reference and of the artifact.
        missing: "audit", "bench" or "eval" -> the reason why this evidence is missing or outdated.
        stage: "bundle" or "artifact".
        manifest: digest of the manifest that all evidence must be about.
        machine: the machine that the artifact was measured on; `bench.machine` has precedence.
        model_digest: digest of the weights.
        recipe: the keys of the recipe that decide speed and accuracy (`baseline.decisive_keys`); None: do not compare.
        size_bytes: the size of the deployed files.
        audited_on: the hardware that fusion was read on; empty if the engine fuses alike on all.
        random_weights: True if the weights are random, so that accuracy means nothing.
        against: the opponent in the recipe.
        against_artifact: True if the opponent is another artifact.
        against_digest: digest of that artifact's manifest, if it is known.
        operating_point: what both sides find at the threshold of the limits; or the reason why that is not known.
        signature: the result of verifying the signatures; None if that was not asked for.
        faults: invalid checks for evidence that is impossible or contradicts something; see `examine`.
    """

    audit: Audit | None
    bench: Bench | None
    evaluation: Eval | None
    missing: Mapping[EvidenceName, str] = field(default_factory=dict)
    stage: str = "artifact"
    manifest: str = ""
    machine: str = ""
    model_digest: str = ""
    recipe: Mapping[str, str] | None = None
    size_bytes: int | None = None
    audited_on: str = ""
    random_weights: bool = False
    against: str = REFERENCE
    against_artifact: bool = False
    against_digest: str = ""
    operating_point: OperatingPoint | str | None = None
    signature: Signature | None = None
    faults: tuple[Check, ...] = ()

    def explain_unusable(self, name: EvidenceName) -> str | None:
        """Return the reason why a piece of evidence cannot be used; None if it can."""
        evidence = {"audit": self.audit, "bench": self.bench, "eval": self.evaluation}[name]
        if self.stage != "artifact":
            return ONLY_A_BUNDLE
        if name in self.missing:
            return self.missing[name]
        if evidence is None:
            return f"there is no {name}.json"
        if evidence.manifest != self.manifest:
            return f"{name}.json is about another manifest: make it again"
        return None

    @property
    def run(self) -> Run | None:
        """The timing of this artifact; None if it cannot be used."""
        return None if self.explain_unusable("bench") or self.bench is None else self.bench.own


@dataclass(frozen=True)
class Before:
    """An earlier artifact that a case is compared with.

    Attributes:
        baseline: the facts about it; None if there is only the timing below.
        interleaved: the earlier artifact and this one, timed in turns. This is more exact than two speed-ups that were
            measured at different times.
        untimed: the reason why the two could not be timed in turns; empty if they were, or need not be.
        release: the accuracy of both on the same samples, if their weights differ and they were compared.
        unreleased: the reason why a stored comparison of that kind cannot be used; empty if it can.
    """

    baseline: Baseline | None = None
    interleaved: Bench | None = None
    untimed: str = ""
    release: Release | None = None
    unreleased: str = ""


def explain_unproven(audit: Audit | None) -> str | None:
    """Return the reason why this audit does not prove any fusion; None if it does."""
    if audit is not None and audit.attention.unclassified:
        site = audit.attention.unclassified[0]
        return f"{site.site} may be an attention that is not counted: {site.reason}"
    if audit is None or not audit.attention.sites:
        return "the model has no attention site"
    if audit.attention.evidence != "compiled":
        return f"the fusion is {audit.attention.evidence} evidence, not read from what the device runs"
    return None


def describe_fusion(audit: Audit | None) -> tuple[float, str]:
    """Return the share of fused attention sites in percent, and a sentence about them."""
    attention = audit.attention if audit else None
    if attention is None or attention.percent is None:
        return 0.0, "the model has no attention site"
    sentence = f"{attention.fused} of {attention.sites} attention sites run as one kernel"
    if attention.unfused:
        sentence += f"; {attention.unfused[0].site}: {attention.unfused[0].reason}"
    return attention.percent, sentence


def decide(low: float, high: float, limit: float) -> Status:
    """Return pass, fail or invalid, by the side of the maximum `limit` that the interval lies on."""
    return "pass" if high <= limit else "fail" if low > limit else "invalid"


def first_doubt(bench: Bench | None) -> str:
    """Return the first reason to distrust these timings."""
    return f"doubtful: {bench.doubts[0]}" if bench and bench.doubts else "there is no timing of two sides in turns"


def invalid(name: str, limit: float | str, reason: str) -> Check:
    """Return a check that could not be decided."""
    return Check(name=name, observed=None, limit=limit, status="invalid", why=reason)
