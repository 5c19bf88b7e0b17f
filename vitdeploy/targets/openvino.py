"""OpenVINO: Intel CPUs, GPUs and NPUs. Its CPU plug-in runs on any x86 or Arm."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from vitdeploy import environment
from vitdeploy.environment import available_cores
from vitdeploy.errors import CompileError
from vitdeploy.evidence import Audit, Availability
from vitdeploy.graph.dialect import FLOAT32, Dialect, Int8AttentionKernel, Numbers
from vitdeploy.recipe import SizeRange
from vitdeploy.targets import Bundle, Compiled, Target, WatchedSession
from vitdeploy.targets._audit import make_audit
from vitdeploy.targets._openvino_kernels import (
    Kernel,
    count_norms,
    explain_norms,
    match_attention,
    match_gelus,
    match_linears,
)
from vitdeploy.targets._openvino_session import (
    Engine,
    OpenVINOSession,
    compile_error,
    compute_type,
    precision_hint,
    version,
)

_MODEL = "model.xml"
_INT8_ATTENTION = Int8AttentionKernel(values_alone=True, unsigned_probabilities=True)


class OpenVINO(Target):
    """Compile to OpenVINO IR; run on `device` (CPU, GPU, NPU, AUTO).

    Attributes:
        streams: the number of parallel inferences, where the device has a choice; None: by the hint (latency: 1).
        hint: what OpenVINO optimises for.
    """

    precisions: ClassVar[tuple[str, ...]] = (
        "fp32", "bf16", "int8", "int8-dynamic", "int8-weights", "int4-weights",
    )  # fmt: skip
    title: ClassVar[str] = "OpenVINO"
    engine_module: ClassVar[str] = "openvino"
    runs_suffix: ClassVar[str] = ".xml"
    device: str = "CPU"
    streams: Annotated[int, Field(ge=1)] | None = None
    hint: Literal["latency", "throughput"] = "latency"

    @model_validator(mode="after")
    def _options_fit_the_device(self) -> OpenVINO:
        if self.streams is not None and not self.device.startswith(("CPU", "GPU")):
            raise ValueError(f"streams cannot be chosen on {self.device}: leave them out, or use hint: throughput")
        if self.threads is not None and not self.device.startswith(("CPU", "AUTO")):
            raise ValueError(f"threads can be chosen on CPUs only, not on {self.device}: leave them out")
        return self

    def unavailable(self) -> Availability | None:
        """Return the reason if the library or the device is missing."""
        if find_spec("openvino") is None:
            return Availability(
                available=False, why="openvino is not installed", fix="pip install 'vitdeploy[openvino]'"
            )
        import openvino as ov

        here = [*ov.Core().available_devices, "AUTO"]
        accepted = {*here, *(device.partition(".")[0] for device in here)}
        for device in filter(None, re.split("[:,]", self.device)):  # AUTO:GPU,CPU names its candidates
            if device not in accepted:
                return Availability(
                    available=False,
                    why=f"OpenVINO finds no device {device} here (it finds {', '.join(here)})",
                    fix="Install the device's driver, or use --device CPU.",
                )
        return None

    def refuse_numbers(self, numbers: Numbers, host: environment.Host | None = None) -> str | None:
        """Refuse types for which the CPU has no kernels: OpenVINO would compute in float32 without a message."""
        cpu = host or environment.host()
        lacking = ""
        if "bf16" in numbers.types and not cpu.bfloat16_dot_product:
            lacking = "no bfloat16 (avx512_bf16 or amx_bf16)"
        elif numbers.dynamic and not cpu.int8_dot_product:
            lacking = "no INT8 dot products (VNNI or AMX)"
        if not lacking or not self.device.startswith("CPU"):
            return None
        return f"{'that' if host else 'this'} CPU has {lacking}, and OpenVINO would compute in float32"

    def dialect(self, host: environment.Host | None = None) -> Dialect:
        """Return primitives: OpenVINO's import of `Attention` adds a kernel for each site with a bias."""
        on_cpu, cpu = self.device.startswith("CPU"), host or environment.host()
        return Dialect(
            opset=20,
            attention="primitives",
            int8_attention=_INT8_ATTENTION if on_cpu and cpu.int8_products_on_x86 else None,
            partial_int8_attention=on_cpu,
            splits_joined_codes=True,
            overwrites_queries=True,
            norms_of_lists=True,
            scales_norms_apart=on_cpu,
            int8_sums_saturate=not cpu.int8_dot_product,
        )

    def compile(
        self,
        bundle: Bundle,
        workdir: Path,
        report: Callable[[str], None] | None = None,  # noqa: ARG002  it takes seconds
    ) -> Compiled:
        """Convert to IR, compile once, and audit the compiled model.

        Raises:
            CompileError: OpenVINO refuses the graph.
        """
        import openvino as ov

        if "NPU" in self.device and not bundle.batch.static:
            raise CompileError(
                f"NPUs take static shapes only, not a batch of {bundle.batch}", fix="Give one size with --batch N."
            )
        if "NPU" in self.device and bundle.sizes is not None:
            raise CompileError(
                f"NPUs take static shapes only, not images of {bundle.sizes}", fix="Give one size: --image-size HxW."
            )
        try:
            model = ov.Core().read_model(bundle.graph)
            if bundle.sizes is not None:
                _bound_image_size(model, bundle.sizes)
            # By default it would store float16 weights, which save disk space but change the numbers.
            ov.save_model(model, workdir / _MODEL, compress_to_fp16=False)
        except RuntimeError as error:
            raise compile_error(error) from error
        compiled = Compiled(
            workdir, _MODEL, version(), input_names=bundle.input_names, output_names=bundle.output_names
        )
        return replace(compiled, audit=self.audit(bundle, compiled))

    def audit(self, bundle: Bundle, compiled: Compiled) -> Audit:
        """Read the type, precision and original nodes of each kernel from the runtime model."""
        threads = self.threads or available_cores()
        path, engine = compiled.folder / compiled.runs, self.engine(bundle.numbers, threads)
        model = engine.compile(path)
        rounds = bundle.numbers.dynamic and _rounds_activations(path, model, engine, bundle)
        kernels = [Kernel(op, rounds=rounds) for op in model.get_runtime_model().get_ordered_ops()]
        fused, reasons = match_attention(bundle.structure, kernels, threads)
        products = match_linears(bundle.structure, kernels)
        norms = count_norms(bundle.structure, kernels)
        return make_audit(
            self.name, bundle, compiled, fused=fused, reasons=reasons, norms=norms, threads=threads,
            norm_reasons=explain_norms(bundle.structure, kernels), gelus=match_gelus(bundle.structure, kernels),
            layers={name: kernel.precision for name, kernel in products.items()},
            stored={name: kernel.stored for name, kernel in products.items() if kernel.stored is not None},
            doubts=_find_doubts(bundle.numbers, model, rounds=rounds),
        )  # fmt: skip

    def installed_engine(self) -> str:
        """Return `openvino VERSION`."""
        return version() if find_spec("openvino") is not None else ""

    def load_engine(self) -> None:
        """Load OpenVINO and its plug-ins."""
        import openvino as ov

        ov.Core().available_devices  # noqa: B018  loads the plug-ins

    def open(self, compiled: Compiled, numbers: Numbers, threads: int | None) -> OpenVINOSession:
        """Open with the hint. For latency that is one stream with all threads."""
        self.require()
        return OpenVINOSession(
            compiled.folder / compiled.runs, self.engine(numbers, threads),
            inputs=compiled.input_names, outputs=compiled.output_names,
        )  # fmt: skip

    @property
    def runs_streams(self) -> bool:
        """True on CPUs, where threads are shared among streams."""
        return self.device.startswith("CPU")

    @property
    def hints_throughput(self) -> bool:
        """True: the hint THROUGHPUT."""
        return True

    def open_streams(
        self, compiled: Compiled, numbers: Numbers, threads: int | None, streams: int | None
    ) -> OpenVINOSession:
        """Open with so many streams; None: as many as the hint THROUGHPUT chooses."""
        hint = "throughput" if streams is None else "latency"
        return self.model_copy(update={"streams": streams, "hint": hint}).open(compiled, numbers, threads)

    def watch(self, bundle: Bundle, compiled: Compiled | None, tensors: Collection[str], work: Path) -> WatchedSession:
        """Open the compiled model with more outputs. Nothing is fused across one of them."""
        if compiled is None:
            return super().watch(bundle, compiled, tensors, work)
        import openvino as ov

        self.require()
        model = ov.Core().read_model(compiled.folder / compiled.runs)
        names = {name for op in model.get_ordered_ops() for output in op.outputs() for name in output.get_names()}
        outputs = compiled.output_names or tuple(output.get_any_name() for output in model.outputs)
        available = names & set(tensors)
        also = {
            alias: name
            for name, output in zip(outputs, model.outputs, strict=True)
            for alias in output.get_names() & available
        }
        added = sorted(available - set(also))
        model.add_outputs(added)
        session = OpenVINOSession(
            model, self.engine(), name="openvino",
            inputs=compiled.input_names, outputs=(*outputs, *added), also=also,
        )  # fmt: skip
        how = "OpenVINO, compiled as in use, but without fusions across the compared tensors"
        return WatchedSession(session, frozenset(available), "compiled", how)

    def open_plain(self, graph: Path, threads: int | None, numbers: Numbers = FLOAT32) -> OpenVINOSession | None:
        """Open an ONNX file as it is, to compare with; None if the CPU has no units for these numbers."""
        if self.refuse_numbers(numbers):
            return None
        return OpenVINOSession(graph, self.engine(numbers, threads), name=f"openvino-{numbers.precision} (plain)")

    def engine(self, numbers: Numbers = FLOAT32, threads: int | None = None) -> Engine:
        """Return the configuration for OpenVINO; `threads` wins over the recipe's."""
        return Engine(self.device, threads or self.threads, self.streams, self.hint, numbers)


def _bound_image_size(model: Any, sizes: SizeRange) -> None:
    """Give height and width of the image their bounds, beyond which OpenVINO then refuses an image."""
    import openvino as ov

    shape = model.input(0).get_partial_shape()
    for axis, (low, high) in enumerate(zip(sizes.min, sizes.max, strict=True), start=2):
        shape[axis] = ov.Dimension(low, high)
    model.reshape({0: shape})


def _rounds_activations(path: Path, model: Any, engine: Engine, bundle: Bundle) -> bool:
    """Return whether activations are rounded to int8 at run time. Only the outputs show it."""
    image = np.random.default_rng(0).standard_normal(bundle.input_shape).astype(np.float32)
    image = image.astype(model.input(0).get_element_type().to_dtype())
    exact = replace(engine, numbers=replace(engine.numbers, dynamic=False)).compile(path)
    feed = dict(enumerate(bundle.feed(image).values()))
    outputs, exact_outputs = (m.create_infer_request().infer(feed)[0] for m in (model, exact))
    return not np.array_equal(outputs, exact_outputs)


def _find_doubts(numbers: Numbers, model: Any, *, rounds: bool) -> Iterator[str]:
    requested, effective = compute_type(numbers), precision_hint(model)
    if effective != requested:
        yield f"the engine computes in {effective}, although {requested} was requested"
    if numbers.dynamic and not rounds:
        yield "the engine unpacks the weights and computes in float32, although int8 products were requested"
