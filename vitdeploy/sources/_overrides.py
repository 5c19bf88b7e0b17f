"""Preprocessing that the user asks for, in place of the model's own."""

from __future__ import annotations

from vitdeploy.data.resizing import request_resize
from vitdeploy.errors import SourceError
from vitdeploy.frozen import replace
from vitdeploy.recipe import ModelSpec, Preprocess


def override(preprocess: Preprocess, spec: ModelSpec, *, sized: bool) -> Preprocess:
    """Return the model's preprocessing with the parts that the user gives; `sized`: the size is given too.

    Raises:
        SourceError: there are statistics for another number of channels than the model takes, or they do not go
            together.
    """
    given = spec.overrides
    given.pop("resize", None)
    changed = request_resize(preprocess, spec.resize, sized=sized)
    if spec.mean is not None and len(spec.mean) != changed.channels:
        raise SourceError(
            f"{spec.spec} takes {changed.channels} channels, and --mean has {len(spec.mean)}",
            fix=f"Give {changed.channels} values each for --mean and --std.",
        )
    if spec.crop_pct is not None:
        if changed.resize == "letterbox":
            raise SourceError(
                "--crop-pct has no meaning for --resize letterbox, which crops nothing", fix="Leave it out."
            )
        given["resize_to"] = None
    if spec.interpolation is not None:
        given["antialias"] = True
    return replace(changed, **given) if given else changed
