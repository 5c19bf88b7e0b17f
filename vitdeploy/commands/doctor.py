"""`vitdeploy doctor`: what can run on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec

from pydantic import BaseModel, ConfigDict

from vitdeploy import environment
from vitdeploy.environment import Host
from vitdeploy.evidence import Availability
from vitdeploy.recipe import TargetSpec

_EXPORT_NEEDS = ("torch", "timm", "onnx", "onnx_ir", "onnxscript", "onnxruntime")


class Diagnosis(BaseModel):
    """Targets with their availability, whether models can be exported, this host, and the libraries found."""

    model_config = ConfigDict(frozen=True)
    targets: Mapping[str, Availability]
    export: Availability
    host: Host
    machine: str
    libraries: Mapping[str, str]


def doctor() -> Diagnosis:
    """Ask every target whether it can run here, and look at the host."""
    from vitdeploy import targets  # NumPy comes with it, and a device that is asked for a file has no time for that

    unavailable = {name: targets.find(TargetSpec(kind=name)).unavailable() for name in targets.names()}
    missing = [name for name in _EXPORT_NEEDS if find_spec(name) is None]
    host = environment.host()
    return Diagnosis(
        targets={name: why or Availability(available=True) for name, why in unavailable.items()},
        export=Availability(
            available=not missing,
            why=f"not installed: {', '.join(missing)}" if missing else "",
            fix="pip install 'vitdeploy[export]' (compiling, measuring and gating work without it)" if missing else "",
        ),
        host=host,
        machine=host.machine,
        libraries=environment.library_versions(),
    )
