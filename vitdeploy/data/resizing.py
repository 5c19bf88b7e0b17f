"""Another way to resize than the model's own, where the user asks for it."""

from __future__ import annotations

from vitdeploy.frozen import replace
from vitdeploy.recipe import Preprocess, Resize


def request_resize(preprocess: Preprocess, resize: Resize | None, *, sized: bool) -> Preprocess:
    """Return the preprocessing with another way to resize, if one is requested; `sized`: the size is requested too."""
    if resize is None or resize == preprocess.resize:
        return preprocess
    edge = preprocess.shortest_edge
    size = (edge, edge) if edge and not sized else preprocess.size  # a letterbox has room for the longest edge
    changed = replace(
        preprocess,
        size=size,
        resize=resize,
        crop_pct=1.0,
        resize_to=None,
        shortest_edge=None,
        longest_edge=None,
        enlarge=True,
        size_divisor=1,
        size_rounding="down",
        mask=False,
    )
    return replace(changed, fill=None) if resize == "letterbox" else changed
