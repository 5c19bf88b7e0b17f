"""Make the candidates among which another machine will choose, because this one cannot time them."""

from __future__ import annotations

import dataclasses

from vitdeploy import precision as precisions
from vitdeploy.artifact import Trial
from vitdeploy.errors import UsageError
from vitdeploy.frozen import replace
from vitdeploy.pipeline.attempts import (
    Chosen,
    Request,
    Way,
    attempt,
    list_names,
    make_plain,
    make_reference,
    open_budget,
)
from vitdeploy.pipeline.candidate import CandidateBuilder
from vitdeploy.progress import Progress


def choose_for_device(builder: CandidateBuilder, request: Request, progress: Progress) -> Chosen:
    """Make the target's default, and each other precision that may be faster on the device, as variants.

    If the default is not possible for this model, float32 takes its place. ONNX Runtime on this CPU judges their
    accuracy, so that what loses too much is not sent at all.

    Raises:
        PassError: a pass failed, which is a bug of this program.
    """
    reference, refused = make_reference(builder, request)
    first = Trial(precision=reference.name, kept=True)
    if not request.variants:
        note = f"auto took {reference.name}, and tried no other precision: {request.untimed}"
        return Chosen(reference, (*refused, first) if refused else (), (note,))
    chosen = Chosen(reference, (*refused, first), variants=((reference, first),))
    return _add(builder, request, chosen, list_names(builder, request, reference.name), progress, check=True)


def make_untimed(builder: CandidateBuilder, request: Request, chosen: Chosen, progress: Progress) -> Chosen:
    """Add the precisions for which this machine has no units, and the one that runs the artifact may have them."""
    lacking = [name for name in list_names(builder, request) if _lacks_units(builder, name)]
    return _add(builder, request, chosen, lacking, progress, check=False)


def _add(
    builder: CandidateBuilder, request: Request, chosen: Chosen, names: list[str], progress: Progress, *, check: bool
) -> Chosen:
    """Make these precisions, and add those within the budget to the variants."""
    if not names:
        return chosen
    is_judged = request.judging is not None and builder.prepared.facts.model.weights != "random"
    float32 = builder.make(make_plain("fp32")) if is_judged else chosen.candidate
    budget, notes = open_budget(builder, float32, request, progress, emulated=True)
    trials, variants = list(chosen.trials), list(chosen.variants)
    for name in names:
        candidate, tried = attempt(builder, Way(name), request, budget, check=check)
        trials = [trial for trial in trials if trial.precision != name] + tried
        if candidate is not None:
            variants.append((candidate, tried[-1]))
            trials[-1] = replace(tried[-1], why="left to the machine that runs it")
    if is_judged:
        float32.discard()
        notes = ["accuracy was judged with ONNX Runtime on this CPU"]
    if len(variants) > 1:
        listed = ", ".join(candidate.name for candidate, _ in variants)
        notes.append(f"vitdeploy compile will choose among {listed} on the machine that runs it")
    return dataclasses.replace(
        chosen, trials=tuple(trials), variants=tuple(variants), notes=tuple(dict.fromkeys((*chosen.notes, *notes)))
    )


def _lacks_units(builder: CandidateBuilder, name: str) -> bool:
    try:
        precisions.check(name, builder.target)
    except UsageError:
        return name in precisions.names_for(builder.target)
    return False
