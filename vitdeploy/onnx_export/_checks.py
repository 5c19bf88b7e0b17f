"""Let the dynamo exporter pass a model's checks of its own tensors, which have no ONNX form and no effect."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def checks_without_effect() -> Iterator[None]:
    """Write checks of tensors so that the exporter drops them. Numbers are compared with PyTorch's afterwards.

    `torch._check_tensor_all`, by which transformers checks that its inputs match, calls `_is_all_true`, which the
    exporter cannot translate; the usual `all` says the same, and is removed with the check. `torch._assert` branches on
    a tensor, which the exporter refuses.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    usual: dict[Any, Any] = {torch.Tensor._is_all_true: torch.all, torch.Tensor._is_any_true: torch.any}
    usual |= {torch._is_all_true: torch.all, torch._is_any_true: torch.any}

    class WithoutEffect(TorchFunctionMode):
        """A mode, because models also call these functions by names of their own."""

        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function is torch._assert and isinstance(args[0], torch.Tensor):
                return None
            return usual.get(function, function)(*args, **(kwargs or {}))

    with WithoutEffect():
        yield
