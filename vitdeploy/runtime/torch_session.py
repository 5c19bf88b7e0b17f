"""Run a torch module as a session: the FP32 reference that everything is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from vitdeploy.environment import available_cores
from vitdeploy.session import Array, Feeds, SequentialSession, named_outputs

if TYPE_CHECKING:
    from torch import nn


class TorchSession(SequentialSession):
    """A module in eager mode, on this CPU or on "cuda". Threads are a setting of the whole process: the last one wins.

    There is no profile: PyTorch's own times operators that have no names of the model's parts.

    On a GPU float32 means float32: TF32, which cuDNN's convolutions would otherwise use, is switched off.
    """

    def __init__(
        self, module: nn.Module, *, threads: int | None = None, name: str = "pytorch-fp32", device: str = "cpu"
    ) -> None:
        import torch

        torch.set_num_threads(threads or available_cores())
        if device == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        self._device = device
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
        """Outputs by name; `feeds` has one float32 NCHW array, under any name."""
        import torch

        if self._module is None or len(feeds) != 1:
            raise ValueError(f"an open session takes one input, not {sorted(feeds)}")
        (images,) = feeds.values()
        with torch.inference_mode():
            result = self._module(torch.from_numpy(images).to(self._device))
            return {name: value.cpu().numpy() for name, value in named_outputs(result).items()}

    def close(self) -> None:
        """Let go of the module."""
        self._module = None
