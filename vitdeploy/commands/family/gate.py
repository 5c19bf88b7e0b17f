"""`vitdeploy gate` of a family: checks of each part, and of the pair, in one verdict."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vitdeploy import environment
from vitdeploy.artifact.family import Family
from vitdeploy.artifact.layout import SAMPLES
from vitdeploy.commands.gate.evidence import Judged, make_case, read_evidence
from vitdeploy.commands.gate.signed import verify_again, verify_signature
from vitdeploy.errors import UsageError
from vitdeploy.evidence import Bench, Check, Eval, Gate
from vitdeploy.frozen import parse, replace
from vitdeploy.graph.parity import explain_difference
from vitdeploy.measure.samples import MAX_FILE_BYTES
from vitdeploy.recipe import ENCODER, GateSpec, TaskSpec
from vitdeploy.render import github, junit, markdown
from vitdeploy.tasks.promptable_masks import PromptableMasks
from vitdeploy.verdict import (
    Case,
    EvidenceName,
    Signature,
    StoredPair,
    check_signed,
    examine_pair,
    invalid,
    judge,
)

_OF_PARTS = ("min_fused_pct", "min_quantized_pct")
_OF_PAIR = ("max_drop_pp", "min_speedup", "max_latency_ms", "latency_percentile", "max_size_mib")
_OF_ALL = ("require_signed",)
_JUDGED = frozenset((*_OF_PARTS, *_OF_PAIR, *_OF_ALL))
_OF_ONE_ARTIFACT = "is judged for one artifact, not for a family"
_NOT_QUANTIZED = "min_quantized_pct"
"""Judged of the encoder alone: the decoder stays in float."""


def gate_family(
    family: Family,
    limits: Mapping[str, float | str | None],
    *,
    junit_file: Path | None = None,
    markdown_file: Path | None = None,
    before_signing: bool = False,
) -> Gate:
    """Judge a family by the evidence beside its parts and beside itself. The checks are named after what they judge.

    Fusion and quantization are judged for each part; accuracy, speed-up, latency and size for both parts in turn.

    Args:
        family: the family.
        limits: by the names of `GateSpec`; they override the recipe's unless they are None.
        junit_file: a file to write JUnit XML to.
        markdown_file: a file to write a table to.
        before_signing: the verdict is to be signed: `require_signed` of the recipe is left out.

    Raises:
        UsageError: a limit is not one of a family, or the file of `require_signed` is no public key.
    """
    own = family.encoder.manifest.recipe.gate.model_dump()
    if before_signing:
        own["require_signed"] = None
    given: dict[str, Any] = {key: value for key, value in limits.items() if value is not None}
    if others := sorted(given.keys() - _JUDGED):
        raise UsageError(f"{others[0]} {_OF_ONE_ARTIFACT}", fix="Leave it out, or gate DIR/encoder and DIR/decoder.")
    spec = parse(GateSpec, {**own, **given}, where="limits")
    signature = verify_signature(family, spec.require_signed)
    verdict = _judge(family, spec, signature, store=signature is None)
    if signature is None:  # the verdict is signed too, so storing this one would break the signatures
        verdict = family.write_evidence(verdict)
    target = family.encoder.manifest.target
    about = (family.record.model, f"{target.kind} {target.precision}", family.path.resolve().name)
    if junit_file is not None:
        junit.write(verdict, junit_file)
    if markdown_file is not None:
        markdown.write(verdict, markdown_file, None, about=about)
    github.publish(verdict, None, sys.stderr, about=about)
    return verdict


def judge_family_again(family: Family, verdict: Gate) -> Gate:
    """Judge the evidence that lies beside a family and its parts now, by the limits of a stored verdict.

    Nothing is written.
    """
    spec = parse(GateSpec, verdict.limits, where="limits in gate.json")
    return _judge(family, spec, verify_again(family, spec.require_signed), store=False)


def _judge(family: Family, spec: GateSpec, signature: Signature | None, *, store: bool) -> Gate:
    """Return the verdict. With `store`, an audit of a part that had to be read again is stored."""
    signed = check_signed(signature, spec.require_signed)
    checks = [] if signed is None else [signed]
    evidence = {name: read_evidence(part, store=store) for name, part in family.parts.items()}
    checks += [_check_parity(family), *_judge_parts(evidence, family, spec)]
    checks += _judge_pair(evidence[ENCODER], family, spec)
    others = {key: limit for key, limit in spec.model_dump(exclude_none=True).items() if key not in _JUDGED}
    checks += [invalid(key, limit, f"it {_OF_ONE_ARTIFACT}: gate its parts") for key, limit in others.items()]
    statuses = {check.status for check in checks}
    return Gate(
        verdict="fail" if "fail" in statuses else "invalid" if "invalid" in statuses else "pass",
        checks=tuple(checks),
        digest=family.evidence_digest(),
        limits=spec.model_dump(exclude_none=True),
        manifest=family.digest,
    )


def _check_parity(family: Family) -> Check:
    """Check that both parts in turn gave the whole model's numbers where they were compiled."""
    record, name, limit = family.record, "pair: parity", "whole model"
    if record.parity is None:
        return invalid(name, limit, "the pair was not run where it was made")
    if record.doubts:
        return invalid(name, limit, f"doubtful: {record.doubts[0]}")
    cosines = [output.cosine for case in record.parity.cases for output in case]
    if not cosines:
        return invalid(name, limit, "family.json has no comparison of the pair with the whole model")
    is_float32 = all(part.manifest.target.precision == "fp32" for part in family.parts.values())
    if (not record.parity.finite or is_float32) and (why := explain_difference(record.parity)) is not None:
        return invalid(name, limit, f"family.json says that the pair differs, which no export accepts: {why}")
    reason = f"cosine {min(cosines):.6f} with the whole model, masks overlap by {record.mask_iou or 0:.4f}"
    return Check(name=name, observed=min(cosines), limit=limit, status="pass", why=reason)


def _judge_parts(evidence: Mapping[str, Judged], family: Family, spec: GateSpec) -> Iterable[Check]:
    for name, part in family.parts.items():
        keys = [key for key in _OF_PARTS if name == ENCODER or key != _NOT_QUANTIZED]
        limits = GateSpec(**{key: getattr(spec, key) for key in keys})
        case = make_case(part, evidence[name], limits)
        if case.faults or limits.model_dump(exclude_none=True):
            yield from (replace(check, name=f"{name}: {check.name}") for check in judge(case, limits).checks)


def _judge_pair(encoder: Judged, family: Family, spec: GateSpec) -> Iterable[Check]:
    limits = GateSpec(**{key: getattr(spec, key) for key in _OF_PAIR})
    examined = examine_pair(_read_pair(encoder, family))
    if not examined.faults and not limits.model_dump(exclude_none=True):
        return
    sizes = [part.manifest.deployed_bytes for part in family.parts.values()]
    known = [size for size in sizes if size is not None]
    stages = {part.manifest.stage for part in family.parts.values()}
    case = Case(
        None,
        examined.bench,
        examined.evaluation,
        missing=examined.missing,
        faults=examined.faults,
        stage="bundle" if "bundle" in stages else "artifact",
        manifest=family.digest,
        machine=environment.host().machine,
        size_bytes=sum(known) if len(known) == len(sizes) else None,
        random_weights=family.encoder.random_weights,
    )
    yield from (replace(check, name=f"pair: {check.name}") for check in judge(case, limits).checks)


def _read_pair(encoder: Judged, family: Family) -> StoredPair:
    """Read the evidence about the pair, as it is stored."""
    missing: dict[EvidenceName, str] = {}
    bench, no_bench = family.read_evidence(Bench)
    if bench is None:
        missing["bench"] = f"{no_bench}: run vitdeploy bench {family.path}"
    evaluation, no_eval = family.read_evidence(Eval)
    if evaluation is None:
        missing["eval"] = f"{no_eval}: run vitdeploy eval {family.path}"
    samples = None
    if evaluation is not None and evaluation.samples:
        samples = family.read_raw(SAMPLES, MAX_FILE_BYTES, evaluation.samples)
        if samples is None:
            missing["eval"] = f"{SAMPLES} is not the one that eval.json names: run vitdeploy eval {family.path}"
    return StoredPair(
        parts=tuple(part.manifest for part in family.parts.values()),
        digest=family.digest,
        task=TaskSpec(kind=PromptableMasks().name),
        identity=encoder.stored.identity,
        audit=encoder.stored.audit,
        bench=bench,
        evaluation=evaluation,
        samples=samples,
        missing=missing,
        unreadable=tuple(reason for reason in (no_bench, no_eval) if "cannot be read" in reason),
    )
