"""The execution provider that runs an ONNX Runtime session: the CPU, or a GPU that must not be left silently."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from vitdeploy.errors import TargetUnavailable

_CPU = "CPUExecutionProvider"


@dataclass(frozen=True)
class Provider:
    """An execution provider of ONNX Runtime, with its options.

    Attributes:
        name: as ONNX Runtime names it.
        place: where it computes, in words.
        options: of the provider.
        plugin: the library of a provider that does not come with ONNX Runtime; None for one that does.
        plugin_version: distribution and version of that library.
    """

    name: str = _CPU
    place: str = "this CPU"
    options: Mapping[str, str] = field(default_factory=dict, hash=False)
    plugin: Path | None = None
    plugin_version: str = ""

    @property
    def is_cpu(self) -> bool:
        """Return whether it is the CPU provider, to which ONNX Runtime leaves what the others cannot run."""
        return self.name == _CPU

    def with_options(self, **options: str) -> Provider:
        """Return the provider with further options."""
        return replace(self, options={**self.options, **options})

    def describe_engine(self, ort: ModuleType) -> str:
        """Return name and version of ONNX Runtime, and of the plug-in."""
        return " with ".join(filter(None, (f"onnxruntime {ort.__version__}", self.plugin_version)))


CPU = Provider()


def create_session(ort: ModuleType, path: str | bytes, options: Any, provider: Provider) -> Any:
    """Open a session on a provider.

    ONNX Runtime only warns if a provider does not load, and computes everything on the CPU: neither `disable_fallback`
    nor an order of providers changes that (onnxruntime issues 17801 and 23647). `session.disable_cpu_ep_fallback`
    would refuse it, but also the sizes of dynamic shapes, which belong on the CPU. So the open session is asked which
    providers it has. Which of them runs each node is in its profile.

    Args:
        ort: the module onnxruntime.
        path: of the ONNX file, or its bytes.
        options: of the session.
        provider: the provider that has to run it.

    Raises:
        TargetUnavailable: ONNX Runtime opened it without the provider.
    """
    if provider.is_cpu:
        return ort.InferenceSession(path, options, providers=[provider.name])
    if provider.plugin is None:
        providers = [(provider.name, dict(provider.options))]
        session = ort.InferenceSession(path, options, providers=providers, enable_fallback=0)
    else:
        devices = register_plugin(ort, provider)
        options.add_provider_for_devices(devices[:1], dict(provider.options))
        session = ort.InferenceSession(path, options, enable_fallback=0)
    opened = session.get_providers()
    if provider.name not in opened:
        raise TargetUnavailable(
            f"ONNX Runtime opened the model on {', '.join(p.removesuffix('ExecutionProvider') for p in opened)} "
            f"instead of {provider.place}",
            fix="See the reason with: vitdeploy doctor",
        )
    session.disable_fallback()
    return session


def register_plugin(ort: ModuleType, provider: Provider) -> list[Any]:
    """Register the library of a provider once, and return its devices.

    Raises:
        TargetUnavailable: the library does not load, or has no device here.
    """

    def list_devices() -> list[Any]:
        return [device for device in ort.get_ep_devices() if device.ep_name == provider.name]

    devices = list_devices()
    if not devices:
        try:
            ort.register_execution_provider_library(provider.name, str(provider.plugin))
        except Exception as error:  # noqa: BLE001  ONNX Runtime's types vary by version; all mean that it does not load
            raise TargetUnavailable(
                f"the plug-in {provider.plugin_version} does not load: {str(error).rpartition('error: ')[2]}",
                fix="Install the NVIDIA driver and the CUDA version that the plug-in is for.",
            ) from None
        devices = list_devices()
    if not devices:
        raise TargetUnavailable(
            f"the plug-in {provider.plugin_version} finds no GPU here", fix="It runs on RTX GPUs from Ampere on."
        )
    return devices
