"""What a model's image input is: its size, its patch grid, and the preprocessing of files that carry none."""

from __future__ import annotations

from typing import Any

from vitdeploy.errors import SourceError
from vitdeploy.recipe import Preprocess


def check_patch(model: str, size: tuple[int, int], patch: Any) -> None:
    """Raise when an image side is not a multiple of the patch (one number, or height and width)."""
    patches = tuple(patch) if isinstance(patch, (tuple, list)) else (patch, patch)
    if len(patches) != 2 or not all(isinstance(p, int) and p > 0 for p in patches):
        return  # no patch grid known: nothing to check
    if all(side % p == 0 for side, p in zip(size, patches, strict=True)):
        return
    below = [max(p, side // p * p) for side, p in zip(size, patches, strict=True)]
    above = [-(-side // p) * p for side, p in zip(size, patches, strict=True)]
    raise SourceError(
        f"{model}: image size {size[0]}x{size[1]} is not a multiple of the patch size {patches[0]}x{patches[1]}",
        fix=f"Take --image-size {below[0]}x{below[1]} or {above[0]}x{above[1]}.",
    )


def default_preprocess(size: tuple[int, int], channels: int) -> Preprocess:
    """ImageNet's statistics; for one channel the middle of the range, [-1, 1]."""
    if channels == 1:
        return Preprocess(size=size, mean=(0.5,), std=(0.5,), channels=1)
    return Preprocess(size=size)


def settled_size(model: object, own: tuple[int | None, int | None], asked: tuple[int, int] | None) -> tuple[int, int]:
    """The image size of a graph whose sides are `own` (None: dynamic), when the user asks for `asked`.

    Raises:
        SourceError: it is dynamic and nobody says which, or it is fixed to another size.
    """
    height, width = (side or given for side, given in zip(own, asked or (0, 0), strict=True))
    if not (height and width):
        raise SourceError(f"{model}: its image size is dynamic", fix="Give --image-size HxW.")
    if asked is not None and (height, width) != asked:
        raise SourceError(
            f"{model} takes images of {height}x{width}, not {asked[0]}x{asked[1]}", fix="Leave out --image-size."
        )
    return height, width
