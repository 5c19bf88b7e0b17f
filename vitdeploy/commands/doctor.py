"""`vitdeploy doctor`: what can run on this machine."""

from __future__ import annotations

import json
import platform
import shlex
import shutil
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from pydantic import BaseModel, ConfigDict

from vitdeploy import environment
from vitdeploy.commands.board.recording import Recorded
from vitdeploy.environment import Host
from vitdeploy.evidence import Availability
from vitdeploy.recipe import TargetSpec

_EXPORT_NEEDS = ("torch", "timm", "onnx", "onnx_ir", "onnxscript", "onnxruntime")
_EXTRAS = {
    "export": (*_EXPORT_NEEDS, "torchvision", "safetensors", "ml_dtypes"),
    "openvino": ("openvino",),
    "onnxruntime": ("onnxruntime",),
    "cuda": ("onnxruntime",),
    "trt-rtx": ("onnxruntime", "onnxruntime_ep_nv_tensorrt_rtx"),
    "tensorrt-rtx": ("tensorrt_rtx",),
    "hf": ("transformers",),
    "detection": ("pycocotools",),
    "data": ("pyarrow",),
    "report": ("jinja2",),
    "quantize": ("nncf",),
    "log": ("mlflow",),
    "sign": ("model_signing", "securesystemslib", "OpenSSL"),
    "sweep": ("ray", "grpc"),
}
"""The modules of each extra."""
_X86 = ("x86_64", "AMD64")
_FOR_X86 = ("tensorrt-rtx", "trt-rtx")
_FOR_GPUS = ("cuda", "trt-rtx")
"""Extras that are of no use on a machine without an NVIDIA GPU."""
_AVAILABLE = Availability(available=True)


class Diagnosis(BaseModel):
    """The availability of targets and of the export, the facts about this host, and installed libraries.

    `install` has the command for each extra that is not installed, and for JetPack's TensorRT. `known_faults` has what
    others have reported of an installed compiler, by target. `recording` is what `--record` has written.
    """

    model_config = ConfigDict(frozen=True)
    targets: Mapping[str, Availability]
    devices: Mapping[str, Mapping[str, Availability]] = {}
    """target -> its other devices that need other libraries than its default device"""
    export: Availability
    install: Mapping[str, str] = {}
    host: Host
    machine: str
    libraries: Mapping[str, str]
    known_faults: Mapping[str, tuple[str, ...]] = {}
    recording: Recorded | None = None


def doctor() -> Diagnosis:
    """Check which targets can run here, and read the facts about this host."""
    from vitdeploy import targets  # it imports NumPy, which other commands of a device do without

    all_targets = {name: targets.find(TargetSpec(kind=name)) for name in targets.names()}
    missing = [name for name in _EXPORT_NEEDS if find_spec(name) is None]
    host = environment.host()
    return Diagnosis(
        targets={name: target.unavailable() or _AVAILABLE for name, target in all_targets.items()},
        devices={
            name: {
                device: targets.find(TargetSpec(kind=name, device=device)).unavailable() or _AVAILABLE
                for device in target.devices
            }
            for name, target in all_targets.items()
            if target.devices
        },
        export=Availability(
            available=not missing,
            why=f"not installed: {', '.join(missing)}" if missing else "",
            fix="pip install 'vitdeploy[export]'. compile, bench and gate work without it." if missing else "",
        ),
        install=_find_missing(host),
        host=host,
        machine=host.machine,
        libraries=environment.library_versions(),
        known_faults={name: faults for name, target in all_targets.items() if (faults := target.known_faults())},
    )


def _find_missing(host: Host) -> dict[str, str]:
    """Return the command for each extra that is not installed and can be installed here."""
    commands = {}
    for extra, modules in _EXTRAS.items():
        no_wheel = extra in _FOR_X86 and platform.machine() not in _X86
        no_use = extra in _FOR_GPUS and host.gpu is None
        if not no_wheel and not no_use and any(find_spec(name) is None for name in modules):
            commands[extra] = f"{_pip()} install {_name_with(extra)}"
    if host.jetpack is not None and find_spec("tensorrt") is None:
        commands["tensorrt"] = "sudo apt-get install python3-libnvinfer"
    return commands


def _pip() -> str:
    """Return the pip of this Python as a command: `pip`, if that is the one on the PATH."""
    on_path = shutil.which("pip")
    if on_path is not None and Path(on_path).parent == Path(sys.executable).parent:
        return "pip"
    return f"{shlex.quote(sys.executable)} -m pip"


def _name_with(extra: str) -> str:
    """Return vitdeploy with an extra for pip: its checkout or wheel, if it was installed from one (PEP 610)."""
    try:
        origin = json.loads(distribution("vitdeploy").read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, ValueError):
        origin = {}
    url = urlsplit(origin.get("url", ""))
    path = Path(url2pathname(url.path))
    if url.scheme != "file" or not path.exists():
        return f"'vitdeploy[{extra}]'"
    editable = "-e " if origin.get("dir_info", {}).get("editable") else ""
    return editable + shlex.quote(f"{path}[{extra}]")
