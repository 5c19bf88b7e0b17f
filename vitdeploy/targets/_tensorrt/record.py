"""What an engine belongs to, kept beside it, so that a foreign one is refused by name before TensorRT sees it.

TensorRT itself answers a foreign engine with a number of a serialization format, or runs one of another GPU with a
warning and wrong expectations; "built on AGX Orin" and "this is Orin NX" is what people can act on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from vitdeploy.errors import ArtifactError, TargetUnavailable
from vitdeploy.targets._tensorrt.api import Api, HardwareLevel, release
from vitdeploy.targets._tensorrt.gpu import Gpu

RECORD = "engine.json"
_AMPERE = 80


class EngineRecord(BaseModel):
    """Who built an engine, for what."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    backend: str
    """`tensorrt 10.3.0`: name and version in full."""
    typing: Literal["strong", "weak"]
    gpu: Gpu | None
    """That it was built on; None when it was compiled ahead of time."""
    compute_capabilities: tuple[str, ...] = ()
    """That it was compiled for, ahead of time."""
    hardware_level: HardwareLevel = "none"
    version_compatible: bool = False
    dynamic: bool = False
    """Whether its batch varies."""
    build_seconds: float = 0.0
    notes: tuple[str, ...] = ()

    def save(self, folder: Path) -> None:
        """Write it beside the engine."""
        (folder / RECORD).write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")

    def refusal(self, api: Api, gpu: Gpu) -> str | None:
        """Why this TensorRT on this GPU must not open the engine; None when it may."""
        return self._foreign_version(api) or self.foreign_gpu(gpu)

    def doubt(self, gpu: Gpu) -> str | None:
        """What makes it run worse than it could here."""
        built = self.gpu
        if built is None:
            return None
        if built.board and gpu.board and built.board != gpu.board:
            return f"its kernels were chosen on {built.board}, this is {gpu.board}"
        if built.power_mode and gpu.power_mode and built.power_mode != gpu.power_mode:
            return f"its kernels were chosen in power mode {built.power_mode}, this board is in {gpu.power_mode}"
        return None

    def _foreign_version(self, api: Api) -> str | None:
        name, _, version = self.backend.partition(" ")
        if self.backend == api.backend:
            return None
        here, built = release(api.version), release(version)
        same_product = name == api.backend.partition(" ")[0]
        if self.version_compatible and same_product and built[:1] == here[:1] and built <= here:
            return None
        return f"it was built by {self.backend}, and this machine has {api.backend}"

    def foreign_gpu(self, gpu: Gpu) -> str | None:
        """Why this GPU must not run the engine; None when it may."""
        if self.gpu is None:
            fits = not self.compute_capabilities or gpu.sm in self.compute_capabilities
            return (
                None if fits else f"it was compiled for {', '.join(self.compute_capabilities)}, and this is {gpu.told}"
            )
        if self.hardware_level == "ampere-plus":
            fits = int(gpu.sm.removeprefix("sm")) >= _AMPERE
        elif self.hardware_level == "same-compute-capability":
            fits = gpu.sm == self.gpu.sm
        else:
            fits = (gpu.name, gpu.sm, gpu.multiprocessors) == (self.gpu.name, self.gpu.sm, self.gpu.multiprocessors)
        return None if fits else f"it was built on {self.gpu.told}, and this is {gpu.told}"


def load_record(folder: Path) -> EngineRecord:
    """The record beside an engine.

    Raises:
        ArtifactError: there is none, or it cannot be read: nothing is known about the engine.
    """
    try:
        return EngineRecord.model_validate_json((folder / RECORD).read_bytes())
    except (OSError, ValidationError) as error:
        raise ArtifactError(
            f"{folder} does not tell what its engine was built for: {str(error).splitlines()[0]}",
            fix="Compile its bundle again on this machine: vitdeploy compile DIR",
        ) from None


def check_fits(record: EngineRecord, api: Api, gpu: Gpu, engine: Path) -> None:
    """Refuse an engine of another TensorRT or another GPU.

    Raises:
        TargetUnavailable: with what it was built for and what is here.
    """
    why = record.refusal(api, gpu)
    if why is not None:
        raise TargetUnavailable(
            f"{engine} does not run here: {why}",
            fix=f"Build it on this machine: vitdeploy compile {engine.parent} -o NEW-DIR",
        )
