"""The GPU of this machine as far as an engine depends on it."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from vitdeploy.environment import power_mode
from vitdeploy.errors import TargetUnavailable
from vitdeploy.targets._cuda import Cuda


class Gpu(BaseModel):
    """What kernels were chosen for: boards of one name differ in multiprocessors, and one board in its power modes."""

    model_config = ConfigDict(frozen=True)
    name: str
    sm: str
    multiprocessors: int
    integrated: bool
    memory_bytes: int
    power_mode: str | None = None

    @property
    def told(self) -> str:
        """In words."""
        mode = f", power mode {self.power_mode}" if self.power_mode else ""
        return f"{self.name} ({self.sm}, {self.multiprocessors} multiprocessors{mode})"


def gpu() -> Gpu:
    """The first GPU that this process sees.

    Raises:
        TargetUnavailable: there is none, or no driver.
    """
    with Cuda() as cuda:
        facts: dict[str, Any] = {
            name: getattr(cuda, name) for name in ("name", "sm", "multiprocessors", "integrated", "memory_bytes")
        }
    return Gpu(**facts, power_mode=power_mode())


def gpu_or_none() -> Gpu | None:
    """The first GPU, where there is one."""
    try:
        return gpu()
    except TargetUnavailable:
        return None
