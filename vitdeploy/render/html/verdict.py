"""The first screen: what was decided, by which limits, and the four figures that matter."""

from __future__ import annotations

import math
from collections.abc import Iterator

from vitdeploy.evidence import Check
from vitdeploy.render import numbers
from vitdeploy.render.html.parts import CheckRow, Head, Missing, Tile, Word
from vitdeploy.render.html.subject import Subject
from vitdeploy.render.numbers import three_digits

_FP32_BYTES = 4
_LIMITS = {"max_drop_pp": "accuracy", "min_speedup": "speed", "min_fused_pct": "fusion"}


def head(subject: Subject) -> Head:
    """Verdict, tiles, checks and warnings of one artifact."""
    manifest, gate = subject.manifest, subject.gate
    stale = _superseded(subject)
    verdict: Word = "not judged" if gate is None else "out of date" if stale else gate.verdict
    missing = None
    if gate is None:
        missing = subject.why("gate")
    elif stale:
        missing = Missing(f"the verdict ({gate.verdict}) was given before {stale}", f"vitdeploy gate {subject.folder}")
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


def _sentence(verdict: Word, checks: tuple[Check, ...]) -> str:
    held = sum(check.status == "pass" for check in checks)
    return {
        "pass": f"All {len(checks)} limits hold." if len(checks) > 1 else "The one limit that was set holds.",
        "fail": f"{sum(check.status == 'fail' for check in checks)} of {len(checks)} limits are broken.",
        "invalid": f"It could not be decided: {held} of {len(checks)} limits are known to hold.",
        "not judged": "No gate has judged this artifact.",
        "out of date": "Something was measured again after the gate had judged.",
    }[verdict]


def _superseded(subject: Subject) -> str | None:
    """What was measured anew after the gate: its checks then hold another figure than the evidence."""
    seen = {check.name: check.observed for check in subject.gate.checks} if subject.gate is not None else {}
    run, evaluation = subject.run, subject.evaluation
    speed = run.speedup.ratio if run is not None and run.speedup is not None else None
    drop = next(iter(evaluation.metrics.values())).drop if evaluation is not None and evaluation.metrics else None
    for name, now, what in (("speed-up", speed, "the last bench"), ("accuracy drop", drop, "the last eval")):
        then = seen.get(name)
        if isinstance(then, float) and now is not None and not math.isclose(then, now, rel_tol=1e-9, abs_tol=1e-12):
            return what
    return None


def _row(check: Check) -> CheckRow:
    figures = numbers.observed(check.observed), numbers.observed(check.limit)
    return CheckRow(check.name, *figures, status=check.status, why=check.why)


def _speed(subject: Subject) -> Tile:
    run, reference = subject.run, subject.reference
    if run is None:
        return Tile("speed-up", "not measured", subject.why("bench").why, absent=True)
    if run.speedup is None or reference is None:
        return Tile("median latency", f"{three_digits(run.p50_ms)} ms", "no reference was timed beside it", absent=True)
    label, (low, high) = "speed-up", run.speedup.ci95
    medians = f"{three_digits(run.p50_ms)} ms against {three_digits(reference.p50_ms)} ms"
    note = f"over {numbers.side(reference.name)}; 95 % interval {low:.2f} to {high:.2f}; {medians}"
    if subject.bench is not None and not subject.bench.valid:
        return Tile(label, f"{run.speedup.ratio:.2f}×", f"in doubt. {note}", absent=True)
    return Tile(label, f"{run.speedup.ratio:.2f}×", note)


def _accuracy(subject: Subject) -> Tile:
    found = subject.evaluation
    if found is None or not found.metrics:
        return Tile("accuracy drop", "not evaluated", subject.why("eval").why, absent=True)
    name, metric = next(iter(found.metrics.items()))
    label, value = f"{numbers.metric(name)} drop", f"{metric.drop:.2f}".replace("-0.00", "0.00").replace("-", "−")
    if subject.manifest.model.weights == "random":
        return Tile(label, "means nothing", "random weights", absent=True)
    if not math.isfinite(metric.drop) or found.nonfinite:
        return Tile(label, value, f"{found.nonfinite:,} samples gave NaN or infinity", absent=True)
    return Tile(label, value, f"{metric.unit}; at most {metric.upper95:.2f} with 95 % confidence, {found.n:,} samples")


def _fused(subject: Subject) -> Tile:
    audit = subject.audit
    if audit is None:
        return Tile("attention fused", "not audited", subject.why("audit").why, absent=True)
    attention = audit.attention
    if not attention.sites:
        return Tile("attention fused", "no site", "no attention was recognised", absent=True)
    proven = attention.evidence == "compiled"
    note = "read from what was compiled" if proven else f"not proven: {attention.evidence} evidence only"
    return Tile("attention fused", f"{attention.fused} of {attention.sites}", note, absent=not proven)


def _size(subject: Subject) -> Tile:
    """The size of what the device loads, against the weights in float32."""
    manifest = subject.manifest
    weights = numbers.size(_FP32_BYTES * manifest.model.parameters)
    deployed = manifest.deployed_bytes
    if deployed is None:
        return Tile("size", "not compiled", f"a bundle; its weights are {weights} in FP32", absent=True)
    return Tile("size", numbers.size(deployed), f"of what runs; the weights are {weights} in FP32")


def _warnings(subject: Subject) -> Iterator[str]:
    if subject.manifest.model.weights == "random":
        yield "Random weights: speed and fusion are real, accuracy means nothing."
    if subject.manifest.stage == "bundle":
        yield f"This is a bundle: nothing is compiled yet. On the device run vitdeploy compile {subject.folder}"
    if subject.bench is not None and not subject.bench.valid:
        yield f"The latencies are in doubt: {'; '.join(subject.bench.doubts) or 'no reason was recorded'}."
    if subject.gate is not None:
        limits = subject.manifest.recipe.gate
        names = {check.name for check in subject.gate.checks}
        judged = {"accuracy": "accuracy drop", "speed": "speed-up", "fusion": "attention fused"}
        open_ = [what for key, what in _LIMITS.items() if getattr(limits, key) is None and judged[what] not in names]
        if open_:
            yield f"No limit was set for {' or '.join(open_)}: the verdict says nothing about it."
