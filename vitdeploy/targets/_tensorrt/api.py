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

Read from the Python bindings of each version; tests/fakes/surface.json is the record. What can be asked of the module
is asked with `hasattr`; enum members are used, never their numbers, which moved between 10 and 11. Two things are known
by version alone: from where on strong typing is complete (10.12, TensorRT's release notes) and which opset is read.
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
_DEFAULTS_MEASURE = 11  # from this trtexec on, CUDA graph, spin wait and no data transfers are what it does unasked

_WEAK_FLAGS = {"fp32": (), "fp16": ("FP16",), "bf16": ("BF16",), "int8": ("INT8", "FP16"), "fp8": ("FP8", "FP16")}
"""What each precision allows a weakly typed build to use, beside FP32."""


@dataclass(frozen=True)
class Api:
    """A loaded `tensorrt` or `tensorrt_rtx`, asked what it can do."""

    trt: ModuleType

    @property
    def is_rtx(self) -> bool:
        """Whether it is TensorRT-RTX, which compiles ahead of time."""
        return self.trt.__name__ == "tensorrt_rtx"

    @property
    def version(self) -> str:
        """Its version in full: an engine belongs to exactly one."""
        return str(self.trt.__version__)

    @property
    def backend(self) -> str:
        """As manifests name it: `tensorrt 10.3.0`."""
        return f"{self.trt.__name__.replace('_', '-')} {self.version}"

    @property
    def product(self) -> str:
        """As people name it: `TensorRT 10.3.0`."""
        return f"{'TensorRT-RTX' if self.is_rtx else 'TensorRT'} {self.version}"

    @property
    def strong_typing_is_complete(self) -> bool:
        """Whether a strongly typed build that fails says something about the graph and not about TensorRT."""
        return self.is_rtx or release(self.version) >= _STRONG_COMPLETE

    @property
    def has_weak_typing(self) -> bool:
        """Whether precisions can still be asked of the builder: gone in 11 and in TensorRT-RTX."""
        return hasattr(self.trt.BuilderFlag, "FP16")

    @property
    def keeps_timings(self) -> bool:
        """Whether a timing cache does anything."""
        return not self.is_rtx and hasattr(self.trt, "ITimingCache")

    @property
    def newest_opset(self) -> int:
        """The newest ONNX opset that can be relied on."""
        attention = self.is_rtx or release(self.version) >= _FIRST_WITH_ATTENTION
        return _OPSET_WITH_ATTENTION if attention else _OPSET_OF_10_3

    @property
    def compute_capabilities(self) -> tuple[str, ...]:
        """GPU generations that can be compiled for without having one (`sm86`, ..); none for TensorRT, which cannot."""
        members = self.trt.ComputeCapability.__members__ if hasattr(self.trt, "ComputeCapability") else ()
        return tuple(name.lower() for name in members if name.startswith("SM"))

    def network_flags(self, typing: Literal["strong", "weak"]) -> int:
        """The bits of `create_network`.

        Raises:
            CompileError: this TensorRT has no networks of that kind.
        """
        if typing == "weak":
            if not self.has_weak_typing:
                raise CompileError(
                    f"{self.product} builds strongly typed networks only", fix="Leave the option typing out."
                )
            return 0
        flag = getattr(self.trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        if flag is None:
            raise CompileError(
                f"{self.product} has no strongly typed networks",
                fix="Use TensorRT 10.3 or newer (JetPack 6.1 or newer).",
            )
        return 1 << int(flag)

    def allow_precision(self, config: Any, precision: str) -> None:
        """Let a weakly typed build use what `precision` stands for."""
        for name in _WEAK_FLAGS.get(precision, ()):
            config.set_flag(getattr(self.trt.BuilderFlag, name))

    def set_compute_capabilities(self, config: Any, names: tuple[str, ...]) -> None:
        """Compile for these GPU generations, whatever is in this machine.

        Raises:
            CompileError: this TensorRT builds for its own GPU only, or does not know one of them.
        """
        known = self.compute_capabilities
        if not known:
            raise CompileError(
                f"{self.product} builds for the GPU that it runs on, not for {', '.join(names)}",
                fix="Leave the device out and build on the target, or use the target tensorrt-rtx.",
            )
        for name in names:
            if name.lower() not in known:
                raise CompileError(f"{self.product} does not compile for {name}", fix=f"It knows {', '.join(known)}.")
        config.num_compute_capabilities = len(names)
        for number, name in enumerate(names):
            config.set_compute_capability(self.trt.ComputeCapability.__members__[name.upper()], number)

    def set_hardware_level(self, config: Any, level: HardwareLevel) -> None:
        """Let the engine run on other GPUs than this one, at the price of kernels that only this one has.

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
                fix="Leave the option hardware_compatibility out and build on each kind of device.",
            )
        config.hardware_compatibility_level = member

    def is_quantizer(self, layer: Any) -> bool:
        """Whether a layer of a parsed network quantizes or dequantizes."""
        return layer.type in (self.trt.LayerType.QUANTIZE, self.trt.LayerType.DEQUANTIZE)


def release(version: str) -> tuple[int, ...]:
    """`10.16.2.8` as numbers; what does not start with one is older than everything."""
    found = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def trtexec_with_transfers(version: str) -> tuple[str, ...]:
    """The flags that make trtexec time kernels in CUDA graphs, spinning, and inputs and outputs on their way as well.

    It tells both apart: `computeMs` on the device, `latencyMs` as an application waits.
    """
    if release(version)[:1] >= (_DEFAULTS_MEASURE,):
        return ("--includeDataTransfers",)
    return ("--useCudaGraph", "--useSpinWait")
