"""Rebuild a variant whose engine computes other numbers than its graph: locate the fault, then try its safe forms."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from dataclasses import replace as replace_data

from vitdeploy.artifact import Trial, Variant
from vitdeploy.errors import VitdeployError
from vitdeploy.evidence import Located
from vitdeploy.frozen import replace
from vitdeploy.pipeline.fastest import format_times, glance
from vitdeploy.pipeline.variant_builder import BuiltVariant, VariantBuilder
from vitdeploy.progress import Progress

_BLOCK = "fp32-block-"


@dataclass(frozen=True)
class Repair:
    """The repair of a variant that is off.

    Attributes:
        off: the variant, whose trial says where it is off, if that is known.
        results: the safe forms that were tried, the last of which may hold.
        notes: for the user.
        doubts: for the manifest.
    """

    off: BuiltVariant
    results: tuple[BuiltVariant | Trial, ...]
    notes: tuple[str, ...]
    doubts: tuple[str, ...] = ()


def repair_variant(builder: VariantBuilder, off: BuiltVariant, forms: Sequence[Variant], progress: Progress) -> Repair:
    """Try the safe forms of a variant in their order, and stop at the first that holds parity.

    Args:
        builder: builds them.
        off: the variant that is off.
        forms: its safe forms; of those for one block only that of the located block is tried. Those that helped in
            public reports about this compiler come first.
        progress: gets the steps and warnings.
    """
    progress.warn(f"{off.variant.name}: {off.trial.why}")
    located, notes = _locate(builder, off)
    number = located.number if located is not None else None
    if located is not None:
        off = replace_data(off, trial=replace(off.trial, located=located.why))
    results: list[BuiltVariant | Trial] = []
    reported = builder.target.reported_safe_forms(off.bundle.structure, takes_batch_one=builder.takes_batch_one)
    for form in sorted(_select(forms, number), key=lambda form: form.form not in reported):
        result = builder.build(form)
        results.append(result)
        if isinstance(result, BuiltVariant) and not result.is_off:
            cost = _time(builder, off, result)
            text = f"{off.variant.name} is wrong on this device, and {form.name} holds: {form.note}"
            return Repair(off, tuple(results), (*notes, text, cost))
    doubt = f"{off.variant.name} computes other numbers than its graph, and {_explain_failures(results)}"
    return Repair(off, tuple(results), tuple(notes), (doubt,))


def _explain_failures(results: Sequence[BuiltVariant | Trial]) -> str:
    """Say of the safe forms only what was seen: one that was not built did not compute anything."""
    unbuilt = [trial for trial in results if isinstance(trial, Trial)]
    reasons = "; ".join(f"{trial.name}: {trial.why}" for trial in unbuilt)
    if not results:
        return "it has no safe form for this fault"
    if not unbuilt:
        return "so does each of its safe forms"
    if len(unbuilt) == len(results):
        return f"none of its safe forms could be built: {reasons}"
    return f"so does each of its safe forms that could be built; not built: {reasons}"


def _locate(builder: VariantBuilder, off: BuiltVariant) -> tuple[Located | None, list[str]]:
    try:
        located = builder.locate(off)
    except VitdeployError as error:  # a safe form may hold all the same
        return None, [f"the fault could not be located: {error.message}"]
    return located, [] if located is None else [f"located: {located.why}", *located.notes]


def _select(forms: Sequence[Variant], block: int | None) -> Iterator[Variant]:
    """Yield the forms to try. Without a block the forms for one block are left out."""
    return (form for form in forms if not form.form.startswith(_BLOCK) or form.form == f"{_BLOCK}{block}")


def _time(builder: VariantBuilder, off: BuiltVariant, held: BuiltVariant) -> str:
    """Return what a safe form costs against the form that is off."""
    try:
        bench = builder.time([off, held], glance(builder.manifest.recipe.precision.seconds))
    except VitdeployError as error:
        return f"what {held.variant.name} costs could not be timed: {error.message}"
    ratio = bench.runs[1].speedup
    if not bench.valid or ratio is None:
        return f"what {held.variant.name} costs is in doubt: {'; '.join(bench.doubts)}"
    return f"{held.variant.name} is {format_times(ratio)} as fast as the form that is off"
