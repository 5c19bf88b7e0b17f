"""Run a PyTorch module as a session: the FP32 reference."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING

from vitdeploy.environment import available_cores
from vitdeploy.session import Array, Feeds, SequentialSession, closed_error, named_outputs

if TYPE_CHECKING:
    from torch import nn


class TorchSession(SequentialSession):
    """A module on the CPU or on "cuda".

    The number of threads is a setting of the whole process: the last session wins. There is no profile, because
    PyTorch's profiler does not know the names of the model's parts. On a GPU, TF32 is switched off, so that float32
    products and convolutions are computed in float32.

    Threads take turns: a module may keep state between the lines of its forward(), such as a cached table of positions.
    """

    def __init__(
        self, module: nn.Module, *, threads: int | None = None, name: str = "pytorch-fp32", device: str = "cpu"
    ) -> None:
        import torch

        torch.set_num_threads(threads or available_cores())
        if device == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        self._device = device
        self._turn = threading.Lock()
        self._module: nn.Module | None = module.to(device)
        self.name = name
        self.threads: int | None = torch.get_num_threads()
        self.effective: Mapping[str, str] = {
            "engine": f"torch {torch.__version__}",
            "threads": str(self.threads),
            "precision": "fp32",
            "device": device,
        }

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Return the outputs by name; `feeds` has one float32 NCHW array, under any name.

        Raises:
            UsageError: the session is closed.
        """
        import torch

        if len(feeds) != 1:
            raise ValueError(f"a session takes one input, not {sorted(feeds)}")
        (images,) = feeds.values()
        with self._turn, torch.inference_mode():
            if self._module is None:
                raise closed_error(self.name)
            result = self._module(torch.from_numpy(images).to(self._device))
            return {name: value.cpu().numpy() for name, value in named_outputs(result).items()}

    def close(self) -> None:
        """Release the module once no thread runs it."""
        with self._turn:
            self._module = None
