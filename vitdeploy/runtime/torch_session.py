"""Run a PyTorch module as a session: the FP32 reference."""

from __future__ import annotations

import inspect
import threading
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vitdeploy.environment import available_cores
from vitdeploy.errors import SourceError
from vitdeploy.graph.kept_outputs import select_names
from vitdeploy.session import Array, Feeds, SequentialSession, closed_error, named_outputs

if TYPE_CHECKING:
    from torch import nn

_LONGEST_MESSAGE = 200
"""Characters of an error of the model's own code."""


class TorchSession(SequentialSession):
    """A module on the CPU or on "cuda".

    The number of threads is a setting of the whole process: the last session wins. There is no profile, because
    PyTorch's profiler does not know the names of the model's parts. On a GPU, TF32 is switched off, so that float32
    products and convolutions are computed in float32.

    Threads take turns: a module may keep state between the lines of its forward(), such as a cached table of positions.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        threads: int | None = None,
        name: str = "pytorch-fp32",
        device: str = "cpu",
        outputs: Sequence[str] | None = None,
    ) -> None:
        """Open a module.

        Args:
            module: the module, in eval mode.
            threads: for the CPU; None: one for each core.
            name: the name of the session.
            device: "cpu" or "cuda".
            outputs: the outputs to return; None: all.
        """
        import torch

        torch.set_num_threads(threads or available_cores())
        if device == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        self._device = device
        self._outputs = outputs
        self._turn = threading.Lock()
        self._module: nn.Module | None = module.to(device)
        parameters = inspect.signature(module.forward).parameters
        self._inputs = frozenset(parameters)
        self._takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
        self.name = name
        self.threads: int | None = torch.get_num_threads()
        self.effective: Mapping[str, str] = {
            "engine": f"torch {torch.__version__}",
            "threads": str(self.threads),
            "precision": "fp32",
            "device": device,
        }

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Return the outputs by name; `feeds` has one float32 NCHW array, under any name; or all of forward(), by name.

        Raises:
            UsageError: the session is closed.
            SourceError: the module's own code fails on these images, or it has no output of a name.
        """
        import torch

        by_name = len(feeds) > 1
        if not feeds or (by_name and not self._takes_any and not self._inputs.issuperset(feeds)):
            raise ValueError(f"a session takes one input, or those of forward() by name, not {sorted(feeds)}")
        with self._turn, torch.inference_mode():
            if self._module is None:
                raise closed_error(self.name)
            try:
                tensors = {name: torch.from_numpy(value).to(self._device) for name, value in feeds.items()}
                result = self._module(**tensors) if by_name else self._module(*tensors.values())
            except Exception as error:
                raise _explain(error, next(iter(feeds.values())).shape) from error
            outputs = named_outputs(result)
            names = list(outputs) if self._outputs is None else select_names(self._outputs, list(outputs))
            return {name: outputs[name].cpu().numpy() for name in names}

    def close(self) -> None:
        """Release the module once no thread runs it."""
        with self._turn:
            self._module = None


def _explain(error: Exception, shape: tuple[int, ...]) -> SourceError:
    """Return the error of a forward() with the line of it that failed: the innermost one outside of PyTorch."""
    import torch

    places = (str(Path(torch.__file__).parent), __file__)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(places)]
    where = f" in {Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else ""
    text = " ".join(str(error).split())[:_LONGEST_MESSAGE] or (frames[-1].line if frames else "")
    fix = "Correct the model there, or give the image size that it takes with --image-size."
    if isinstance(error, TypeError) and "argument" in str(error):
        fix = "It is called with one batch of images: give its other arguments defaults, or wrap it in a module."
    return SourceError(f"the model fails on images of {list(shape)}: {type(error).__name__}{where}: {text}", fix=fix)
