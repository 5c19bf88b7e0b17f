"""ONNX Runtime on the CPU: runs `graph.onnx` itself, so that weights are stored once."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

import numpy as np

from vitdeploy.environment import available_cores
from vitdeploy.errors import CompileError
from vitdeploy.evidence import Audit, Availability
from vitdeploy.graph.dialect import Dialect, Numbers
from vitdeploy.graph.onnx_session import OnnxSession
from vitdeploy.graph.structure import Structure
from vitdeploy.session import Session
from vitdeploy.targets import Bundle, Compiled, Target, Watched
from vitdeploy.targets._audit import audited, belongs

_FUSED = {"MultiHeadAttention", "Attention", "QAttention"}
_NORMS = {"LayerNormalization", "SkipLayerNormalization", "SimplifiedLayerNormalization"}
_INT8 = {"MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QLinearMatMul", "MatMulInteger", "QGemm", "QLinearConv"}
_BLOCKS = "MatMulNBits"
_FLOAT = {_BLOCKS, "MatMul", "Gemm", "FusedMatMul", "FusedGemm", "Conv", "FusedConv"}
_FLOAT_TYPES = {"float": "fp32", "float16": "fp16", "bfloat16": "bf16"}


class OnnxRuntime(Target):
    """ONNX Runtime's CPU provider."""

    precisions: ClassVar[tuple[str, ...]] = ("fp32", "int8", "int8-dynamic", "int8-weights", "int4-weights")
    engine_module: ClassVar[str] = "onnxruntime"
    device: str = "CPU"

    def unavailable(self) -> Availability | None:
        """Why it cannot run here."""
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
        """Its own attention and integer operators: what it would not fuse by itself is written out.

        q, k and v get a linear each, whose results MultiHeadAttention reads as they are.
        """
        return Dialect(opset=20, attention="multihead", int8_linears="integer", packed_qkv=False, int8_weight_group=64)

    def compile(
        self,
        bundle: Bundle,
        workdir: Path,
        report: Callable[[str], None] | None = None,  # noqa: ARG002  it takes seconds
    ) -> Compiled:
        """Run the graph once, so that a refusal shows now, and audit what ran; the graph itself is what is deployed.

        Raises:
            CompileError: ONNX Runtime refuses the graph.
        """
        import onnxruntime as ort

        if bundle.graph.parent != workdir:
            raise CompileError("the graph is not in the artifact's folder", fix="Export it again.")
        compiled = Compiled(workdir, bundle.graph.name, f"onnxruntime {ort.__version__}")
        return replace(compiled, audit=self.audit(bundle, compiled))

    def audit(self, bundle: Bundle, compiled: Compiled) -> Audit:
        """Run once with profiling on: the kernels that really executed, by the names of the nodes they came from."""
        threads = self.threads or available_cores()
        kernels = _executed(compiled.folder / compiled.runs, bundle, threads)
        fused, reasons = _fused_sites(bundle.structure, kernels)
        products = _products(bundle.structure, kernels)
        layers = {name: _multiplies_in(kernel) for name, kernel in products.items()}
        stored = _stored(compiled.folder / compiled.runs, products, bundle.numbers)
        norms = sum(kernel.op in _NORMS for kernel in kernels)
        return audited(
            self.name, bundle, compiled, fused=fused, reasons=reasons, layers=layers, norms=norms, stored=stored,
            threads=threads,
        )  # fmt: skip

    def open(self, compiled: Compiled, numbers: Numbers, threads: int | None) -> Session:
        """Open the graph with all optimisations."""
        self.require()
        path = compiled.folder / compiled.runs
        return OnnxSession(path, threads=threads or self.threads, name=f"onnxruntime-{numbers.precision}")

    def open_plain(self, graph: Path, threads: int | None) -> Session:
        """Open an ONNX file as it is, in float32, to compare with."""
        return OnnxSession(graph, threads=threads, name=f"{self.name}-fp32 (plain)")

    def watch(self, graph: Path, compiled: Compiled | None, tensors: Collection[str], work: Path) -> Watched:  # noqa: ARG002
        """With all optimisations, as it runs; fusions that would swallow a watched tensor do not happen."""
        from vitdeploy.graph.extra_outputs import with_outputs

        self.require()
        path = work / "watched.onnx"
        found = with_outputs(graph, tensors, path)
        told = "ONNX Runtime, optimised as it runs, but for fusions across the tensors that are compared"
        return Watched(OnnxSession(path, threads=self.threads), found, "compiled", told)


@dataclass(frozen=True)
class _Kernel:
    """An executed kernel: operator, node name, element type of its output."""

    op: str
    name: str
    output: str


def _executed(path: Path, bundle: Bundle, threads: int) -> list[_Kernel]:
    """The kernels of one inference, from ONNX Runtime's own profile."""
    image = np.zeros(bundle.input_shape, np.float32)
    with (
        tempfile.TemporaryDirectory() as folder,
        OnnxSession(path, threads=threads, profile=Path(folder) / "run") as session,
    ):
        session.run({bundle.input_name: image})
        events = json.loads(session.end_profile().read_text(encoding="utf-8"))
    kernels = []
    for event in events:
        name, arguments = event.get("name", ""), event.get("args", {})
        if event.get("cat") == "Node" and name.endswith("_kernel_time"):
            outputs = arguments.get("output_type_shape") or [{}]
            kernels.append(_Kernel(arguments["op_name"], name.removesuffix("_kernel_time"), next(iter(outputs[0]), "")))
    return kernels


def _fused_sites(structure: Structure, kernels: list[_Kernel]) -> tuple[dict[str, str], dict[str, str]]:
    fused, reasons = {}, {}
    for site in structure.attention:
        own = [k for k in kernels if any(belongs(k.name, node) for node in site.nodes)]
        core = next((k for k in own if k.op in _FUSED), None)
        if core is not None:
            fused[site.name] = core.op
        elif own:
            parts = " + ".join(sorted({k.op for k in own}))
            reasons[site.name] = f"runs as {parts}" + (f": {site.refused}" if site.refused else "")
    return fused, reasons


def _products(structure: Structure, kernels: list[_Kernel]) -> dict[str, _Kernel]:
    """The kernel that multiplies for each linear."""
    found: dict[str, _Kernel] = {}
    for linear in structure.linears:
        for kernel in kernels:
            if kernel.op in _INT8 | _FLOAT and any(belongs(kernel.name, node) for node in linear.nodes):
                found[linear.name] = kernel
                break
    return found


def _stored(path: Path, products: Mapping[str, _Kernel], numbers: Numbers) -> dict[str, str]:
    """Linear -> the type of the codes that its kernel unpacks: the profile does not tell, the node in the file does.

    A device has no onnx to read it with. There the bundle's precision has to do, whose graph this is by its hash.
    """
    blocks = {name: kernel.name for name, kernel in products.items() if kernel.op == _BLOCKS}
    if not blocks:
        return {}
    if find_spec("onnx") is None:
        return dict.fromkeys(blocks, numbers.weights)
    import onnx

    nodes = onnx.load(path, load_external_data=False).graph.node
    bits = {node.name: a.i for node in nodes if node.op_type == _BLOCKS for a in node.attribute if a.name == "bits"}
    found = {
        name: next((n for node, n in bits.items() if belongs(kernel, node)), None) for name, kernel in blocks.items()
    }
    return {name: f"int{n}" if n is not None else "other" for name, n in found.items()}


def _multiplies_in(kernel: _Kernel) -> str:
    return "int8" if kernel.op in _INT8 else _FLOAT_TYPES.get(kernel.output, "other")
