"""Find where TorchScript's tracer makes a constant of a value that depends on the image.

The tracer records tensor operations. When Python code converts a tensor to a bool, a number or a list, its value for
the traced image stays in the graph: one side of a branch, one index. PyTorch warns about every conversion, also about
shapes (`if height % 16`), which are fixed here, and about weights. The traced graph tells them apart: it shows whether
the converted tensor was computed from the image.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_CONVERSIONS = {
    "__bool__": "a bool", "__int__": "an int", "__float__": "a float", "__index__": "an index", "item": "a number",
    "tolist": "a list", "numpy": "a NumPy array", "__array__": "a NumPy array",
}  # fmt: skip
"""The methods of a tensor that leave the trace, and what they give."""
_SHAPES = frozenset({"aten::size", "aten::sym_size", "aten::dim", "aten::numel", "aten::len", "prim::shape"})
"""Nodes that read the shape of a tensor, and none of its values."""


@contextlib.contextmanager
def watch_tracer() -> Iterator[list[str]]:
    """Yield a list that gets a sentence for each place where the tracer makes a constant of image data."""
    import torch

    places: dict[str, None] = {}
    originals = {name: getattr(torch.Tensor, name) for name in _CONVERSIONS}
    constants: list[str] = []
    try:
        for name, original in originals.items():
            setattr(torch.Tensor, name, _watch(name, original, places))
        yield constants
    finally:
        for name, original in originals.items():
            setattr(torch.Tensor, name, original)
        constants.extend(places)


def _watch(name: str, original: Callable[..., Any], places: dict[str, None]) -> Callable[..., Any]:
    """Return the conversion `original`, which notes the user's line if the trace loses image data there."""

    @wraps(original)
    def convert(tensor: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        if _is_from_image(tensor):
            places[describe_place(_CONVERSIONS[name])] = None
        return original(tensor, *arguments, **options)

    return convert


def _is_from_image(tensor: torch.Tensor) -> bool:
    """Return whether a traced tensor was computed from values of the image, which is the first input of the trace."""
    import torch

    tracer: Any = torch._C
    state = tracer._get_tracing_state()
    if state is None:
        return False
    image = next(iter(state.graph().inputs())).debugName()
    try:
        waiting = [tracer._get_value_trace(tensor)]
    except RuntimeError:  # it is no part of the trace, so nothing was computed from the image
        return False
    seen: set[str] = set()
    while waiting:
        value = waiting.pop()
        if value.debugName() == image:
            return True
        if value.debugName() in seen or value.node().kind() in _SHAPES:
            continue
        seen.add(value.debugName())
        waiting += value.node().inputs()
    return False


def describe_place(result: str) -> str:
    """Return the sentence for the innermost frame outside of PyTorch and of this package."""
    import torch

    libraries = (str(Path(torch.__file__).parent), str(Path(__file__).parent))
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(libraries):
        frame = frame.f_back
    return (
        f"tracing made a constant of what {Path(frame.f_code.co_filename).name}, line {frame.f_lineno}, computes from "
        f"the image ({result}): other images may need another one"
    )
