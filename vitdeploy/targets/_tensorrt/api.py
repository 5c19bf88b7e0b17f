"""Every difference between the TensorRTs that vitdeploy meets, in one place.

                        10.3          10.16         11.4          TensorRT-RTX 1.x
    found on            JetPack 6     JetPack 7     JetPack 7.2.2 x86 workstations
    typing              weak, strong  weak, strong  strong        strong
    strong is complete  no            yes           yes           yes
    BuilderFlag.FP16 …  yes           yes           gone          gone
    builds for          its own GPU   its own GPU   its own GPU   listed generations, without a GPU
    timing cache        yes           yes           yes           no-op (builds time nothing)
    hardware level      AMPERE_PLUS   + SAME_COMPUTE_CAPABILITY   none
    runtime config      no            yes           yes           yes
    `Attention` parsed  no            yes           yes           yes
    trtexec measures    with flags    with flags    by default    (tensorrt_rtx)

This was read from the Python bindings of each version, recorded in tests/fakes/surface.json. `hasattr` asks the module
where that is possible. Enum members are used, never their numbers, which changed between 10 and 11. Two facts depend on
the version alone: from which on strong typing is complete (10.12, TensorRT's release notes), and the newest opset.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

from vitdeploy.errors import CompileError

Typing = Literal["auto", "strong", "weak"]
HardwareLevel = Literal["none", "ampere-plus", "same-compute-capability"]

_STRONG_COMPLETE = (10, 12)
_FIRST_WITH_ATTENTION = (10, 14)
_OPSET_OF_10_3 = 20
_OPSET_WITH_ATTENTION = 23
_FIRST_WITH_DEFAULTS = 11  # from this trtexec on, CUDA graph, spin wait and no data transfers are the default

_WEAK_FLAGS = {"fp32": (), "fp16": ("FP16",), "bf16": ("BF16",), "int8": ("INT8", "FP16"), "fp8": ("FP8", "FP16")}
"""The types that each precision allows a weakly typed build to use, beside FP32."""


@dataclass(frozen=True)
class Api:
    """The features of a loaded `tensorrt` or `tensorrt_rtx` module."""

    trt: ModuleType

    @property
    def is_rtx(self) -> bool:
        """Return whether it is TensorRT-RTX, which compiles ahead of time."""
        return self.trt.__name__ == "tensorrt_rtx"

    @property
    def version(self) -> str:
        """The complete version. An engine works with exactly one."""
        return str(self.trt.__version__)

    @property
    def backend(self) -> str:
        """The name in manifests: `tensorrt 10.3.0`."""
        return f"{self.trt.__name__.replace('_', '-')} {self.version}"

    @property
    def product(self) -> str:
        """The name for people: `TensorRT 10.3.0`."""
        return f"{'TensorRT-RTX' if self.is_rtx else 'TensorRT'} {self.version}"

    @property
    def has_complete_strong_typing(self) -> bool:
        """Return whether strong typing is complete, so that a failed strongly typed build is the graph's fault."""
        return self.is_rtx or release(self.version) >= _STRONG_COMPLETE

    @property
    def has_weak_typing(self) -> bool:
        """Return whether the builder can choose precisions itself. TensorRT 11 and TensorRT-RTX cannot."""
        return hasattr(self.trt.BuilderFlag, "FP16")

    @property
    def has_timing_cache(self) -> bool:
        """Return whether a timing cache has any effect."""
        return not self.is_rtx and hasattr(self.trt, "ITimingCache")

    @property
    def newest_opset(self) -> int:
        """The newest ONNX opset that it surely reads."""
        attention = self.is_rtx or release(self.version) >= _FIRST_WITH_ATTENTION
        return _OPSET_WITH_ATTENTION if attention else _OPSET_OF_10_3

    @property
    def compute_capabilities(self) -> tuple[str, ...]:
        """The GPU generations (`sm86`, …) that it compiles for without a GPU; none for TensorRT."""
        members = self.trt.ComputeCapability.__members__ if hasattr(self.trt, "ComputeCapability") else ()
        return tuple(name.lower() for name in members if name.startswith("SM"))

    @property
    def too_old(self) -> CompileError | None:
        """The error for a TensorRT without strongly typed networks, such as JetPack 6.0's 8.6; None for others."""
        if hasattr(self.trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED"):
            return None
        return CompileError(
            f"{self.product} has no strongly typed networks",
            fix="Use TensorRT 10.3 or newer (JetPack 6.1 or newer).",
        )

    def network_flags(self, typing: Literal["strong", "weak"]) -> int:
        """Return the flags for `create_network`.

        Raises:
            CompileError: this TensorRT has no networks with that typing.
        """
        if typing == "weak":
            if not self.has_weak_typing:
                raise CompileError(
                    f"{self.product} builds strongly typed networks only", fix="Leave out the option typing."
                )
            return 0
        if self.too_old is not None:
            raise self.too_old
        return 1 << int(self.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)

    def allow_precision(self, config: Any, precision: str) -> None:
        """Let a weakly typed build use the types of `precision`."""
        for name in _WEAK_FLAGS.get(precision, ()):
            config.set_flag(getattr(self.trt.BuilderFlag, name))

    def set_compute_capabilities(self, config: Any, names: tuple[str, ...]) -> None:
        """Compile for these GPU generations, whatever GPU this machine has.

        Raises:
            CompileError: this TensorRT builds for its own GPU only, or does not know one of them.
        """
        supported = self.compute_capabilities
        if not supported:
            raise CompileError(
                f"{self.product} builds for the GPU that it runs on, not for {', '.join(names)}",
                fix="Leave out the device and build on the target, or use the target tensorrt-rtx.",
            )
        for name in names:
            if name.lower() not in supported:
                fix = f"It compiles for {', '.join(supported)}."
                raise CompileError(f"{self.product} does not compile for {name}", fix=fix)
        config.num_compute_capabilities = len(names)
        for number, name in enumerate(names):
            config.set_compute_capability(self.trt.ComputeCapability.__members__[name.upper()], number)

    def set_hardware_level(self, config: Any, level: HardwareLevel) -> None:
        """Let the engine run on other GPUs too, without the kernels that only this GPU has.

        Raises:
            CompileError: this TensorRT has no such level.
        """
        if level == "none":
            return
        name = level.upper().replace("-", "_")
        member = None if self.is_rtx else getattr(self.trt.HardwareCompatibilityLevel, name, None)
        if member is None:
            raise CompileError(
                f"{self.product} has no hardware compatibility level {level}",
                fix="Leave out the option hardware_compatibility, and build on each kind of device.",
            )
        config.hardware_compatibility_level = member

    def is_quantizer(self, layer: Any) -> bool:
        """Return whether a layer of a parsed network quantizes or dequantizes."""
        return layer.type in (self.trt.LayerType.QUANTIZE, self.trt.LayerType.DEQUANTIZE)


def release(version: str) -> tuple[int, ...]:
    """Return the numbers of a version such as `10.16.2.8`; without numbers it is the oldest."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def trtexec_flags(version: str) -> tuple[str, ...]:
    """Return the flags for timing with a CUDA graph, a spinning wait, and copies.

    trtexec reports both times: `computeMs` on the device, and `latencyMs` that an application waits.
    """
    if release(version)[:1] >= (_FIRST_WITH_DEFAULTS,):
        return ("--includeDataTransfers",)
    return ("--useCudaGraph", "--useSpinWait")
