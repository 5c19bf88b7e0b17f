"""ONNX Runtime on the CPU. It runs `graph.onnx` itself, so that weights are stored once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

import numpy as np

from vitdeploy.artifact.temporary import scratch_folder
from vitdeploy.environment import available_cores
from vitdeploy.evidence import Audit, Availability
from vitdeploy.graph.dialect import Dialect, Numbers
from vitdeploy.graph.onnx_session import OnnxSession
from vitdeploy.graph.structure import Structure
from vitdeploy.session import Session
from vitdeploy.targets import Bundle, Compiled, Target, WatchedSession
from vitdeploy.targets._audit import is_named_after, make_audit

_FUSED = {"MultiHeadAttention", "Attention", "QAttention"}
_NORMS = {"LayerNormalization", "SkipLayerNormalization", "SimplifiedLayerNormalization"}
_INT8 = {
    "ConvInteger", "DynamicQuantizeMatMul", "MatMulInteger", "MatMulIntegerToFloat", "QGemm", "QLinearConv",
    "QLinearMatMul",
}  # fmt: skip
_PACKED = "MatMulNBits"
_FLOAT = {_PACKED, "MatMul", "Gemm", "FusedMatMul", "FusedGemm", "Conv", "FusedConv", "ConvTranspose", "Einsum"}
_LEAST_POINTWISE = 32
"""With fewer channels the moves around the integer product cost what it gains, or more: benchmarks/pointwise.md."""
_FLOAT_TYPES = {"float": "fp32", "float16": "fp16", "bfloat16": "bf16"}


class OnnxRuntime(Target):
    """ONNX Runtime's CPU provider."""

    precisions: ClassVar[tuple[str, ...]] = ("fp32", "int8", "int8-dynamic", "int8-weights", "int4-weights")
    title: ClassVar[str] = "ONNX Runtime"
    engine_module: ClassVar[str] = "onnxruntime"
    runs_suffix: ClassVar[str] = ".onnx"
    device: str = "CPU"

    def unavailable(self) -> Availability | None:
        """Return the reason if the library is missing, or the device is not the CPU."""
        if find_spec("onnxruntime") is None:
            return Availability(
                available=False, why="onnxruntime is not installed", fix="pip install 'vitdeploy[onnxruntime]'"
            )
        if self.device != "CPU":
            return Availability(
                available=False, why=f"device {self.device} is not supported yet", fix="Use --device CPU."
            )
        return None

    def dialect(self) -> Dialect:
        """Return its own attention and integer operators, which it would not fuse by itself.

        q, k and v have a linear each, and MultiHeadAttention reads their outputs directly.
        """
        return Dialect(
            opset=20,
            attention="multihead",
            int8_linears="integer",
            packed_qkv=False,
            int8_weight_group=64,
            least_pointwise=_LEAST_POINTWISE,
        )

    def compile(
        self,
        bundle: Bundle,
        workdir: Path,  # noqa: ARG002  there is nothing to write
        report: Callable[[str], None] | None = None,  # noqa: ARG002  it takes seconds
    ) -> Compiled:
        """Run the graph once to audit it, so that a refusal shows now. It runs from where it is.

        Raises:
            CompileError: ONNX Runtime refuses the graph.
        """
        compiled = Compiled(
            bundle.graph.parent, bundle.graph.name, self.installed_engine(),
            input_names=bundle.input_names, output_names=bundle.output_names,
        )  # fmt: skip
        return replace(compiled, audit=self.audit(bundle, compiled))

    def audit(self, bundle: Bundle, compiled: Compiled) -> Audit:
        """Run once with profiling on, and match the executed kernels to the model by name."""
        threads = self.threads or available_cores()
        kernels = _profile_kernels(compiled.folder / compiled.runs, bundle, threads)
        fused, reasons = _match_attention(bundle.structure, kernels)
        products = _match_linears(bundle.structure, kernels)
        layers = {name: _product_type(kernel) for name, kernel in products.items()}
        stored = _read_stored_types(compiled.folder / compiled.runs, products, bundle.numbers)
        norms = sum(kernel.op in _NORMS for kernel in kernels)
        return make_audit(
            self.name, bundle, compiled, fused=fused, reasons=reasons, layers=layers, norms=norms, stored=stored,
            norm_reasons=_explain_norms(bundle.structure, kernels), threads=threads,
        )  # fmt: skip

    def open(self, compiled: Compiled, numbers: Numbers, threads: int | None) -> Session:
        """Open the graph with all optimisations."""
        self.require()
        path, name = compiled.folder / compiled.runs, f"onnxruntime-{numbers.precision}"
        return OnnxSession(path, threads=threads or self.threads, name=name, outputs=compiled.output_names)

    def open_plain(self, graph: Path, threads: int | None) -> Session:
        """Open an ONNX file as it is, in float32, to compare with."""
        return OnnxSession(graph, threads=threads, name=f"{self.name}-fp32 (plain)")

    def watch(self, bundle: Bundle, compiled: Compiled | None, tensors: Collection[str], work: Path) -> WatchedSession:  # noqa: ARG002
        """Open the graph with more outputs and all optimisations. Nothing is fused across a watched tensor."""
        from vitdeploy.graph.extra_outputs import with_outputs

        self.require()
        path = work / "watched.onnx"
        available = with_outputs(bundle.graph, tensors, path)
        how = "ONNX Runtime, optimised as in use, but without fusions across the compared tensors"
        return WatchedSession(OnnxSession(path, threads=self.threads), available, "compiled", how)


@dataclass(frozen=True)
class _Kernel:
    """An executed kernel: its operator, node name and output type."""

    op: str
    name: str
    output: str


def _profile_kernels(path: Path, bundle: Bundle, threads: int) -> list[_Kernel]:
    """Return the kernels of one inference, from ONNX Runtime's own profile."""
    with (
        scratch_folder("profile") as folder,
        OnnxSession(path, threads=threads, profile=folder / "run") as session,
    ):
        image = np.zeros(bundle.input_shape, np.uint8 if session.takes_bytes else np.float32)
        session.run(bundle.feed(image))
        events = session.read_profile()
    kernels = []
    for event in events:
        name, arguments = event.get("name", ""), event.get("args", {})
        if event.get("cat") == "Node" and name.endswith("_kernel_time"):
            outputs = arguments.get("output_type_shape") or [{}]
            kernels.append(_Kernel(arguments["op_name"], name.removesuffix("_kernel_time"), next(iter(outputs[0]), "")))
    return kernels


def _match_attention(structure: Structure, kernels: list[_Kernel]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the fused sites with their operator, and the other sites with a reason."""
    fused, reasons = {}, {}
    for site in structure.attention:
        parts = [k for k in kernels if any(is_named_after(k.name, node) for node in site.nodes)]
        whole = next((k for k in parts if k.op in _FUSED), None)
        if whole is not None:
            fused[site.name] = whole.op
        elif parts:
            operators = " + ".join(sorted({k.op for k in parts}))
            reasons[site.name] = f"runs as {operators}" + (f": {site.refused}" if site.refused else "")
    return fused, reasons


def _explain_norms(structure: Structure, kernels: list[_Kernel]) -> dict[str, str]:
    """Return the operators of the LayerNorms that run as other operators than norms."""
    reasons = {}
    for norm in structure.norms:
        operators = {k.op for k in kernels if any(is_named_after(k.name, node) for node in norm.nodes)}
        if operators and not operators & _NORMS:
            reasons[norm.name] = f"runs as {' + '.join(sorted(operators))}"
    return reasons


def _match_linears(structure: Structure, kernels: list[_Kernel]) -> dict[str, _Kernel]:
    """Return the kernel that multiplies for each linear and each other product with weights."""
    matches: dict[str, _Kernel] = {}
    for linear in structure.weighted:
        for kernel in kernels:
            if kernel.op in _INT8 | _FLOAT and any(is_named_after(kernel.name, node) for node in linear.nodes):
                matches[linear.name] = kernel
                break
    return matches


def _read_stored_types(path: Path, products: Mapping[str, _Kernel], numbers: Numbers) -> dict[str, str]:
    """Return the type of the codes that a linear's kernel unpacks, by linear.

    It is not in the profile but in the file. A device has no onnx to read the file. There the type is the one of the
    bundle's precision: the manifest's hash proves that this is its graph.
    """
    packed = {name: kernel.name for name, kernel in products.items() if kernel.op == _PACKED}
    if not packed:
        return {}
    if find_spec("onnx") is None:
        return dict.fromkeys(packed, numbers.weights)
    import onnx

    nodes = onnx.load(path, load_external_data=False).graph.node
    bits = {node.name: a.i for node in nodes if node.op_type == _PACKED for a in node.attribute if a.name == "bits"}
    widths = {
        name: next((width for node, width in bits.items() if is_named_after(kernel, node)), None)
        for name, kernel in packed.items()
    }
    return {name: f"int{width}" if width is not None else "other" for name, width in widths.items()}


def _product_type(kernel: _Kernel) -> str:
    return "int8" if kernel.op in _INT8 else _FLOAT_TYPES.get(kernel.output, "other")
