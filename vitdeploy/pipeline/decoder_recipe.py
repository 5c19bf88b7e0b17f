"""The recipe of a mask decoder, which takes no image: what follows from that, and what is refused."""

from __future__ import annotations

from vitdeploy import precision
from vitdeploy.errors import UsageError
from vitdeploy.frozen import replace
from vitdeploy.recipe import AUTO, DataSpec, Recipe, TokensSpec

IN_FLOAT = (
    "the decoder stays in float: masks hang on small differences of a few tokens, and no prompts show their ranges"
)
_FLOATS = ("fp32", "fp16", "bf16")


def is_float(kind: str) -> bool:
    """Return True if a precision has weights in a float type of 16 bits or more; "auto" is none."""
    return kind != AUTO and precision.kind_of(kind).numbers.weights in _FLOATS


def fit_decoder(recipe: Recipe) -> Recipe:
    """Return the recipe of a decoder without what is about images.

    Args:
        recipe: a recipe with its precision filled in.

    Raises:
        UsageError: it asks for a precision, a batch or an accuracy budget that a decoder does not have.
    """
    kind = recipe.precision.kind or ""
    if not is_float(kind):
        raise UsageError(f"--precision {kind} is not for a decoder: {IN_FLOAT}", fix="Give fp32, fp16 or bf16.")
    if recipe.precision.max_drop_pp is not None:
        raise UsageError("a decoder alone has no accuracy to judge", fix="Leave out --max-drop.")
    batch = recipe.target.batch
    if not batch.static or batch.opt != 1:
        raise UsageError(f"a decoder takes one image at a time, not {batch}", fix="Leave out --batch.")
    data = DataSpec(calibration_images=recipe.data.calibration_images)
    target = replace(recipe.target, input="normalized")
    return replace(recipe, data=data, target=target, tokens=TokensSpec())
