"""Build the default variant of a bundle: a safe form first, where others report that the plain form is miscompiled.

a preferred safe form holds parity      it takes the place of the plain form, which is not built
none is preferred, or none holds        the plain form; if it is off, its other safe forms (`repair`)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vitdeploy.artifact import Trial, Variant
from vitdeploy.artifact.variants import start_trial
from vitdeploy.frozen import replace
from vitdeploy.pipeline.repair import repair_variant
from vitdeploy.pipeline.variant_builder import BuiltVariant, VariantBuilder
from vitdeploy.progress import Progress


@dataclass(frozen=True)
class DefaultForms:
    """The forms of the default variant that were tried.

    Attributes:
        results: the plain form, then the safe forms in the order in which they were built. That of a form which was
            not built, or could not be, is its trial.
        notes: for the user.
        doubts: for the manifest.
    """

    results: tuple[BuiltVariant | Trial, ...]
    notes: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()


def build_default(
    builder: VariantBuilder, plain: Variant, forms: Sequence[Variant], progress: Progress
) -> DefaultForms:
    """Build the default variant, in the first form that holds parity.

    Args:
        builder: builds the forms.
        plain: the default in its plain form.
        forms: its safe forms, in the order to try.
        progress: gets the steps and warnings.
    """
    by_name = {form.form: form for form in forms}
    reports = (
        builder.target.preferred_safe_forms(builder.read(plain).structure, takes_batch_one=builder.takes_batch_one)
        if forms
        else {}
    )
    tried: dict[str, BuiltVariant | Trial] = {}
    notes: list[str] = []
    for name, report in reports.items():
        form = by_name.get(name)
        if form is None:  # a bundle that an older vitdeploy has written
            continue
        result = builder.build(form)
        tried[name] = result
        if isinstance(result, BuiltVariant) and not result.is_off:
            reason = f"not built, because others report: {report}; {form.name} holds in its place"
            left_out = replace(start_trial(plain), why=reason)
            note = f"{plain.name} was {reason}. --variant {plain.name} builds it"
            return DefaultForms((left_out, *tried.values()), (*notes, note))
        trial = result.trial if isinstance(result, BuiltVariant) else result
        notes.append(f"{form.name} was built first, because others report: {report}; it does not hold: {trial.why}")
    first = builder.build(plain)
    if not (isinstance(first, BuiltVariant) and first.is_off and forms):
        return DefaultForms((first, *tried.values()), tuple(notes))
    repair = repair_variant(builder, first, [form for form in forms if form.form not in tried], progress)
    return DefaultForms((repair.off, *tried.values(), *repair.results), (*notes, *repair.notes), repair.doubts)
