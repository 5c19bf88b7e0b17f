"""The first screen: the verdict, the limits it rests on, and the four main figures."""

from __future__ import annotations

import math
from collections.abc import Iterator

from vitdeploy.evidence import Check
from vitdeploy.render import numbers
from vitdeploy.render.html.parts import CheckRow, Head, Missing, Tile, Word
from vitdeploy.render.html.subject import Subject
from vitdeploy.render.numbers import three_digits

_FP32_BYTES = 4
_CHECKS = {
    "accuracy": ("accuracy drop", "regression"),
    "speed": ("speed-up", "latency", "end to end"),
    "fusion": ("attention fused",),
}
"""The subject of a limit -> the beginnings of the names of its checks."""
_LIMITS = {"max_drop_pp": "accuracy", "min_speedup": "speed", "min_fused_pct": "fusion"}


def head(subject: Subject) -> Head:
    """Make the first screen of one artifact: verdict, tiles, checks and warnings."""
    manifest, gate = subject.manifest, subject.judged or subject.gate
    stale = explain_stale_verdict(subject)
    verdict: Word = "not judged" if gate is None else "out of date" if stale is not None else gate.verdict
    missing = subject.find_gap("gate") if gate is None else stale
    device, batch = manifest.target.device, manifest.recipe.target.batch
    return Head(
        name=subject.name,
        model=manifest.model.spec,
        about=f"{subject.title} for {device}, batch {batch}, {manifest.model.parameters:,} parameters",
        verdict=verdict,
        sentence=_sentence(verdict, gate.checks if gate is not None else ()),
        tiles=(_speed(subject), _accuracy(subject), _fused(subject), _size(subject)),
        checks=tuple(_row(check) for check in gate.checks) if gate is not None else (),
        warnings=tuple(_warnings(subject)),
        missing=missing,
    )


def explain_stale_verdict(subject: Subject) -> Missing | None:
    """Return which measurement is newer than the stored verdict, and what to run; None if none is."""
    newer = _find_newer_evidence(subject)
    if subject.gate is None or newer is None:
        return None
    return Missing(f"the verdict ({subject.gate.verdict}) was given before {newer}", f"vitdeploy gate {subject.folder}")


def _sentence(verdict: Word, checks: tuple[Check, ...]) -> str:
    passed, failed = (sum(check.status == status for check in checks) for status in ("pass", "fail"))
    return {
        "pass": f"All {len(checks)} limits hold." if len(checks) > 1 else "The only limit holds.",
        "fail": f"Limits that do not hold: {failed} of {len(checks)}.",
        "invalid": f"The evidence is not enough to decide. Limits that are known to hold: {passed} of {len(checks)}.",
        "not judged": "No gate has judged this artifact.",
        "out of date": "There are newer measurements than the ones that the gate judged.",
    }[verdict]


def _find_newer_evidence(subject: Subject) -> str | None:
    """Return the command that changed a figure after the gate; None if none did."""
    observed = {check.name: check.observed for check in subject.gate.checks} if subject.gate is not None else {}
    run, evaluation = subject.run, subject.evaluation
    speed = run.speedup.ratio if run is not None and run.speedup is not None else None
    drop = next(iter(evaluation.metrics.values())).drop if evaluation is not None and evaluation.metrics else None
    for name, now, command in (("speed-up", speed, "the last bench"), ("accuracy drop", drop, "the last eval")):
        then = observed.get(name)
        if isinstance(then, float) and now is not None and not math.isclose(then, now, rel_tol=1e-9, abs_tol=1e-12):
            return command
    return None


def _row(check: Check) -> CheckRow:
    figures = numbers.observed(check.observed), numbers.observed(check.limit)
    return CheckRow(check.name, *figures, status=check.status, why=check.why, details=check.details)


def _speed(subject: Subject) -> Tile:
    run, reference = subject.run, subject.reference
    if run is None:
        return Tile("speed-up", "not measured", subject.find_gap("bench").why, absent=True)
    if run.speedup is None or reference is None:
        return Tile("median latency", f"{three_digits(run.p50_ms)} ms", "no reference was timed beside it", absent=True)
    label, (low, high) = "speed-up", run.speedup.ci95
    medians = f"{three_digits(run.p50_ms)} ms against {three_digits(reference.p50_ms)} ms"
    note = f"over {numbers.side(reference.name)}; 95 % interval {low:.2f} to {high:.2f}; {medians}"
    if subject.bench is not None and not subject.bench.valid:
        return Tile(label, f"{run.speedup.ratio:.2f}×", f"in doubt. {note}", absent=True)
    return Tile(label, f"{run.speedup.ratio:.2f}×", note)


def _accuracy(subject: Subject) -> Tile:
    evaluation = subject.evaluation
    if evaluation is None or not evaluation.metrics:
        return Tile("accuracy drop", "not evaluated", subject.find_gap("eval").why, absent=True)
    name, metric = next(iter(evaluation.metrics.items()))
    label, value = f"{numbers.metric(name)} drop", f"{metric.drop:.2f}".replace("-0.00", "0.00").replace("-", "−")
    if subject.manifest.model.weights == "random":
        return Tile(label, "means nothing", "random weights", absent=True)
    if not math.isfinite(metric.drop) or evaluation.nonfinite:
        return Tile(label, value, f"{evaluation.nonfinite:,} samples gave NaN or infinity", absent=True)
    bound = f"{metric.unit}; at most {metric.upper95:.2f} with 95 % confidence"
    return Tile(label, value, f"{bound}, on {evaluation.n:,} samples")


def _fused(subject: Subject) -> Tile:
    audit = subject.audit
    if audit is None:
        return Tile("attention fused", "not audited", subject.find_gap("audit").why, absent=True)
    attention = audit.attention
    if not attention.sites:
        return Tile("attention fused", "none", "no attention was recognised", absent=True)
    proven = attention.evidence == "compiled"
    note = "read from the compiled model" if proven else f"not proven: {attention.evidence} evidence only"
    return Tile("attention fused", f"{attention.fused} of {attention.sites}", note, absent=not proven)


def _size(subject: Subject) -> Tile:
    """Compare the size of the files that the device loads with the weights in float32."""
    manifest = subject.manifest
    weights = numbers.size(_FP32_BYTES * manifest.model.parameters)
    deployed = manifest.deployed_bytes
    if deployed is None:
        return Tile("size", "not compiled", f"this is a bundle; its weights are {weights} in FP32", absent=True)
    return Tile("size", numbers.size(deployed), f"of the files that run; the weights are {weights} in FP32")


def _warnings(subject: Subject) -> Iterator[str]:
    if subject.manifest.model.weights == "random":
        yield "Random weights: speed and fusion are real, accuracy means nothing."
    if subject.manifest.stage == "bundle":
        yield f"This is a bundle: nothing is compiled yet. Run on the device: vitdeploy compile {subject.folder}"
    if subject.bench is not None and not subject.bench.valid:
        yield f"The latencies are in doubt: {'; '.join(subject.bench.doubts) or 'no reason was recorded'}."
    gate = subject.judged or subject.gate
    if gate is not None:
        limits = subject.manifest.recipe.gate
        names = {check.name for check in gate.checks}
        unset = [
            what
            for key, what in _LIMITS.items()
            if getattr(limits, key) is None and not any(name.startswith(_CHECKS[what]) for name in names)
        ]
        if unset:
            yield f"No limit was set for {' or '.join(unset)}, so the verdict does not cover this."
