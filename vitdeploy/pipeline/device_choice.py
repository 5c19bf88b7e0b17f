"""Choose among the variants of a bundle on the machine that runs it: the same rules as `auto` has on a workstation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import replace as replace_data

from vitdeploy.artifact import Trial, Variant
from vitdeploy.errors import CompileError, VitdeployError
from vitdeploy.frozen import replace
from vitdeploy.pipeline.default_form import build_default
from vitdeploy.pipeline.fastest import pick_fastest, time_until_valid
from vitdeploy.pipeline.variant_builder import BuiltVariant, VariantBuilder
from vitdeploy.progress import Progress


@dataclass(frozen=True)
class DeviceChoice:
    """The variant that becomes the artifact, the trials of all, notes for the user, and doubts."""

    built: BuiltVariant
    trials: tuple[Trial, ...]
    notes: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()


def choose_variant(
    builder: VariantBuilder, variants: Sequence[Variant], forms: Sequence[Variant], progress: Progress
) -> DeviceChoice:
    """Build each variant, and choose the fastest of those that compute the graph's numbers within the budget.

    The first one is the default: it is kept if no other is certainly faster, and if the timing is doubtful. If the
    default itself cannot be chosen, the next one that can takes its place. If none can, the first that was built is
    kept, and a doubt says so.

    Args:
        builder: builds them.
        variants: the plain ones, the default first.
        forms: the safe forms of the default, in the order to try; see `build_default`.
        progress: gets the steps.

    Raises:
        CompileError: none could be built.
    """
    trials: list[Trial] = []
    built: dict[int, BuiltVariant] = {}
    notes: list[str] = []
    doubts: list[str] = []
    for number, variant in enumerate(variants):
        results: list[BuiltVariant | Trial]
        if number == 0:
            default = build_default(builder, variant, forms, progress)
            results = [*default.results]
            notes += default.notes
            doubts += default.doubts
        else:
            results = [builder.build(variant)]
        for result in results:
            if isinstance(result, BuiltVariant) and result.claim is not None:
                built[len(trials)] = result
            trials.append(result.trial if isinstance(result, BuiltVariant) else result)
    choice = _choose(builder, trials, built, progress)
    return replace_data(choice, notes=(*notes, *choice.notes), doubts=(*doubts, *choice.doubts))


def _choose(
    builder: VariantBuilder,
    trials: list[Trial],
    built: dict[int, BuiltVariant],
    progress: Progress,
) -> DeviceChoice:
    """Choose among the variants that were built, by the index of their trial."""
    if not built:
        reasons = "; ".join(f"{trial.name}: {trial.why}" for trial in trials)
        raise CompileError(f"none of the variants could be compiled here: {reasons}", fix=_FIX)
    usable = {index: one for index, one in built.items() if not one.trial.why}
    if not usable:
        index, default = next(iter(built.items()))
        doubt = f"no variant is within the limits; {default.variant.name} stays: {default.trial.why}"
        trials[index] = replace(trials[index], kept=True)
        return DeviceChoice(default, tuple(trials), doubts=(doubt,))
    if len(usable) == 1:
        ((index, only),) = usable.items()
        trials[index] = replace(trials[index], kept=True)
        return DeviceChoice(only, tuple(trials), (f"auto kept {only.variant.name}: no other variant is possible here",))
    return _take_fastest(builder, usable, trials, progress)


_FIX = "Name one with --variant NAME to see its error alone, or export with --precision fp32."


def _take_fastest(
    builder: VariantBuilder, usable: dict[int, BuiltVariant], trials: list[Trial], progress: Progress
) -> DeviceChoice:
    """Time variants, by the index of their trial, and choose the fastest."""
    candidates = list(usable.values())
    names = [one.variant.name for one in candidates]
    seconds = builder.manifest.recipe.precision.seconds
    try:
        with progress.step(f"Compare the speed of {', '.join(names)}"):
            bench = time_until_valid(lambda duration: builder.time(candidates, duration), seconds)
    except VitdeployError as error:  # two engines at once may take more memory than one
        return _keep_first(usable, trials, f"it could not be timed: {error.message}")
    fastest = pick_fastest(names, bench, seconds)
    for place, index in enumerate(usable):
        trials[index] = replace(
            trials[index], speedup=fastest.speedups[place], kept=place == fastest.index, why=fastest.reasons[place]
        )
    return DeviceChoice(candidates[fastest.index], tuple(trials), fastest.notes)


def _keep_first(usable: dict[int, BuiltVariant], trials: list[Trial], reason: str) -> DeviceChoice:
    first = next(iter(usable))
    for index in usable:
        trials[index] = replace(trials[index], kept=index == first, why="" if index == first else reason)
    name = usable[first].variant.name
    return DeviceChoice(usable[first], tuple(trials), (f"auto kept {name}: the others could not be timed",))
