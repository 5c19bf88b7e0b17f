"""The properties of this machine's GPU on which an engine depends."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from vitdeploy.environment import board_model, power_mode
from vitdeploy.targets._tensorrt.cuda import Cuda


class Gpu(BaseModel):
    """A GPU for which kernels are chosen.

    GPUs of one name can differ in their multiprocessors, and one board has several power modes.
    """

    model_config = ConfigDict(frozen=True)
    name: str
    sm: str
    multiprocessors: int
    integrated: bool
    memory_bytes: int
    board: str | None = None
    """The name of a Jetson. Every Orin's GPU is called `Orin`, and NX and Nano have the same multiprocessors."""
    power_mode: str | None = None

    @property
    def description(self) -> str:
        """The GPU in words."""
        board = f", {self.board}" if self.board else ""
        mode = f", power mode {self.power_mode}" if self.power_mode else ""
        return f"{self.name} ({self.sm}, {self.multiprocessors} multiprocessors{board}{mode})"


def find_gpu() -> Gpu:
    """Return the first GPU that this process sees.

    Raises:
        TargetUnavailable: there is none, or no driver.
    """
    with Cuda(context=False) as cuda:
        return Gpu(
            name=cuda.name,
            sm=cuda.sm,
            multiprocessors=cuda.multiprocessors,
            integrated=cuda.integrated,
            memory_bytes=cuda.memory_bytes,
            board=board_model() if cuda.integrated else None,
            power_mode=power_mode(),
        )
