"""Which precision becomes the artifact: inside the accuracy budget, and not slower than float without saying so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vitdeploy.artifact import Trial
from vitdeploy.errors import QuantizeError, VitdeployError
from vitdeploy.evidence import Availability, Bench, Interval
from vitdeploy.pipeline.accuracy_budget import Budget
from vitdeploy.pipeline.candidate import Candidate, Workshop
from vitdeploy.pipeline.mixed_precision import fitted
from vitdeploy.progress import Progress
from vitdeploy.recipe import PrecisionSpec

DEFAULT_MAX_DROP_PP = 0.5
"""What `auto` may lose, in points, unless told otherwise."""

WORTH_TRYING = ("fp32", "fp16", "bf16", "int8", "int8-bf16", "int8-dynamic", "fp8")
"""Of `auto`: weight-only precisions save memory, not time."""

_GLANCE_SECONDS = 1.5
"""To see whether a precision is slower than float, which shows at a glance; `bench` measures."""
_SECONDS = 3.0
_LONGER_SECONDS = 10.0
"""For a second try, when the choice hangs on a doubtful measurement."""


@dataclass(frozen=True)
class Chosen:
    """What becomes the artifact, all that was tried, and what the user should know."""

    candidate: Candidate
    trials: tuple[Trial, ...] = ()
    notes: tuple[str, ...] = ()


def choose(shop: Workshop, progress: Progress, elsewhere: str = "") -> Chosen:
    """Make what the recipe asks for: one precision, or the fastest; inside a budget, where there is one.

    A precision below the target's default is timed against that default on this machine, where it can run here: float32
    on CPUs, float16 on TensorRT. What will run `elsewhere`, another machine, is not timed here.

    Raises:
        QuantizeError: the asked precision cannot be had, or not inside the budget.
    """
    asked, target = shop.recipe.precision, shop.target
    base = target.default_precision
    cannot = Availability(available=False, why=f"it will run on {elsewhere}") if elsewhere else target.cannot_run()
    if asked.kind == "auto" and cannot is not None:
        return _default(shop, base, cannot)
    if asked.kind in ("fp32", base):
        return Chosen(shop.make(asked))
    limit = asked.max_drop_pp
    if cannot is not None:
        return _unmeasured(shop, asked, limit, cannot, progress)
    reference = shop.make_plain(base)
    if asked.kind == "auto":
        return _fastest(shop, reference, limit or DEFAULT_MAX_DROP_PP, progress)
    return _asked(shop, reference, asked, limit, progress)


def _default(shop: Workshop, base: str, cannot: Availability) -> Chosen:
    """Nothing can be timed: the target's default is the best guess, and said to be one."""
    told = f"auto took {base} without trying others, or judging what it loses: {cannot.why}"
    return Chosen(shop.make_plain(base), notes=(told,))


def _unmeasured(
    shop: Workshop, asked: PrecisionSpec, limit: float | None, cannot: Availability, progress: Progress
) -> Chosen:
    """What cannot run here is judged as ONNX Runtime computes it, and not timed."""
    told = (f"whether {asked.kind} is faster than {shop.target.default_precision} is not known: {cannot.why}",)
    if limit is None:
        return Chosen(shop.make(asked), notes=told)
    budget = Budget(shop, shop.make_plain("fp32"), limit, progress, emulated=True)
    found, trials = fitted(shop, asked, budget)
    if found is None:
        raise _unfit(asked, trials)
    kept = [t.model_copy(update={"kept": t is trials[-1]}) for t in trials]
    judged = "its accuracy was judged as ONNX Runtime computes the graph on this CPU"
    return Chosen(found, tuple(kept), (*told, judged))


def _asked(
    shop: Workshop, reference: Candidate, asked: PrecisionSpec, limit: float | None, progress: Progress
) -> Chosen:
    """One precision, inside its budget, and how it compares with float."""
    if limit is None:
        found = shop.make(asked)
        trials = [Trial(precision=found.kind, float_linears=found.float_linears)]
    else:
        inside, trials = fitted(shop, asked, Budget(shop, reference, limit, progress))
        if inside is None:
            raise _unfit(asked, trials)
        found = inside
    with progress.step(f"Compare its speed with {reference.kind}"):
        bench = shop.time([reference, found], _GLANCE_SECONDS)
    ratio = bench.runs[1].speedup if bench.valid else None
    trials[-1] = trials[-1].model_copy(update={"speedup": ratio, "kept": True})
    notes = _slower(found, reference, ratio) + _doubts(bench)
    return Chosen(found, tuple(trials), tuple(notes))


def _fastest(shop: Workshop, reference: Candidate, limit: float, progress: Progress) -> Chosen:
    """The fastest of all precisions that lose no more than the budget; float when none is faster."""
    target, recipe = shop.target, shop.recipe
    trials = [Trial(precision=reference.kind)]
    inside = {0: reference}
    budget, notes = _budget(shop, reference, limit, progress)
    for kind in (k for k in WORTH_TRYING if k in target.precisions and k != reference.kind):
        asked = recipe.precision.model_copy(update={"kind": kind})
        try:
            target.check_precision(kind)
            found, tried = fitted(shop, asked, budget) if budget is not None else _unjudged(shop, asked)
        except VitdeployError as error:  # what cannot be had here is no error of auto's
            trials.append(Trial(precision=kind, why=error.message))
            continue
        trials += tried
        if found is not None:
            inside[len(trials) - 1] = found
    if len(inside) == 1:
        trials[0] = trials[0].model_copy(update={"kept": True})
        return Chosen(reference, tuple(trials), (*notes, f"auto kept {reference.kind}: nothing else was left to time"))
    bench = _timed(shop, list(inside.values()), progress)
    ratios = dict(zip(inside, (run.speedup if bench.valid else None for run in bench.runs), strict=True))
    best = max(inside, key=lambda i: _gain(ratios[i]))  # the first, float, when the measurement decides nothing
    for i, candidate in inside.items():
        why = "" if i == best else _left(inside[best], reference, bench)
        trials[i] = trials[i].model_copy(update={"speedup": ratios[i], "kept": i == best, "why": why})
        if i != best:
            candidate.discard()
    told = _told(inside[best], reference, ratios[best]) if bench.valid else f"auto kept {reference.kind}"
    return Chosen(inside[best], tuple(trials), (*notes, told, *_doubts(bench)))


def _budget(shop: Workshop, reference: Candidate, limit: float, progress: Progress) -> tuple[Budget | None, list[str]]:
    """What judges; None where accuracy means nothing, or there is nothing to judge on."""
    if shop.prepared.model.weights == "random":
        return None, ["random weights: precisions were chosen by speed alone, without a look at accuracy"]
    if shop.recipe.data.calibration is None:
        told = "auto tried no precision that loses accuracy: there are no images to judge it on (--calibration)"
        return None, [told]
    return Budget(shop, reference, limit, progress), []


def _unjudged(shop: Workshop, asked: PrecisionSpec) -> tuple[Candidate | None, list[Trial]]:
    """Without a budget: fine where accuracy means nothing; else nothing is lost unseen."""
    if shop.prepared.model.weights != "random":
        raise QuantizeError("what it loses cannot be judged without images", fix="Give --calibration DATA.")
    found = shop.make(asked)
    return found, [Trial(precision=found.kind, float_linears=found.float_linears)]


def _timed(shop: Workshop, candidates: Sequence[Candidate], progress: Progress) -> Bench:
    """A short measurement; a longer one, when that is in doubt."""
    with progress.step(f"Compare the speed of {', '.join(c.kind for c in candidates)}"):
        bench = shop.time(candidates, _SECONDS)
        return bench if bench.valid else shop.time(candidates, _LONGER_SECONDS)


def _gain(ratio: Interval | None) -> float:
    """A speed-up that the interval leaves no doubt about, else 1: what is not faster for sure is not taken."""
    return 1.0 if ratio is None or ratio.ci95[0] <= 1 else ratio.ratio


def _left(best: Candidate, reference: Candidate, bench: Bench) -> str:
    """Why what is within the budget was not kept."""
    if not bench.valid:
        return "its speed is in doubt"
    return f"{best.kind} is faster" if best is not reference else f"not faster than {reference.kind}"


def _slower(found: Candidate, reference: Candidate, ratio: Interval | None) -> list[str]:
    if ratio is None or ratio.ci95[1] >= 1:
        return []
    return [f"{found.kind} is slower than {reference.kind} here, {_times(ratio)}: use --precision {reference.kind}"]


def _told(found: Candidate, reference: Candidate, ratio: Interval | None) -> str:
    if ratio is None:  # the reference's own
        return f"auto kept {reference.kind}: nothing else is faster here within the budget"
    return f"auto chose {found.kind}: {_times(ratio)} as fast as {reference.kind} on this machine"


def _times(ratio: Interval) -> str:
    return f"{ratio.ratio:.2f} [{ratio.ci95[0]:.2f}, {ratio.ci95[1]:.2f}] ×"


def _doubts(bench: Bench) -> list[str]:
    return [] if bench.valid else [f"the comparison of speeds is in doubt: {'; '.join(bench.doubts)}"]


def _unfit(asked: PrecisionSpec, trials: Sequence[Trial]) -> QuantizeError:
    worst = trials[0]
    return QuantizeError(
        f"{asked.kind} loses {worst.lost:.2f} points of {worst.judged_by or 'accuracy'}, the budget is "
        f"{asked.max_drop_pp:g}, and no linear can be quantized within it",
        fix="Raise --max-drop, give other --calibration images, or use --precision auto.",
    )
