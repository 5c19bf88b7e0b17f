"""Match the kernels of ONNX Runtime's profile to the model, by the ONNX node names that it keeps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vitdeploy.graph.dialect import Numbers
from vitdeploy.graph.structure import Structure
from vitdeploy.targets._audit import is_named_after
from vitdeploy.targets._onnxruntime.attention_kernels import UNFUSED, WORDS

_FUSED = {"MultiHeadAttention", "Attention", "QAttention"}
NORMS = {"LayerNormalization", "SkipLayerNormalization", "SimplifiedLayerNormalization"}
_INT8 = {
    "ConvInteger", "DynamicQuantizeMatMul", "MatMulInteger", "MatMulIntegerToFloat", "QGemm", "QLinearConv",
    "QLinearMatMul",
}  # fmt: skip
_PACKED = "MatMulNBits"
_FLOAT = {_PACKED, "MatMul", "Gemm", "FusedMatMul", "FusedGemm", "Conv", "FusedConv", "ConvTranspose", "Einsum"}
_FLOAT_TYPES = {"float": "fp32", "float16": "fp16", "bfloat16": "bf16"}
_CONVERTING = {"QuantizeLinear", "DynamicQuantizeLinear", "DequantizeLinear", "Cast"}
_CPU = "CPUExecutionProvider"


@dataclass(frozen=True)
class ExecutedKernel:
    """An executed kernel: its operator, node name, output type, and the provider that ran it."""

    op: str
    name: str
    output: str
    provider: str = _CPU

    @property
    def product_type(self) -> str:
        """The type that a product multiplies in."""
        return "int8" if self.op in _INT8 else _FLOAT_TYPES.get(self.output, "other")


def read_kernels(events: Iterable[Mapping[str, Any]]) -> list[ExecutedKernel]:
    """Return the kernels in a profile of ONNX Runtime, each once however often it ran."""
    kernels: dict[ExecutedKernel, None] = {}
    for event in events:
        name, arguments = event.get("name", ""), event.get("args", {})
        if event.get("cat") == "Node" and name.endswith("_kernel_time"):
            output = next(iter((arguments.get("output_type_shape") or [{}])[0]), "")
            provider = arguments.get("provider", _CPU)
            kernels[ExecutedKernel(arguments["op_name"], name.removesuffix("_kernel_time"), output, provider)] = None
    return list(kernels)


def match_attention(
    structure: Structure, kernels: list[ExecutedKernel], choices: Mapping[str, str] | None = None
) -> tuple[dict[str, str], dict[str, str]]:
    """Return the fused sites with their operator, and the other sites with a reason.

    Args:
        structure: the attention sites.
        kernels: the executed kernels.
        choices: on CUDA, node -> the kernel that the provider chose for it; None elsewhere.
    """
    fused, reasons = {}, {}
    for site in structure.attention:
        parts = [k for k in kernels if any(is_named_after(k.name, node) for node in site.nodes)]
        whole = next((k for k in parts if k.op in _FUSED), None)
        if whole is not None and choices is None:
            fused[site.name] = whole.op
        elif whole is not None:
            choice = (choices or {}).get(whole.name)
            problem = _explain_choice(whole, choice)
            if problem is None:
                fused[site.name] = f"{whole.op} ({WORDS.get(choice or '', choice)})"
            else:
                reasons[site.name] = problem
        elif parts:
            operators = " + ".join(sorted({k.op for k in parts}))
            reasons[site.name] = f"runs as {operators}" + (f": {site.refused}" if site.refused else "")
    return fused, reasons


def _explain_choice(whole: ExecutedKernel, choice: str | None) -> str | None:
    """Return why an attention operator is not one kernel on CUDA, or None."""
    if whole.provider == _CPU:
        return f"{whole.op} runs on the CPU"
    if choice == UNFUSED:
        return f"{whole.op} runs as product, softmax and product on the GPU ({UNFUSED}): none of its fused kernels fits"
    if choice is None:
        return f"{whole.op} ran on the GPU, but ONNX Runtime did not print by which kernel"
    return None


def explain_norms(structure: Structure, kernels: list[ExecutedKernel]) -> dict[str, str]:
    """Return the operators of the LayerNorms that run as other operators than norms."""
    reasons = {}
    for norm in structure.norms:
        operators = {k.op for k in kernels if any(is_named_after(k.name, node) for node in norm.nodes)}
        if operators and not operators & NORMS:
            reasons[norm.name] = f"runs as {' + '.join(sorted(operators))}"
    return reasons


def match_gelus(structure: Structure, kernels: list[ExecutedKernel]) -> dict[str, list[str]]:
    """Return the operators that compute each GELU; what only changes the type of its result is none."""
    computing = [k for k in kernels if k.op not in _CONVERTING]
    return {
        gelu.name: [k.op for k in computing if any(is_named_after(k.name, node) for node in gelu.nodes)]
        for gelu in structure.gelus or ()
    }


def match_linears(structure: Structure, kernels: list[ExecutedKernel]) -> dict[str, ExecutedKernel]:
    """Return the kernel that multiplies for each linear and each other product with weights."""
    matches: dict[str, ExecutedKernel] = {}
    for linear in structure.weighted:
        for kernel in kernels:
            if kernel.op in _INT8 | _FLOAT and any(is_named_after(kernel.name, node) for node in linear.nodes):
                matches[linear.name] = kernel
                break
    return matches


def read_stored_types(path: Path, products: Mapping[str, ExecutedKernel], numbers: Numbers) -> dict[str, str]:
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


def count_providers(kernels: Iterable[ExecutedKernel]) -> dict[str, int]:
    """Return the number of executed nodes by provider, without the part of the name that all have."""
    return dict(Counter(kernel.provider.removesuffix("ExecutionProvider") for kernel in kernels))


def find_on_cpu(structure: Structure, kernels: Iterable[ExecutedKernel]) -> dict[str, str]:
    """Return the attention sites, LayerNorms and products with weights that a kernel of the CPU computes, with it."""
    sites: dict[str, str] = {}
    on_cpu = [kernel for kernel in kernels if kernel.provider == _CPU]
    for part in (*structure.attention, *structure.norms, *structure.weighted):
        for kernel in on_cpu:
            if computes_numbers(kernel) and any(is_named_after(kernel.name, node) for node in part.nodes):
                sites[part.name] = kernel.op
    return sites


def doubt_cpu(kernels: Iterable[ExecutedKernel]) -> Iterator[str]:
    """Yield a doubt if numbers are computed on the CPU. Sizes of dynamic shapes belong there."""
    operators = Counter(k.op for k in kernels if k.provider == _CPU and computes_numbers(k))
    if operators:
        listed = ", ".join(f"{count} {op}" for op, count in sorted(operators.items()))
        yield f"{sum(operators.values())} nodes run on the CPU, with copies from and to the GPU around them: {listed}"


def computes_numbers(kernel: ExecutedKernel) -> bool:
    """Return whether a kernel gives floating-point numbers or codes, not the sizes of a shape or a condition."""
    return kernel.output not in ("int64", "int32", "bool", "")
