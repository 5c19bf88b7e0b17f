"""Why a device of ONNX Runtime cannot be used here, and the fix."""

from __future__ import annotations

import importlib
import io
import re
from contextlib import redirect_stdout
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from vitdeploy.artifact.temporary import scratch_folder
from vitdeploy.errors import TargetUnavailable
from vitdeploy.evidence import Availability
from vitdeploy.graph.onnx_provider import Provider, create_session, register_plugin
from vitdeploy.targets._onnxruntime.captured import captured
from vitdeploy.targets._onnxruntime.devices import CPU, CUDA, DEVICES, TRT_RTX
from vitdeploy.targets._tensorrt.gpu import Gpu, find_gpu

PLUGIN_MODULE = "onnxruntime_ep_nv_tensorrt_rtx"
_SWAP = "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'vitdeploy[cuda]'"
_FIX_LIBRARIES = "Install CUDA and cuDNN of the versions that it names: pip install 'vitdeploy[cuda]'"
_RTX_GENERATIONS = ("sm86", "sm89")
_FIRST_BLACKWELL = 120
"""The plug-in takes these GPUs, and every one from this generation on (`IsComputeCapabilitySupported` in its header
tensorrt_rtx_provider_options.h, version 0.5.0)."""
_TINY = bytes.fromhex(
    "08093a330a0c0a0178120179220452656c751201675a0f0a0178120a0a08080112040a020802620f0a0179120a0a08080112040a0208024204"
    "0a001014"
)
"""A model of one Relu on two numbers, made with onnx, because a device has no onnx to make it."""


def find_problem(device: str, no_gpu: str) -> Availability | None:
    """Return why a device cannot be used here, and what to do; None if it can.

    Args:
        device: its name.
        no_gpu: what to do on a machine without a GPU.
    """
    if device not in DEVICES:
        why = f"ONNX Runtime has no device {device}: it has {', '.join(DEVICES)}"
        return _no(why, f"Use --device {CPU}, or one of the others.")
    if device == CPU:
        if find_spec("onnxruntime") is None:
            return _no("onnxruntime is not installed", "pip install 'vitdeploy[onnxruntime]'")
        return None
    try:
        gpu = find_gpu()
    except TargetUnavailable as error:
        return _no(f"this machine has no NVIDIA GPU ({error.message})", no_gpu)
    return _find_cuda_problem() if device == CUDA else _find_plugin_problem(gpu)


def _find_cuda_problem() -> Availability | None:
    if find_spec("onnxruntime") is None:
        return _no("onnxruntime-gpu is not installed", "pip install 'vitdeploy[cuda]'")
    import onnxruntime as ort

    device = DEVICES[CUDA]
    if device.provider not in ort.get_available_providers():
        both = _version("onnxruntime-gpu") and _version("onnxruntime")
        which = (
            "onnxruntime and onnxruntime-gpu are both installed, in one folder, and the former was installed last"
            if both
            else f"onnxruntime {ort.__version__} is the package for CPUs, without CUDA"
        )
        return _no(which, _SWAP)
    reason = probe(ort, Provider(device.provider, device.place))
    return None if reason is None else _no(f"ONNX Runtime's CUDA provider does not load: {reason}", _FIX_LIBRARIES)


def _find_plugin_problem(gpu: Gpu) -> Availability | None:
    number = int(gpu.sm.removeprefix("sm"))
    if gpu.sm not in _RTX_GENERATIONS and number < _FIRST_BLACKWELL:
        return _no(
            f"TensorRT-RTX's plug-in does not run on {gpu.name} ({gpu.sm}): it takes {', '.join(_RTX_GENERATIONS)} and "
            f"sm{_FIRST_BLACKWELL} or newer",
            "Use --device cuda, or --target tensorrt.",
        )
    if find_spec("onnxruntime") is None or find_spec(PLUGIN_MODULE) is None:
        missing = "onnxruntime" if find_spec("onnxruntime") is None else "TensorRT-RTX's plug-in for ONNX Runtime"
        return _no(f"{missing} is not installed", "pip install 'vitdeploy[trt-rtx]'")
    import onnxruntime as ort

    if not hasattr(ort, "register_execution_provider_library"):
        return _no(f"onnxruntime {ort.__version__} takes no plug-ins", "pip install --upgrade 'vitdeploy[trt-rtx]'")
    try:
        register_plugin(ort, find_plugin())
    except TargetUnavailable as error:
        return _no(error.message, error.fix or "")
    return None


def find_plugin(options: dict[str, str] | None = None) -> Provider:
    """Return the provider of TensorRT-RTX's plug-in.

    Raises:
        TargetUnavailable: the plug-in is not installed, or is damaged.
    """
    device = DEVICES[TRT_RTX]
    try:
        plugin = importlib.import_module(PLUGIN_MODULE)
        library = Path(plugin.get_library_path())
    except (ImportError, OSError) as error:
        raise TargetUnavailable(
            f"TensorRT-RTX's plug-in for ONNX Runtime does not load: {error}", fix="pip install 'vitdeploy[trt-rtx]'"
        ) from None
    version = f"onnxruntime-ep-nv-tensorrt-rtx {plugin.__version__}"
    return Provider(device.provider, device.place, options or {}, plugin=library, plugin_version=version)


@cache
def probe(ort: ModuleType, provider: Provider) -> str | None:
    """Open a model of one operator on a provider. Return the reason if it does not run there; None if it does."""
    options = ort.SessionOptions()
    with scratch_folder("probe") as folder, captured(2, folder / "log") as log:
        _preload(ort)
        try:
            create_session(ort, _TINY, options, provider)
        except TargetUnavailable as error:
            return _read_reason(log.text()) or error.message
        except Exception as error:  # noqa: BLE001  ONNX Runtime's types vary by version
            return " ".join(str(error).split())[:300]
    return None


def _preload(ort: ModuleType) -> None:
    """Load CUDA and cuDNN from NVIDIA's pip packages, where they are installed. It prints what is missing."""
    if hasattr(ort, "preload_dlls"):
        with redirect_stdout(io.StringIO()):
            ort.preload_dlls()


def _read_reason(log: str) -> str:
    """Return the reason in ONNX Runtime's log, such as "libcublasLt.so.13: cannot open shared object file"."""
    match = re.search(r"with error: (?P<library>[^\n\x1b]+?)(?:: No such file or directory)?\s*$", log, re.MULTILINE)
    needs = re.search(r"Require (?P<versions>[^\n\x1b]+?)\. Please install", log)
    return "; it needs ".join(filter(None, (match and match["library"], needs and needs["versions"])))


def _no(why: str, fix: str) -> Availability:
    return Availability(available=False, why=why, fix=fix)


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""
