"""Count the attentions of a model while it runs, without anything of vitdeploy's that recognises them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vitdeploy.session import named_outputs

_IMAGE = 0
"""The source that stands for the image. Attentions are numbered from 1."""


def count_attentions(model: nn.Module, size: tuple[int, int], frames: int | None = None) -> int:
    """Count the attentions that depend on the image and that a model's outputs are computed from, while it runs.

    It runs on an image, or on a clip of `frames`. An attention is a softmax or a fused operator. Those of layers behind
    the last feature that the model returns are dead: it computes them and nothing reads them, so they are in no graph.
    Those that do not depend on the image, such as the first self-attention of DETR's decoder, are constants.
    """
    running = _Attentions()
    # In inference, nn.MultiheadAttention runs one operator of its own, which would hide its softmax.
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        shape = (1, 3, *size) if frames is None else (1, frames, 3, *size)
        image = torch.from_numpy(np.random.default_rng(0).standard_normal(shape).astype(np.float32))
        running.mark(image)
        with torch.no_grad(), running:
            outputs = model(image)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return len(running.above(named_outputs(outputs).values()) - {_IMAGE})


class _Attentions(TorchDispatchMode):
    """Note for the memory of each tensor which attentions its values come from."""

    def __init__(self) -> None:
        super().__init__()
        self._count = 0
        self._sources: dict[int, frozenset[int]] = {}

    def mark(self, image: torch.Tensor) -> None:
        """Take note of the image."""
        self._sources[_memory(image)] = frozenset({_IMAGE})

    def above(self, tensors: Iterable[torch.Tensor]) -> frozenset[int]:
        """Return the numbers of the attentions that these are computed from, and that of the image."""
        return frozenset().union(*(self._sources.get(_memory(tensor), frozenset()) for tensor in tensors))

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        read = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
        sources, memory = self.above(read), {_memory(tensor) for tensor in read}
        result = function(*args, **(kwargs or {}))
        name = function.name().removeprefix("aten::")
        is_attention = name.startswith(("_softmax", "_safe_softmax", "_scaled_dot_product"))
        if is_attention and _IMAGE in sources:
            self._count += 1
            sources |= {self._count}
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor):  # in new memory, or in that of an operand: a view, or written in place
                before = self._sources.get(_memory(value), frozenset()) if _memory(value) in memory else frozenset()
                self._sources[_memory(value)] = sources | before
        return result


def _memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
