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
    """The availability of targets and of the export, the facts about this host, and installed libraries."""

    model_config = ConfigDict(frozen=True)
    targets: Mapping[str, Availability]
    export: Availability
    host: Host
    machine: str
    libraries: Mapping[str, str]


def doctor() -> Diagnosis:
    """Check which targets can run here, and read the facts about this host."""
    from vitdeploy import targets  # it imports NumPy, which other commands of a device do without

    reasons = {name: targets.find(TargetSpec(kind=name)).unavailable() for name in targets.names()}
    missing = [name for name in _EXPORT_NEEDS if find_spec(name) is None]
    host = environment.host()
    return Diagnosis(
        targets={name: reason or Availability(available=True) for name, reason in reasons.items()},
        export=Availability(
            available=not missing,
            why=f"not installed: {', '.join(missing)}" if missing else "",
            fix="pip install 'vitdeploy[export]'. compile, bench and gate work without it." if missing else "",
        ),
        host=host,
        machine=host.machine,
        libraries=environment.library_versions(),
    )
