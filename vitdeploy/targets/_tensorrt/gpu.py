"""The GPU of this machine as far as an engine depends on it."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from vitdeploy.environment import board_model, power_mode
from vitdeploy.targets._tensorrt.cuda import Cuda


class Gpu(BaseModel):
    """What kernels were chosen for: boards of one name differ in multiprocessors, and one board in its power modes."""

    model_config = ConfigDict(frozen=True)
    name: str
    sm: str
    multiprocessors: int
    integrated: bool
    memory_bytes: int
    board: str | None = None
    """A Jetson's own name: every Orin calls its GPU `Orin`, and an NX and a Nano have equally many multiprocessors."""
    power_mode: str | None = None

    @property
    def told(self) -> str:
        """In words."""
        board = f", {self.board}" if self.board else ""
        mode = f", power mode {self.power_mode}" if self.power_mode else ""
        return f"{self.name} ({self.sm}, {self.multiprocessors} multiprocessors{board}{mode})"


def gpu() -> Gpu:
    """The first GPU that this process sees.

    Raises:
        TargetUnavailable: there is none, or no driver.
    """
    with Cuda(context=False) as cuda:
        facts: dict[str, Any] = {
            name: getattr(cuda, name) for name in ("name", "sm", "multiprocessors", "integrated", "memory_bytes")
        }
    board = board_model() if facts["integrated"] else None
    return Gpu(**facts, board=board, power_mode=power_mode())
