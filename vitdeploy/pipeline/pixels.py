"""Compare the preprocessing of an export with the model's own, and refuse one that is silently another."""

from __future__ import annotations

from vitdeploy.data.pixel_check import compare_pixels
from vitdeploy.errors import SourceError
from vitdeploy.evidence import PixelCheck
from vitdeploy.recipe import Preprocess, Recipe
from vitdeploy.sources import LoadedModel


def check_pixels(recipe: Recipe, model: LoadedModel, preprocess: Preprocess) -> PixelCheck | None:
    """Compare the preprocessing with that of the model's own library; None if its source knows none.

    Raises:
        SourceError: they differ, and the recipe does not ask for another one.
    """
    if model.processor is None:
        return PixelCheck(processor="none", equal=None, why=model.no_processor) if model.no_processor else None
    check = compare_pixels(model.processor, preprocess)
    if check.equal is False and not _is_requested(recipe):
        raise SourceError(
            f"{recipe.model.spec}: vitdeploy cannot give the pixels of {check.processor}: {check.why}",
            fix="Write the preprocessing that you want under `preprocess:` in a recipe, and give --recipe.",
        )
    return check


def describe_pixels(check: PixelCheck | None) -> list[str]:
    """Return what the user should know: that pixels are not the model's own, or could not be compared."""
    if check is None or check.equal:
        return []
    if check.equal is None:
        return [f"the preprocessing could not be compared with the model's own: {check.why}"]
    return [f"as requested, not the pixels of {check.processor}: {check.why}"]


def _is_requested(recipe: Recipe) -> bool:
    """Return True if the user asks for a preprocessing, a part of one, or a size."""
    return recipe.preprocess is not None or recipe.model.image_size is not None or bool(recipe.model.overrides)
