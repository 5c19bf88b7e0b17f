"""Choose the precision that becomes the artifact: inside the accuracy budget, and not silently slower than float."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vitdeploy import precision as precisions
from vitdeploy.artifact import Trial
from vitdeploy.errors import PassError, QuantizeError, VitdeployError
from vitdeploy.evidence import Bench, Interval
from vitdeploy.frozen import replace
from vitdeploy.pipeline.accuracy_budget import AccuracyBudget
from vitdeploy.pipeline.calibration import JudgingBatches
from vitdeploy.pipeline.candidate import Candidate, CandidateBuilder
from vitdeploy.pipeline.mixed_precision import fit_budget
from vitdeploy.precision import Precision
from vitdeploy.progress import Progress
from vitdeploy.recipe import PrecisionSpec

DEFAULT_MAX_DROP_PP = 0.5
"""The accuracy that `auto` may lose by default, in percentage points."""

_GLANCE_SECONDS = 1.5
"""A short measurement, which only shows whether a precision is slower than float. `bench` measures thoroughly."""
_SECONDS = 3.0
_LONGER_SECONDS = 10.0
"""The second measurement, if the first one is doubtful."""


@dataclass(frozen=True)
class Request:
    """The input of a choice: the recipe's precision, and the means to compare candidates.

    Attributes:
        spec: the precision of the recipe; its kind is a name, or "auto".
        untimed: the reason why nothing can be timed here; empty if it can.
        judging: images to judge accuracy on; None without images.
    """

    spec: PrecisionSpec
    untimed: str = ""
    judging: JudgingBatches | None = None


@dataclass(frozen=True)
class Chosen:
    """The candidate that becomes the artifact, the trials, and notes for the user."""

    candidate: Candidate
    trials: tuple[Trial, ...] = ()
    notes: tuple[str, ...] = ()


def choose(builder: CandidateBuilder, request: Request, precision: Precision | None, progress: Progress) -> Chosen:
    """Make a candidate in `precision`; in the fastest precision if it is None ("auto").

    Raises:
        QuantizeError: the precision is not possible for this model, or not within the budget.
    """
    if precision is None:
        return choose_fastest(builder, request, progress)
    return choose_named(builder, request, precision, progress)


def choose_fastest(builder: CandidateBuilder, request: Request, progress: Progress) -> Chosen:
    """Make every precision that can save time, and choose the fastest of those within the budget.

    They are timed against the target's default on this machine: float32 on CPUs, float16 on TensorRT. The default is
    chosen if no other precision is certainly faster, or if nothing can be timed here.

    Raises:
        PassError: a pass failed, which is a bug of this program.
    """
    base = builder.target.default_precision
    reference = builder.make(_plain(base))
    if request.untimed:
        note = f"auto took {base}, and tried no other precision: {request.untimed}"
        return Chosen(reference, notes=(note,))
    limit = request.spec.max_drop_pp or DEFAULT_MAX_DROP_PP
    budget, notes = _open_budget(builder, reference, limit, request.judging, progress)
    trials = [Trial(precision=reference.name)]
    within = {0: reference}
    for name in (name for name in precisions.names_for(builder.target) if name != base):
        if not precisions.kind_of(name).saves_time:
            continue
        try:
            precisions.check(name, builder.target)
            candidate, tried = _try(builder, precisions.find(replace(request.spec, kind=name)), budget)
        except PassError:
            raise  # a bug of this program, which must not pass for a precision that is not possible
        except VitdeployError as error:  # this precision is not possible here; auto tries the others
            trials.append(Trial(precision=name, why=error.message))
            continue
        trials += tried
        if candidate is not None:
            within[len(trials) - 1] = candidate
    if len(within) == 1:
        trials[0] = replace(trials[0], kept=True)
        notes = [*notes, f"auto kept {base}: no other precision was possible within the budget"]
        return Chosen(reference, tuple(trials), tuple(notes))
    return _take_fastest(builder, within, trials, notes, progress)


def choose_named(builder: CandidateBuilder, request: Request, precision: Precision, progress: Progress) -> Chosen:
    """Make a candidate in `precision`, within its budget if it has one, and compare its speed with float.

    Raises:
        QuantizeError: the precision is not possible for this model, or not within the budget.
    """
    base, limit = builder.target.default_precision, request.spec.max_drop_pp
    comparable = not precision.is_float32 and precision.name != base
    if comparable and request.untimed:
        return _choose_untimed(builder, request, precision, progress)
    if not comparable:
        return Chosen(builder.make(precision))
    reference = builder.make(_plain(base))
    if limit is None:
        candidate = builder.make(precision)
        trials = [Trial(precision=candidate.name, float_linears=candidate.float_linears)]
    else:
        assert request.judging is not None
        budget = AccuracyBudget(builder, reference, limit, request.judging, progress)
        candidate, trials = _require_within(builder, precision, budget)
    with progress.step(f"Compare its speed with {base}"):
        bench = builder.time([reference, candidate], _GLANCE_SECONDS)
    ratio = bench.runs[1].speedup if bench.valid else None
    trials[-1] = replace(trials[-1], speedup=ratio, kept=True)
    return Chosen(candidate, tuple(trials), tuple(_warn_if_slower(candidate, base, ratio) + _doubts(bench)))


def _choose_untimed(builder: CandidateBuilder, request: Request, precision: Precision, progress: Progress) -> Chosen:
    """Make a candidate that cannot be timed here. Its accuracy is judged with ONNX Runtime on this CPU."""
    base, limit = builder.target.default_precision, request.spec.max_drop_pp
    note = f"it is unknown whether {precision.name} is faster than {base}: {request.untimed}"
    if limit is not None:
        assert request.judging is not None
        float32 = builder.make(_plain("fp32"))
        budget = AccuracyBudget(builder, float32, limit, request.judging, progress, emulated=True)
        candidate, trials = _require_within(builder, precision, budget)
        trials = [replace(trial, kept=trial is trials[-1]) for trial in trials]
        emulated = "its accuracy was judged with ONNX Runtime on this CPU"
        return Chosen(candidate, tuple(trials), (note, emulated))
    return Chosen(builder.make(precision), notes=(note,))


def _require_within(
    builder: CandidateBuilder, precision: Precision, budget: AccuracyBudget
) -> tuple[Candidate, list[Trial]]:
    candidate, trials = fit_budget(builder, precision, budget)
    if candidate is None:
        worst = trials[0]
        raise QuantizeError(
            f"{precision.name} loses {worst.lost:.2f} points of {worst.judged_by or 'accuracy'}, the budget is "
            f"{budget.limit:g}, and no linear can be quantized within it",
            fix="Raise --max-drop, give other --calibration images, or use --precision auto.",
        )
    return candidate, trials


def _try(
    builder: CandidateBuilder, precision: Precision, budget: AccuracyBudget | None
) -> tuple[Candidate | None, list[Trial]]:
    """Make a candidate within the budget. Without a budget, this works only with random weights."""
    if budget is not None:
        return fit_budget(builder, precision, budget)
    if builder.prepared.facts.model.weights != "random":
        raise QuantizeError("its accuracy cannot be judged without images", fix="Give --calibration DATA.")
    candidate = builder.make(precision)
    return candidate, [Trial(precision=candidate.name, float_linears=candidate.float_linears)]


def _take_fastest(
    builder: CandidateBuilder, within: dict[int, Candidate], trials: list[Trial], notes: list[str], progress: Progress
) -> Chosen:
    """Time candidates, by the index of their trial, and choose the fastest; float if the measurement is doubtful.

    The first candidate is float.
    """
    reference, base = within[0], within[0].name
    bench = _time(builder, list(within.values()), progress)
    ratios = dict(zip(within, (run.speedup if bench.valid else None for run in bench.runs), strict=True))
    best = max(within, key=lambda index: _certain_speedup(ratios[index]))
    for index, candidate in within.items():
        reason = "" if index == best else _explain_rejection(within[best], reference, bench)
        trials[index] = replace(trials[index], speedup=ratios[index], kept=index == best, why=reason)
        if index != best:
            candidate.discard()
    verdict = _describe_choice(within[best], base, ratios[best]) if bench.valid else f"auto kept {base}"
    return Chosen(within[best], tuple(trials), (*notes, verdict, *_doubts(bench)))


def _open_budget(
    builder: CandidateBuilder, reference: Candidate, limit: float, judging: JudgingBatches | None, progress: Progress
) -> tuple[AccuracyBudget | None, list[str]]:
    """Return the budget, and notes. It is None for random weights, and without images to judge on."""
    if builder.prepared.facts.model.weights == "random":
        return None, ["random weights: auto compared speed only, because accuracy means nothing"]
    if judging is None:
        return None, ["auto tried no precision that loses accuracy: there are no images to judge it on (--calibration)"]
    return AccuracyBudget(builder, reference, limit, judging, progress), []


def _plain(name: str) -> Precision:
    """Return a precision with default options."""
    return precisions.find(PrecisionSpec(kind=name))


def _time(builder: CandidateBuilder, candidates: Sequence[Candidate], progress: Progress) -> Bench:
    """Time candidates for a short while; for longer if the first measurement is doubtful."""
    with progress.step(f"Compare the speed of {', '.join(c.name for c in candidates)}"):
        bench = builder.time(candidates, _SECONDS)
        return bench if bench.valid else builder.time(candidates, _LONGER_SECONDS)


def _certain_speedup(ratio: Interval | None) -> float:
    """Return the speed-up if its whole interval is above 1, else 1."""
    return 1.0 if ratio is None or ratio.ci95[0] <= 1 else ratio.ratio


def _explain_rejection(best: Candidate, reference: Candidate, bench: Bench) -> str:
    """Return the reason why a candidate within the budget was not chosen."""
    if not bench.valid:
        return "its speed is in doubt"
    return f"{best.name} is faster" if best is not reference else f"not faster than {reference.name}"


def _warn_if_slower(candidate: Candidate, base: str, ratio: Interval | None) -> list[str]:
    if ratio is None or ratio.ci95[1] >= 1:
        return []
    return [f"{candidate.name} is slower than {base} here, {_format_times(ratio)}: use --precision {base}"]


def _describe_choice(best: Candidate, base: str, ratio: Interval | None) -> str:
    if ratio is None:  # the reference itself
        return f"auto kept {base}: nothing else is faster here within the budget"
    return f"auto chose {best.name}: {_format_times(ratio)} as fast as {base} on this machine"


def _format_times(ratio: Interval) -> str:
    return f"{ratio.ratio:.2f} [{ratio.ci95[0]:.2f}, {ratio.ci95[1]:.2f}] ×"


def _doubts(bench: Bench) -> list[str]:
    return [] if bench.valid else [f"the comparison of speeds is in doubt: {'; '.join(bench.doubts)}"]
