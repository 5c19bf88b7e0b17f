"""ONNX Runtime on the CPU and on NVIDIA GPUs. It runs `graph.onnx` itself, so that weights are stored once."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from vitdeploy import environment
from vitdeploy.environment import Host, available_cores
from vitdeploy.errors import CompileError, TargetUnavailable
from vitdeploy.evidence import Audit, Availability
from vitdeploy.graph.dialect import FLOAT32, Dialect, Numbers
from vitdeploy.graph.onnx_provider import CPU as CPU_PROVIDER
from vitdeploy.graph.onnx_provider import Provider
from vitdeploy.graph.onnx_session import OnnxSession
from vitdeploy.session import Session
from vitdeploy.targets import Bundle, Compiled, Target, WatchedSession
from vitdeploy.targets._onnxruntime.audit import audit_on_cpu, audit_on_cuda, audit_on_trt_rtx
from vitdeploy.targets._onnxruntime.availability import find_plugin, find_problem
from vitdeploy.targets._onnxruntime.devices import CPU, CUDA, DEVICES, TRT_RTX, RuntimeDevice, spell_device
from vitdeploy.targets._onnxruntime.pool import SessionPool
from vitdeploy.targets._tensorrt.gpu import find_gpu

_ON_THE_DEVICE = "Export a bundle here, and finish it on the machine with the GPU with: vitdeploy compile DIR"
_OVER_SSH = "Finish it on the machine with the GPU, from here with: vitdeploy compile DIR --host ssh://USER@HOST"


class OnnxRuntime(Target):
    """ONNX Runtime on `device`: CPU, cuda (the CUDA provider) or trt-rtx (TensorRT-RTX's plug-in).

    Attributes:
        tf32: on cuda, let float32 products be rounded to TF32, as TensorRT does.
        sdpa_kernel: on cuda, the attention kernels that ONNX Runtime may choose, as a sum of its bits (1 flash, 2
            memory-efficient, 4 TensorRT fused, 8 cuDNN flash, 16 unfused); 0 is its own choice.
    """

    precisions: ClassVar[tuple[str, ...]] = DEVICES[CPU].precisions
    devices: ClassVar[tuple[str, ...]] = (CUDA, TRT_RTX)
    title: ClassVar[str] = "ONNX Runtime"
    engine_module: ClassVar[str] = "onnxruntime"
    runs_suffix: ClassVar[str] = ".onnx"
    device: Annotated[str, AfterValidator(spell_device)] = CPU
    tf32: bool = True
    sdpa_kernel: Annotated[int, Field(ge=0, lt=1024)] = 0

    @model_validator(mode="after")
    def _options_fit_the_device(self) -> OnnxRuntime:
        if self.device != CUDA and (self.sdpa_kernel or not self.tf32):
            raise ValueError(f"tf32 and sdpa_kernel are for the device cuda, not for {self.device}: leave them out")
        return self

    @property
    def built_on_device(self) -> bool:
        """True on GPUs: what runs where is decided when the session opens, and only a GPU shows it."""
        return self.runs_on == "cuda"

    @property
    def runs_on(self) -> Literal["cpu", "cuda"]:
        """The type of the device."""
        return self._device.runs_on

    @property
    def _device(self) -> RuntimeDevice:
        """The facts about the device; those of the CPU for one that does not exist, which `unavailable` refuses."""
        return DEVICES.get(self.device, DEVICES[CPU])

    def list_precisions(self) -> tuple[str, ...]:
        """Return the precisions of the device."""
        return self._device.precisions

    def unavailable(self) -> Availability | None:
        """Return the reason if the library, the GPU or its provider is missing."""
        return find_problem(self.device, _ON_THE_DEVICE)

    def unavailable_on_device(self) -> Availability | None:
        """Return the reason, and what to do with a bundle that is here already."""
        return find_problem(self.device, _OVER_SSH)

    def refuse_numbers(self, numbers: Numbers, host: Host | None = None) -> str | None:
        """Refuse types for which this machine's GPU has no units."""
        needed = [(kind, self._device.first_with[kind]) for kind in numbers.types & self._device.first_with.keys()]
        if not needed or host is not None:
            return None
        try:
            gpu = find_gpu()
        except TargetUnavailable:
            return None
        for kind, first in needed:
            if int(gpu.sm.removeprefix("sm")) < first:
                return f"{gpu.name} ({gpu.sm}) has no {kind.upper()} units: the first generation with them is sm{first}"
        return None

    def dialect(self, host: Host | None = None) -> Dialect:
        """Return the operators for which the device's provider has the best kernels on the CPU of `host`."""
        saturates = self.runs_on == "cpu" and not (host or environment.host()).int8_dot_product
        return replace(self._device.dialect, int8_sums_saturate=saturates)

    def compile(
        self,
        bundle: Bundle,
        workdir: Path,  # noqa: ARG002  there is nothing to write
        report: Callable[[str], None] | None = None,  # noqa: ARG002  it takes seconds
    ) -> Compiled:
        """Run the graph once from where it is and audit it, so that a refusal or a fall-back to the CPU shows now.

        Raises:
            CompileError: ONNX Runtime refuses the graph, or leaves a part of the model to another device.
        """
        if self.device == TRT_RTX and not bundle.static:
            raise CompileError(
                "the device trt-rtx takes one shape only, not a range of batch or image sizes",
                fix="Give one size with --batch N and --image-size HxW, or use --target tensorrt-rtx.",
            )
        compiled = Compiled(
            bundle.graph.parent, bundle.graph.name, self.installed_engine(),
            input_names=bundle.input_names, output_names=bundle.output_names,
        )  # fmt: skip
        audit = self.audit(bundle, compiled)
        if audit.elsewhere:
            (site, how), others = next(iter(audit.elsewhere.items())), len(audit.elsewhere) - 1
            more = f" and {others} more" if others else ""
            raise CompileError(
                f"{site}{more} would run on the CPU, not on {self._device.place}: {how}",
                fix="Use --precision fp32 or fp16, or another --device.",
            )
        return replace(compiled, audit=audit)

    def audit(self, bundle: Bundle, compiled: Compiled) -> Audit:
        """Run once with profiling on, and match the executed kernels to the model by name."""
        if self.device == CPU:
            return audit_on_cpu(self.name, bundle, compiled, self.threads or available_cores())
        self.require()
        audit = audit_on_cuda if self.device == CUDA else audit_on_trt_rtx
        return audit(self.name, bundle, compiled, self._provider())

    def installed_engine(self) -> str:
        """Return `onnxruntime VERSION`, and the plug-in's if the device needs it."""
        if not super().installed_engine():
            return ""
        import onnxruntime as ort

        try:
            return self._provider().describe_engine(ort)
        except TargetUnavailable:
            return CPU_PROVIDER.describe_engine(ort)

    def open(self, compiled: Compiled, numbers: Numbers, threads: int | None) -> Session:
        """Open the graph with all optimisations. A session that would compute on another device is refused."""
        self.require()
        path, name = compiled.folder / compiled.runs, f"onnxruntime-{numbers.precision}"
        return OnnxSession(
            path, threads=threads or self.threads, name=name, outputs=compiled.output_names, provider=self._provider()
        )

    @property
    def runs_streams(self) -> bool:
        """True on the CPU."""
        return self.device == CPU

    def open_streams(self, compiled: Compiled, numbers: Numbers, threads: int | None, streams: int | None) -> Session:
        """Open a pool of sessions on the CPU, as ONNX Runtime has no streams of its own."""
        if streams is None or not self.runs_streams:
            return super().open_streams(compiled, numbers, threads, streams)
        return SessionPool(
            lambda share: self.open(compiled, numbers, share),
            streams=streams, threads=threads or self.threads or available_cores(),
        )  # fmt: skip

    def open_plain(self, graph: Path, threads: int | None, numbers: Numbers = FLOAT32) -> Session | None:
        """Open an ONNX file as it is, to compare with; None for another type than float32: the graph says its types."""
        if numbers != FLOAT32:
            return None
        return OnnxSession(graph, threads=threads, name=f"{self.name}-fp32 (plain)", provider=self._provider())

    def watch(self, bundle: Bundle, compiled: Compiled | None, tensors: Collection[str], work: Path) -> WatchedSession:
        """Open the graph with more outputs and all optimisations. Nothing is fused across a watched tensor."""
        if compiled is None and self.runs_on == "cuda":  # a bundle, on a machine that may have no GPU
            return super().watch(bundle, compiled, tensors, work)
        from vitdeploy.graph.extra_outputs import with_outputs

        self.require()
        path = work / "watched.onnx"
        available = with_outputs(bundle.graph, tensors, path)
        where = "" if self.device == CPU else f" on {self._device.place}"
        how = f"ONNX Runtime{where}, optimised as in use, but without fusions across the compared tensors"
        session = OnnxSession(path, threads=self.threads, provider=self._provider())
        return WatchedSession(session, available, "compiled", how)

    def _provider(self) -> Provider:
        """Return the execution provider of the device, with the options of the recipe.

        Raises:
            TargetUnavailable: it is a plug-in that is not installed.
        """
        if self.device == TRT_RTX:
            return find_plugin()
        if self.device == CUDA:
            options = {"use_tf32": str(int(self.tf32)), "sdpa_kernel": str(self.sdpa_kernel)}
            return Provider(self._device.provider, self._device.place, options)
        return CPU_PROVIDER
