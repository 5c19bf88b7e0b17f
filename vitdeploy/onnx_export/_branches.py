"""Let the dynamo exporter take the branches that Python code took for the traced image."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vitdeploy.onnx_export._tracing import describe_place

if TYPE_CHECKING:
    import torch


def is_branch(error: BaseException) -> bool:
    """Return whether the exporter failed at Python code that branches on values of a tensor."""
    from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

    causes = [error]
    while (cause := causes[-1].__cause__) is not None:
        causes.append(cause)
    return any(isinstance(cause, GuardOnDataDependentSymNode) for cause in causes)


@dataclass(frozen=True)
class Branch:
    """The value of a tensor that Python code converts to a bool, and whether it was computed from the image."""

    value: bool
    from_image: bool


def record_branches(module: torch.nn.Module, *inputs: torch.Tensor) -> list[Branch]:
    """Run the model, and return each conversion of a tensor to a bool, in order."""
    import torch
    from torch.utils._pytree import tree_leaves
    from torch.utils.weak import WeakIdKeyDictionary

    branches: list[Branch] = []
    from_image = WeakIdKeyDictionary()
    for value in inputs:
        from_image[value] = True

    class Recording(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            is_from_image = any(isinstance(x, torch.Tensor) and x in from_image for x in tree_leaves((args, kwargs)))
            if _is_conversion(function, args):
                branches.append(Branch(bool(result), is_from_image))
            for value in tree_leaves(result) if is_from_image else ():
                if isinstance(value, torch.Tensor):
                    from_image[value] = True
            return result

    with Recording():
        module(*inputs)
    return branches


@contextlib.contextmanager
def taken_branches(branches: list[Branch]) -> Iterator[list[str]]:
    """Answer each conversion to a bool with its recorded value where tracing knows none.

    Yield a list that gets a sentence for each such place that depends on the image, as the legacy exporter's does.
    """
    import torch
    from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

    remaining, places = iter(branches), dict[str, None]()
    sentences: list[str] = []

    class Replaying(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if not _is_conversion(function, args):
                return function(*args, **(kwargs or {}))
            branch = next(remaining, None)
            try:
                result = bool(function(*args, **(kwargs or {})))  # of a constant it is known
            except GuardOnDataDependentSymNode:
                if branch is None:
                    raise
                if branch.from_image:
                    places[describe_place("a bool")] = None
                result = branch.value
            return result

    try:
        with Replaying():
            yield sentences
    finally:
        sentences.extend(places)


def _is_conversion(function: Any, args: Any) -> bool:
    """Return whether Python code converts a tensor to a bool."""
    import torch

    is_item = function is torch.Tensor.item and args[0].dtype == torch.bool
    return is_item or function is torch.Tensor.__bool__
