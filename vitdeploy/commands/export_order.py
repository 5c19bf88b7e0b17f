"""The order that `vitdeploy export` carries out: a recipe with all defaults, or a refusal before anything runs."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from vitdeploy import precision, sources, targets
from vitdeploy.environment import Host
from vitdeploy.errors import QuantizeError, UsageError
from vitdeploy.frozen import replace
from vitdeploy.graph.dialect import Dialect
from vitdeploy.pipeline.decoder_recipe import fit_decoder
from vitdeploy.precision import Precision
from vitdeploy.recipe import AUTO, DECODER, NNCF, Recipe
from vitdeploy.targets import Target

_AS_IT_IS = "fp32"
"""The precision that changes no numbers of the model."""


@dataclass(frozen=True)
class Elsewhere:
    """Another machine, which will compile and run the bundle."""

    name: str
    host: Host


@dataclass(frozen=True)
class ExportOrder:
    """A recipe with all defaults filled in, and what follows from it.

    Attributes:
        recipe: complete.
        target: with its options.
        precision: None for "auto".
        untimed: the reason why nothing can be timed here; empty if it can.
        variants: keep the candidates, for the machine that runs the artifact to choose among.
        host: that machine, if it is not this one.
    """

    recipe: Recipe
    target: Target
    precision: Precision | None
    untimed: str
    variants: bool
    host: Host | None = None

    @cached_property
    def dialect(self) -> Dialect:
        """The form of graph for the machine that runs it.

        Weights take 7 bits if sums of INT8 products saturate there, or here, where they are calibrated and judged. A
        portable artifact may come to any CPU.
        """
        here, there = self.target.dialect(), self.target.dialect(self.host)
        saturates = self.recipe.target.portable or here.int8_sums_saturate or there.int8_sums_saturate
        return dataclasses.replace(there, int8_sums_saturate=saturates)


def default_folder(recipe: Recipe) -> Path:
    """Return `./MODEL-TARGET-PRECISION`, in characters that every file system takes."""
    name = sources.short_name(recipe.model.spec)
    safe = "".join(c if c.isalnum() or c in "._-" else "-" for c in name).strip("-.")
    kind = _choose_kind(recipe, targets.find(recipe.target))
    part = "" if recipe.model.part is None else f"-{recipe.model.part}"
    return Path(f"{safe or 'model'}{part}-{recipe.target.kind}-{kind}")


def complete(recipe: Recipe, elsewhere: Elsewhere | None) -> ExportOrder:
    """Fill in all defaults, so that the manifest records them, and refuse early what would fail late."""
    target, data = targets.find(recipe.target), recipe.data
    kind = _choose_kind(recipe, target)
    models_data = sources.default_data(recipe.model.spec)
    data = replace(data, calibration=data.calibration or models_data, evaluation=data.evaluation or models_data)
    recipe = replace(recipe, data=data, precision=replace(recipe.precision, kind=kind))
    if recipe.model.part == DECODER:
        recipe = fit_decoder(recipe)
    requested = None if kind == AUTO else precision.find(recipe.precision)
    _check_quantizer(recipe, target)
    if recipe.target.portable:
        _check_portable(recipe, kind)
    if requested is not None:
        precision.check(kind, target, elsewhere.host if elsewhere else None)
    for name in recipe.precision.among:  # the machine that runs it may have units for what this one has not
        precision.check_offered(name, target)
    untimed = _why_untimed(target, elsewhere)
    if recipe.tokens.searches:
        _check_search(recipe, untimed)
    if recipe.precision.max_drop_pp is not None:
        searches = recipe.tokens.searches
        _check_budget(requested, target, has_images=data.calibration is not None, is_for_merging=searches)
    if recipe.tokens.drops and data.calibration is None:
        raise QuantizeError(
            "--drop-tokens needs calibration images", fix="Give --calibration DATA, such as a folder of images."
        )
    if elsewhere is None and not target.built_on_device:
        target.require()
    if requested is not None and requested.needs_images and data.calibration is None:
        dynamic = " Or use --precision int8-dynamic, which needs no images."
        raise QuantizeError(
            f"--precision {kind} needs calibration images",
            fix="Give --calibration DATA, such as a folder of images."
            + (dynamic if "int8-dynamic" in precision.names_for(target) else ""),
        )
    variants = kind == AUTO and recipe.model.part is None and (bool(untimed) or recipe.target.portable)
    if recipe.precision.seconds is not None:
        _check_seconds(recipe, target, requested, "" if variants else untimed)
    return ExportOrder(recipe, target, requested, untimed, variants, elsewhere.host if elsewhere else None)


def _choose_kind(recipe: Recipe, target: Target) -> str:
    """Return the recipe's precision, or the target's default; fp32 for a quantized model, which stays as it is.

    Raises:
        QuantizeError: the model is quantized already, and the recipe asks for another precision.
    """
    spec = recipe.model.spec
    kind = recipe.precision.kind or (AUTO if recipe.target.portable else target.default_precision)
    if kind == _AS_IT_IS or not sources.is_quantized(spec):
        return kind
    if recipe.precision.kind is None:
        return _AS_IT_IS
    raise QuantizeError(
        f"{spec} is quantized already, so it cannot become {kind}",
        fix="Leave out --precision to keep it as it is, or give the float model.",
    )


def _check_quantizer(recipe: Recipe, target: Target) -> None:
    """Refuse NNCF where it is not installed, and where no precision that is asked for could come from it."""
    if recipe.precision.quantizer != NNCF:
        return
    from vitdeploy.quantize import nncf_process

    nncf_process.require()
    tried = recipe.precision.among or precision.names_for(target)
    if recipe.precision.kind == AUTO and not any(precision.kind_of(name).takes_nncf for name in tried):
        raise QuantizeError(
            f"--quantizer nncf has no part in {', '.join(tried)}: NNCF makes none of them",
            fix="Leave out --quantizer, or add int8 to --precision.",
        )


def _check_portable(recipe: Recipe, kind: str) -> None:
    """Refuse --portable where the machine that runs the artifact would have nothing to choose among."""
    if kind != AUTO:
        raise UsageError(
            f"--portable leaves the choice among precisions to another machine, and {kind} is one only",
            fix="Give --precision auto, or several, such as --precision fp32,int8.",
        )
    if recipe.model.part is not None:
        raise UsageError(
            f"--portable is for whole models, and this is the {recipe.model.part} of one", fix="Leave out --portable."
        )


def _check_search(recipe: Recipe, untimed: str) -> None:
    """Refuse --merge-tokens auto where this machine does not decide by its own measurement."""
    fix = "Give a schedule, such as --merge-tokens 3:60,6:40."
    if untimed:
        raise UsageError(f"--merge-tokens auto times schedules, and nothing can be timed here: {untimed}", fix=fix)
    if recipe.target.portable:
        raise UsageError("--portable leaves the choice to another machine, which cannot search for merges", fix=fix)


def _check_budget(requested: Precision | None, target: Target, *, has_images: bool, is_for_merging: bool) -> None:
    """Refuse a --max-drop that cannot be kept or judged."""
    if requested is not None and requested.is_float32 and not is_for_merging:
        raise UsageError("--max-drop has no meaning for float32, which loses nothing", fix="Give a lower --precision.")
    if requested is not None and not requested.per_linear and not is_for_merging:
        able = ", ".join(precision.names_for(target, per_linear=True))
        raise UsageError(
            f"--max-drop does not work with {requested.name}, which cannot leave single linears in float",
            fix=f"Give --precision {able} or auto; or judge it with `vitdeploy eval` and `gate --max-drop`.",
        )
    if not has_images:
        raise QuantizeError(
            "there are no images to judge --max-drop on",
            fix="Give --calibration DATA. If the images have labels, they decide.",
        )


def _check_seconds(recipe: Recipe, target: Target, requested: Precision | None, untimed: str) -> None:
    """Refuse --seconds where no speeds are compared."""
    if untimed:
        raise UsageError(f"--seconds has no meaning where nothing can be timed: {untimed}", fix="Leave out --seconds.")
    default = target.default_precision
    is_alone = requested is not None and (requested.is_float32 or requested.name == default)
    if is_alone and not recipe.tokens.searches:
        raise UsageError(
            f"--seconds is for comparisons of speed, and {recipe.precision.kind} is compared with nothing",
            fix="Leave out --seconds, or give --precision auto or --merge-tokens auto.",
        )


def _why_untimed(target: Target, elsewhere: Elsewhere | None) -> str:
    """Return the reason why nothing can be timed here; empty if it can."""
    if elsewhere is not None:
        return f"it will run on {elsewhere.name}"
    cannot = target.cannot_run()
    return "" if cannot is None else cannot.why
