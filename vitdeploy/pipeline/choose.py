"""Choose the precision that becomes the artifact: inside the accuracy budget, and not silently slower than float."""

from __future__ import annotations

from collections.abc import Iterable

from vitdeploy.artifact import Trial
from vitdeploy.errors import QuantizeError
from vitdeploy.evidence import Interval
from vitdeploy.frozen import replace
from vitdeploy.pipeline.accuracy_budget import AccuracyBudget, make_trial
from vitdeploy.pipeline.attempts import (
    Chosen,
    Request,
    Way,
    attempt,
    list_folded_norms,
    list_int8_attention,
    list_names,
    list_nncf,
    make_plain,
    make_reference,
    open_budget,
)
from vitdeploy.pipeline.candidate import Candidate, CandidateBuilder
from vitdeploy.pipeline.choose_for_device import choose_for_device, make_untimed
from vitdeploy.pipeline.fastest import (
    describe_doubts,
    format_times,
    glance,
    pick_fastest,
    time_until_valid,
)
from vitdeploy.pipeline.mixed_precision import fit_budget
from vitdeploy.precision import Precision
from vitdeploy.progress import Progress


def choose(builder: CandidateBuilder, request: Request, precision: Precision | None, progress: Progress) -> Chosen:
    """Make a candidate in `precision`; in the fastest precision if it is None ("auto").

    Raises:
        QuantizeError: the precision is not possible for this model, or not within the budget.
    """
    if precision is not None:
        return choose_named(builder, request, precision, progress)
    if request.untimed:
        return choose_for_device(builder, request, progress)
    return choose_fastest(builder, request, progress)


def choose_fastest(builder: CandidateBuilder, request: Request, progress: Progress) -> Chosen:
    """Make every precision that can save time, and choose the fastest of those within the budget.

    They are timed against the target's default on this machine: float32 on CPUs, float16 on TensorRT. The default is
    chosen if no other precision is certainly faster. If that is not possible for this model, float32 takes its place.

    Raises:
        PassError: a pass failed, which is a bug of this program.
    """
    reference, trials = make_reference(builder, request)
    budget, notes = open_budget(builder, reference, request, progress)
    first = len(trials)
    trials.append(Trial(precision=reference.name))
    within = {first: reference}

    def try_ways(ways: Iterable[Way]) -> bool:
        """Return whether one of them is within the budget."""
        before = len(within)
        for way in ways:
            candidate, tried = attempt(builder, way, request, budget)
            trials.extend(tried)
            if candidate is not None:
                within[len(trials) - 1] = candidate
        return len(within) > before

    attentions = list_int8_attention(builder, request)
    try_ways(map(Way, list_names(builder, request, reference.name)))
    try_ways(attentions)
    if not try_ways(list_folded_norms(builder, request, attentions)) and attentions:
        try_ways(list_folded_norms(builder, request, ()))
    try_ways(list_nncf(builder, request))
    if len(within) == 1:
        trials[first] = replace(trials[first], kept=True)
        notes = [*notes, f"auto kept {reference.name}: no other precision was possible within the budget"]
        alone = ((reference, trials[first]),) if request.variants else ()
        chosen = Chosen(reference, tuple(trials), tuple(notes), alone)
    else:
        chosen = _take_fastest(builder, request, within, trials, notes, progress)
    return make_untimed(builder, request, chosen, progress) if request.variants else chosen


def choose_named(builder: CandidateBuilder, request: Request, precision: Precision, progress: Progress) -> Chosen:
    """Make a candidate in `precision`, within its budget if it has one, and compare its speed with float.

    Raises:
        QuantizeError: the precision is not possible for this model, or not within the budget.
    """
    limit = request.spec.max_drop_pp
    comparable = not precision.is_float32 and precision.name != builder.target.default_precision
    if comparable and request.untimed:
        return _choose_untimed(builder, request, precision, progress)
    if not comparable:
        return Chosen(builder.make(precision))
    reference, refused = make_reference(builder, request)
    if limit is None:
        candidate = builder.make(precision)
        trials = [make_trial(candidate)]
    else:
        assert request.judging is not None
        budget = AccuracyBudget(builder, reference, limit, request.judging, progress)
        candidate, trials = _require_within(builder, precision, budget)
    with progress.step(f"Compare its speed with {reference.name}"):
        bench = builder.time([reference, candidate], glance(request.spec.seconds))
    ratio = bench.runs[1].speedup if bench.valid else None
    trials[-1] = replace(trials[-1], speedup=ratio, kept=True)
    notes = [*_warn_if_slower(candidate, reference.name, ratio), *describe_doubts(bench, request.spec.seconds)]
    return Chosen(candidate, (*refused, *trials), tuple(notes))


def _choose_untimed(builder: CandidateBuilder, request: Request, precision: Precision, progress: Progress) -> Chosen:
    """Make a candidate that cannot be timed here. Its accuracy is judged with ONNX Runtime on this CPU."""
    base, limit = builder.target.default_precision, request.spec.max_drop_pp
    note = f"it is unknown whether {precision.name} is faster than {base}: {request.untimed}"
    if limit is not None:
        assert request.judging is not None
        float32 = builder.make(make_plain("fp32"))
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
        if worst.lost is None:
            raise QuantizeError(
                f"{precision.name} cannot be held to a budget here: {worst.why}",
                fix="Leave out --max-drop, or export on the machine that runs it.",
            )
        raise QuantizeError(
            f"{precision.name} loses {worst.lost:.2f} points of {worst.judged_by or 'accuracy'}, the budget is "
            f"{budget.limit:g}, and no linear can be quantized within it",
            fix="Raise --max-drop, give other --calibration images, or use --precision auto.",
        )
    return candidate, trials


def _take_fastest(
    builder: CandidateBuilder,
    request: Request,
    within: dict[int, Candidate],
    trials: list[Trial],
    notes: list[str],
    progress: Progress,
) -> Chosen:
    """Time candidates, by the index of their trial, and choose the fastest; float if the measurement is doubtful.

    The first candidate is float. The others become variants if these are wanted.
    """
    keep, seconds = request.variants, request.spec.seconds
    candidates = list(within.values())
    names = [candidate.label for candidate in candidates]
    with progress.step(f"Compare the speed of {', '.join(names)}"):
        bench = time_until_valid(lambda duration: builder.time(candidates, duration), seconds)
    fastest = pick_fastest(names, bench, seconds)
    for place, index in enumerate(within):
        trials[index] = replace(
            trials[index], speedup=fastest.speedups[place], kept=place == fastest.index, why=fastest.reasons[place]
        )
        if place != fastest.index and not keep:
            candidates[place].discard()
    variants = tuple((within[index], trials[index]) for index in within) if keep else ()
    return Chosen(candidates[fastest.index], tuple(trials), (*notes, *fastest.notes), variants)


def _warn_if_slower(candidate: Candidate, base: str, ratio: Interval | None) -> list[str]:
    if ratio is None or ratio.ci95[1] >= 1:
        return []
    return [f"{candidate.name} is slower than {base} here, {format_times(ratio)}: use --precision {base}"]
