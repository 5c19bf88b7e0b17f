"""The record of an engine (`engine.json`): for which TensorRT and GPU it was built.

With it, an engine that does not fit is refused before TensorRT reads it, with a message such as "built on AGX Orin, and
this is Orin NX". TensorRT itself would name only numbers of a serialization format, or run an engine for another GPU
with a warning and other speed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from vitdeploy.errors import ArtifactError, TargetUnavailable
from vitdeploy.frozen import describe_unread
from vitdeploy.targets._tensorrt.api import Api, HardwareLevel, release
from vitdeploy.targets._tensorrt.gpu import Gpu

RECORD = "engine.json"
_AMPERE = 80


class EngineRecord(BaseModel):
    """The origin and purpose of an engine.

    Attributes:
        backend: name and complete version of the builder: `tensorrt 10.3.0`.
        typing: the typing of the network.
        gpu: the GPU on which it was built; None if it was compiled ahead of time.
        compute_capabilities: the GPU generations for which it was compiled ahead of time.
        hardware_level: the other GPUs on which it runs.
        version_compatible: whether other versions of the same major TensorRT can open it.
        dynamic: whether its batch varies.
        build_seconds: how long the build took.
        notes: remarks for the user.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")
    backend: str
    typing: Literal["strong", "weak"]
    gpu: Gpu | None
    compute_capabilities: tuple[str, ...] = ()
    hardware_level: HardwareLevel = "none"
    version_compatible: bool = False
    dynamic: bool = False
    build_seconds: float = 0.0
    notes: tuple[str, ...] = ()

    def save(self, folder: Path) -> None:
        """Write it beside the engine."""
        (folder / RECORD).write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")

    def refuse(self, api: Api, gpu: Gpu) -> str | None:
        """Return None if this TensorRT can open the engine on this GPU, else the reason."""
        return self._refuse_version(api) or self.refuse_gpu(gpu)

    def find_doubt(self, gpu: Gpu) -> str | None:
        """Return why it may be slower than an engine built here, or None."""
        built = self.gpu
        if built is None:
            return None
        if built.board and gpu.board and built.board != gpu.board:
            return f"its kernels were chosen on {built.board}, this is {gpu.board}"
        if built.power_mode and gpu.power_mode and built.power_mode != gpu.power_mode:
            return f"its kernels were chosen in power mode {built.power_mode}, this board is in {gpu.power_mode}"
        return None

    def _refuse_version(self, api: Api) -> str | None:
        name, _, version = self.backend.partition(" ")
        if self.backend == api.backend:
            return None
        here, built = release(api.version), release(version)
        same_product = name == api.backend.partition(" ")[0]
        if self.version_compatible and same_product and built[:1] == here[:1] and built <= here:
            return None
        return f"it was built by {self.backend}, and this machine has {api.backend}"

    def refuse_gpu(self, gpu: Gpu) -> str | None:
        """Return None if this GPU can run the engine, else the reason."""
        if self.gpu is None:
            if not self.compute_capabilities or gpu.sm in self.compute_capabilities:
                return None
            return f"it was compiled for {', '.join(self.compute_capabilities)}, and this is {gpu.description}"
        if self.hardware_level == "ampere-plus":
            fits = int(gpu.sm.removeprefix("sm")) >= _AMPERE
        elif self.hardware_level == "same-compute-capability":
            fits = gpu.sm == self.gpu.sm
        else:
            fits = (gpu.name, gpu.sm, gpu.multiprocessors) == (self.gpu.name, self.gpu.sm, self.gpu.multiprocessors)
        return None if fits else f"it was built on {self.gpu.description}, and this is {gpu.description}"


def load_record(folder: Path) -> EngineRecord:
    """Load the record beside an engine.

    Raises:
        ArtifactError: there is none, or it cannot be read. Then nothing is known about the engine.
    """
    try:
        return EngineRecord.model_validate_json((folder / RECORD).read_bytes())
    except (OSError, ValidationError) as error:
        raise ArtifactError(
            f"{folder} has no readable record of what its engine was built for: {describe_unread(error)}",
            fix="Compile its bundle again on this machine: vitdeploy compile DIR",
        ) from None


def check_record(record: EngineRecord, api: Api, gpu: Gpu, engine: Path) -> None:
    """Check that an engine was built for this TensorRT and this GPU.

    Raises:
        TargetUnavailable: it was built for others. The message names both.
    """
    reason = record.refuse(api, gpu)
    if reason is not None:
        raise TargetUnavailable(
            f"{engine} does not run here: {reason}",
            fix=f"Build it on this machine: vitdeploy compile {engine.parent} -o NEW-DIR",
        )
