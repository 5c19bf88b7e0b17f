"""TensorRT, for Jetson and discrete GPUs: engines on the device, rehearsed bundles elsewhere."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator

from vitdeploy import frozen
from vitdeploy.artifact.temporary import scratch_folder
from vitdeploy.environment import Host, l4t_release
from vitdeploy.errors import CompileError, TargetUnavailable
from vitdeploy.evidence import Audit, Availability
from vitdeploy.graph.dialect import Dialect, Numbers
from vitdeploy.graph.structure import Structure
from vitdeploy.session import Session
from vitdeploy.targets import Bundle, Compiled, ExternalTimes, Target, WatchedSession
from vitdeploy.targets._audit import make_audit
from vitdeploy.targets._recording import CompilerRecorder
from vitdeploy.targets._tensorrt.api import Api, release
from vitdeploy.targets._tensorrt.engine import audit_engine
from vitdeploy.targets._tensorrt.gpu import find_gpu
from vitdeploy.targets._tensorrt.known_faults import (
    KnownFault,
    find_faults,
    list_faults,
    list_preferred_forms,
    list_safe_forms,
)
from vitdeploy.targets._tensorrt.options import DIALECT, FIRST_WITH, EngineOptions, refuse_dla
from vitdeploy.targets._tensorrt.recorder import EngineRecorder
from vitdeploy.targets._tensorrt.session import open_engine
from vitdeploy.targets._tensorrt.trtexec import time_with_trtexec

_REHEARSED_FOR = {"fp8": "sm89"}
"""GPU generations that rehearsals compile for, by precision: Ada for these, Ampere (as Jetson Orin) for all others."""

_SYSTEM, _PACKAGE = Path("/usr/lib"), Path("dist-packages/tensorrt")
"""JetPack's package python3-libnvinfer installs TensorRT's Python package there."""

_REHEARSAL = "it finds parse errors and lost fusions, it does not prove what TensorRT does on the device"


class TensorRT(EngineOptions, Target):
    """Compile on the machine with the GPU, for that GPU.

    Attributes:
        rehearsal: whether other machines compile with TensorRT-RTX once, to find what fails or does not fuse.
    """

    precisions: ClassVar[tuple[str, ...]] = ("fp16", "fp32", "bf16", "int8", "fp8")
    title: ClassVar[str] = "TensorRT"
    engine_module: ClassVar[str] = "tensorrt"
    runs_suffix: ClassVar[str] = ".plan"
    watches_alone: ClassVar[bool] = True
    is_recorded: ClassVar[bool] = True
    install_hint: ClassVar[str] = (
        "sudo apt-get install python3-libnvinfer, and a virtual environment that sees it "
        "(python3 -m venv --system-site-packages)."
    )
    device: Annotated[str, AfterValidator(refuse_dla)] = "GPU"
    rehearsal: bool = True

    @property
    def built_on_device(self) -> bool:
        """True: an engine belongs to the GPU that built it."""
        return True

    @property
    def runs_on(self) -> Literal["cpu", "cuda"]:
        """The GPU."""
        return "cuda"

    def unavailable(self) -> Availability | None:
        """Return the reason if there is no library or no GPU, or if another device is requested."""
        fix = "Export a bundle here, and finish it on the device with: vitdeploy compile DIR"
        return self._find_problem(no_library=self.install_hint if l4t_release() else fix, no_gpu=fix)

    def unavailable_on_device(self) -> Availability | None:
        """Return the reason, and what to do on a device that has a bundle already."""
        over_ssh = "From another machine, compile it over SSH: vitdeploy compile DIR --host ssh://USER@DEVICE"
        jetson = self.install_hint if l4t_release() else f"On a Jetson: {self.install_hint} {over_ssh}"
        return self._find_problem(no_library=jetson, no_gpu=over_ssh)

    def _find_problem(self, *, no_library: str, no_gpu: str) -> Availability | None:
        if find_spec("tensorrt") is None:
            hidden = _find_hidden_library()
            if hidden is not None:
                why = f"TensorRT is in {hidden.parent}, which the virtual environment {sys.prefix} does not see"
                fix = f"Let it see the system's packages: python3 -m venv --system-site-packages {sys.prefix}"
                return Availability(available=False, why=why, fix=fix)
            return Availability(available=False, why="TensorRT is not installed here", fix=no_library)
        if self.device.upper() != "GPU":
            why = f"TensorRT builds for the GPU of its machine, not for {self.device}"
            return Availability(available=False, why=why, fix="Leave --device out, or use --target tensorrt-rtx.")
        try:
            find_gpu()
        except TargetUnavailable as error:
            return Availability(available=False, why=f"this machine has no NVIDIA GPU ({error.message})", fix=no_gpu)
        try:
            too_old = Api(_import_tensorrt()).too_old
        except TargetUnavailable as error:
            return Availability(available=False, why=error.message, fix=error.fix)
        return None if too_old is None else Availability(available=False, why=too_old.message, fix=too_old.fix)

    def refuse_numbers(self, numbers: Numbers, host: Host | None = None) -> str | None:
        """Refuse types for which this machine's GPU has no units. Nothing is known of another machine's."""
        try:
            generation = None if host is not None else find_gpu().sm
        except TargetUnavailable:
            generation = None
        number = (generation or "").removeprefix("sm")
        for kind in sorted(numbers.types & FIRST_WITH.keys()):
            if number.isdecimal() and int(number) < FIRST_WITH[kind]:
                return (
                    f"this GPU ({generation}) has no {kind.upper()} units: the first generation with them is "
                    f"sm{FIRST_WITH[kind]}"
                )
        return None

    def dialect(self, host: Host | None = None) -> Dialect:  # noqa: ARG002  the GPU computes
        """Return plain primitives, see `DIALECT`."""
        return DIALECT

    def compile(self, bundle: Bundle, workdir: Path, report: Callable[[str], None] | None = None) -> Compiled:
        """Build the engine for this machine's GPU, and audit it."""
        compiled = self.build(_import_tensorrt(), bundle, workdir, gpu=find_gpu(), report=report)
        return replace(compiled, audit=self.audit(bundle, compiled))

    def rehearse(self, bundle: Bundle) -> Audit | None:
        """Compile with TensorRT-RTX, if it is installed, and discard the engine."""
        if not self.rehearsal or find_spec("tensorrt_rtx") is None:
            return None
        import tensorrt_rtx as trt

        generation = _REHEARSED_FOR.get(bundle.numbers.products, "sm86")
        options = EngineOptions(optimization_level=self.optimization_level)  # the others are not TensorRT-RTX's
        with scratch_folder("rehearsal") as folder:
            try:
                compiled = options.build(trt, bundle, folder, compute_capabilities=(generation,))
                audit = audit_engine(self.name, bundle, compiled, evidence="rehearsed")
                doubt = f"rehearsed with {Api(trt).product} for {generation}: {_REHEARSAL}"
            except CompileError as error:
                doubt = f"the rehearsal failed, and the device will probably refuse the graph too: {error}"
                reasons = {site.name: "the rehearsal failed" for site in bundle.structure.attention}
                nothing = Compiled(folder, "", Api(trt).backend)
                audit = make_audit(
                    self.name, bundle, nothing, fused={}, reasons=reasons, layers={}, norms=0, evidence="rehearsed"
                )
        return frozen.replace(audit, doubts=(doubt, *audit.doubts))

    def recorder(self, numbers: Numbers) -> CompilerRecorder | None:
        """Return TensorRT for a recording, whether or not there is a GPU."""
        if find_spec("tensorrt") is None:
            return None
        return EngineRecorder(_import_tensorrt(), self.name, EngineOptions(), numbers)

    def known_faults(self, structure: Structure | None = None, *, takes_batch_one: bool = True) -> tuple[str, ...]:
        """Return the public reports that fit; of all versions if none is installed, because a bundle may go there."""
        if structure is not None:
            faults = self._find_faults(structure, takes_batch_one=takes_batch_one)
        else:
            version, generation = _installed()
            faults = [] if version is None else list_faults(version, generation)
        return tuple(fault.describe() for fault in faults)

    def reported_safe_forms(self, structure: Structure, *, takes_batch_one: bool = True) -> tuple[str, ...]:
        """Return the safe forms that helped in the public reports that fit, in the order to try."""
        return list_safe_forms(self._find_faults(structure, takes_batch_one=takes_batch_one))

    def preferred_safe_forms(self, structure: Structure, *, takes_batch_one: bool = True) -> dict[str, str]:
        """Return the safe forms to build before the plain form, in order, each with the report that it is for."""
        return list_preferred_forms(self._find_faults(structure, takes_batch_one=takes_batch_one))

    def _find_faults(self, structure: Structure, *, takes_batch_one: bool) -> list[KnownFault]:
        version, generation = _installed()
        return find_faults(
            structure.risky_forms, release=version, generation=generation, takes_batch_one=takes_batch_one
        )

    def audit(self, bundle: Bundle, compiled: Compiled) -> Audit:
        """Read the stored layer plan of the engine."""
        return audit_engine(self.name, bundle, compiled)

    def installed_engine(self) -> str:
        """Return `tensorrt VERSION`."""
        try:
            return Api(_import_tensorrt()).backend
        except TargetUnavailable:
            return ""

    def open(self, compiled: Compiled, numbers: Numbers, threads: int | None) -> Session:  # noqa: ARG002  no CPU threads
        """Open the engine on this GPU. An engine for another TensorRT or GPU is refused."""
        return open_engine(_import_tensorrt(), compiled, f"{self.name}-{numbers.precision}")

    def watch(self, bundle: Bundle, compiled: Compiled | None, tensors: Collection[str], work: Path) -> WatchedSession:
        """Build the graph again with more outputs, on this GPU. Nothing is fused across one of them."""
        if compiled is None or self.cannot_run() is not None:
            return super().watch(bundle, compiled, tensors, work)
        trt = _import_tensorrt()
        folder = Path(tempfile.mkdtemp(prefix="watched-", dir=work))
        built = self.build(trt, bundle, folder, gpu=find_gpu(), watched=tensors)
        session = open_engine(trt, built, f"{self.name}-{bundle.numbers.precision}")
        how = (
            f"{Api(trt).product}, built again for this GPU with these tensors as outputs: nothing is fused across them"
        )
        return WatchedSession(session, frozenset(tensors) & frozenset(built.output_names), "compiled", how)

    def command_to_try(self, input_name: str, shape: tuple[int, ...], *, static: bool) -> str | None:
        """Return the trtexec command that runs the engine."""
        sizes = "x".join(map(str, shape))
        return "trtexec --loadEngine=engine.plan" + ("" if static else f" --shapes={input_name}:{sizes}")

    def command_to_build(self, input_name: str, shapes: Sequence[tuple[int, ...]]) -> str | None:
        """Return the trtexec command that builds the engine, in the precisions that the graph has."""
        sizes = (f"{input_name}:{'x'.join(map(str, shape))}" for shape in shapes)
        flags = [f"--{name}Shapes={size}" for name, size in zip(("min", "opt", "max"), sizes, strict=False)]
        return " ".join(["trtexec --onnx=graph.onnx --saveEngine=engine.plan --stronglyTyped", *flags])

    def time_externally(
        self, compiled: Compiled, shapes: Mapping[str, tuple[int, ...]], seconds: float
    ) -> ExternalTimes | None:
        """Measure times with trtexec, which is part of JetPack: an independent stopwatch for the same engine."""
        return time_with_trtexec(compiled.folder, compiled.runs, shapes, seconds)


def _find_hidden_library() -> Path | None:
    """Return the system's TensorRT for this version of Python, if this is a virtual environment that hides it."""
    if sys.prefix == sys.base_prefix:
        return None
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return next((path for name in (version, "python3") if (path := _SYSTEM / name / _PACKAGE).exists()), None)


def _installed() -> tuple[tuple[int, ...] | None, str | None]:
    """Return TensorRT's version and the GPU's generation, each None if there is none here."""
    try:
        version = release(_import_tensorrt().__version__)
    except TargetUnavailable:
        version = None
    try:
        generation = find_gpu().sm
    except TargetUnavailable:
        generation = None
    return version, generation


def _import_tensorrt() -> ModuleType:
    try:
        import tensorrt as trt
    except (ImportError, OSError) as error:
        raise TargetUnavailable(
            f"TensorRT does not load: {error}", fix="Install JetPack's python3-libnvinfer, or TensorRT's full wheels."
        ) from None
    return trt  # type: ignore[no-any-return]  # it has no stubs
