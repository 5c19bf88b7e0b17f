"""Read the runtime model of OpenVINO: its kernels, and the parts of the model that they compute."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vitdeploy.graph.structure import AttentionSite, Gelu, Norm, Structure
from vitdeploy.targets._audit import is_named_after

_STORED = {"i8": "int8", "u8": "int8", "i4": "int4", "u4": "int4"}
_LINEAR_LAYERS = {"FullyConnected", "Convolution", "Deconvolution", "MatMul"}
_NORM_LAYERS = ("MVN", "LayerNorm")
_CARRIERS = {"Const", "Reorder", "Transpose", "Convert", "Reshape"}
"""Layers between a weight and the kernel that reads it. After fusion, often only they keep the linear's name."""


class Kernel:
    """A node of the runtime model.

    Attributes:
        layer: its type.
        names: the ONNX nodes from which it was made.
        precision: the precision in which it runs.
        stored: the type of weights that the kernel itself unpacks, or None. With `rounds` such a kernel rounds its
            input to int8 first, whatever its name says: then it is an INT8 product and unpacks nothing.
        weight_names: names of the layers that carry its weight.
        title: the name of the kernel for people.
        matrices: the last two sizes of each input; None for one that varies.
        result: the last two sizes of its first output, likewise.
        sources: the types of the layers that it reads.
        norm: the name of the kernel that normalises, if it is one or if it reads one, perhaps behind a Reshape.
    """

    def __init__(self, op: Any, *, rounds: bool) -> None:
        info = {key: str(value.astype(str)) for key, value in op.get_rt_info().items() if hasattr(value, "astype")}
        self.layer = info.get("layerType", "")
        self.names = {n for n in info.get("originalLayersNames", "").split(",") if n}
        self.precision = _parse_precision(info.get("primitiveType", ""), info.get("runtimePrecision", ""))
        packed = self.layer == "FullyConnected" and self.precision != "int8"
        self.stored = _STORED.get(info.get("runtimePrecision", "")) if packed else None
        if self.stored is not None and rounds:
            self.precision, self.stored = "int8", None
        self.weight_names = set(_weight_names(op)) if self.layer in _LINEAR_LAYERS else set()
        self.title = f"{self.layer} {info.get('primitiveType', '')}".strip()
        shapes = (op.get_input_partial_shape(index) for index in range(op.get_input_size()))
        self.matrices = [_last_two(shape) for shape in shapes]
        self.result = _last_two(op.get_output_partial_shape(0)) if op.get_output_size() else ()
        self.sources = [_layer_type(op.input_value(index).get_node()) for index in range(op.get_input_size())]
        self.norm = next(filter(None, (_norm_name(node) for node in (op, *_computed_inputs(op)))), "")

    @property
    def is_norm(self) -> bool:
        """Return whether it is a LayerNorm, with or without scale and shift."""
        return self.layer in _NORM_LAYERS


def _computed_inputs(op: Any) -> Iterator[Any]:
    """Yield the nodes that compute the inputs, before Reshapes."""
    for index in range(op.get_input_size()):
        node = op.input_value(index).get_node()
        while _layer_type(node) == "Reshape":
            node = node.input_value(0).get_node()
        yield node


def _norm_name(op: Any) -> str:
    return str(op.get_friendly_name()) if _layer_type(op) in _NORM_LAYERS else ""


def _layer_type(op: Any) -> str:
    info = op.get_rt_info()
    return str(info["layerType"].astype(str)) if "layerType" in info else ""


def _last_two(shape: Any) -> tuple[int | None, ...]:
    sizes = list(shape) if shape.rank.is_static else []
    return tuple(d.get_length() if d.is_static else None for d in sizes[-2:])


def _weight_names(op: Any, depth: int = 4) -> Iterator[str]:
    """Yield the original names of the layers that carry the weight into `op`."""
    if depth == 0:
        return
    for index in range(1 if depth == 4 else 0, op.get_input_size()):
        source = op.input_value(index).get_node()
        info = source.get_rt_info()
        if "layerType" in info and info["layerType"].astype(str) in _CARRIERS:
            yield from (n for n in str(info["originalLayersNames"].astype(str)).split(",") if n)
            yield from _weight_names(source, depth - 1)


def _parse_precision(primitive: str, runtime: str) -> str:
    """Return the executed precision.

    It is part of the kernel's name (`brgemm_avx512_amx_i8`). The declared type `runtime` is only a request.
    """
    names = {"i8": "int8", "u8": "int8", "bf16": "bf16", "f16": "fp16", "f32": "fp32"}
    return names.get(primitive.rpartition("_")[2]) or names.get(runtime, runtime or "other")


def match_attention(structure: Structure, kernels: list[Kernel], threads: int) -> tuple[dict[str, str], dict[str, str]]:
    """Return the fused sites with their kernel, and the other sites with a reason."""
    fused, reasons = {}, {}
    for site in structure.attention:
        core = {n for n in site.nodes if n.endswith(("/qk", "/softmax", "/pv"))}
        parts = [k for k in kernels if core & k.names]
        whole = next((k for k in parts if core <= k.names), None)
        if whole is None and len(parts) == 1 and _multiplies_with_v(site, core - parts[0].names, parts[0]):
            (whole,) = parts
        if whole is not None:
            fused[site.name] = whole.title
        elif parts:
            titles = " + ".join(sorted({k.title for k in parts}))
            reasons[site.name] = f"runs as {titles} with {threads} threads: {_explain_unfused(site, parts, threads)}"
    return fused, reasons


def _multiplies_with_v(site: AttentionSite, missing: set[str], kernel: Kernel) -> bool:
    """Return whether the only kernel of a site makes its outputs of v, though it has lost the product's name.

    OpenVINO gives that product a new name when it takes a factor behind it, as in differential attention, into it. The
    sizes tell: only with v does such a kernel read (key tokens, value size) and give (tokens, value size).
    """
    if not all(name.endswith("/pv") for name in missing) or site.value_size in (None, site.key_tokens):
        return False
    v, outputs = (site.key_tokens, site.value_size), (site.tokens, site.value_size)
    return v in kernel.matrices[2:] and kernel.result == outputs


def _explain_unfused(site: AttentionSite, parts: list[Kernel], threads: int) -> str:
    """Return the rule of OpenVINO's that keeps the kernels of a site apart.

    Its optimizer takes a transpose of q or v into the product, whose operand then ends with (size, tokens). Its fused
    kernel takes no such operand.
    """
    products = {
        suffix: k.matrices for suffix in ("qk", "pv") for k in parts if any(n.endswith(suffix) for n in k.names)
    }
    operands = (
        (products.get("qk", [()])[0], (site.tokens, site.head_size)),
        (products.get("pv", [(), ()])[1], (site.key_tokens, site.value_size)),
    )
    if any(taken != plain and taken == plain[::-1] for taken, plain in operands):
        return "OpenVINO does not fuse attention whose q or v is channels first, (size, tokens)"
    if site.heads and site.windows and site.heads * site.windows < threads:
        return "OpenVINO fuses only when heads or tokens split evenly over the threads"
    return "OpenVINO does not say why"


def count_norms(structure: Structure, kernels: list[Kernel]) -> int:
    """Return how many LayerNorms are normalised by one kernel.

    OpenVINO gives these kernels names of its own. Two LayerNorms of one tensor share a kernel: each then has scale and
    shift in a kernel that reads it.
    """
    readers: dict[str, set[str]] = {kernel.norm: set() for kernel in kernels if kernel.is_norm}
    for norm in structure.norms:
        for kernel in _kernels_of(norm, kernels):
            readers.get(kernel.norm, set()).add(norm.name)
    return sum(max(1, len(norms)) for norms in readers.values())


def explain_norms(structure: Structure, kernels: list[Kernel]) -> dict[str, str]:
    """Return the kernels of the LayerNorms that have kernels, none of which is a norm or reads one.

    OpenVINO normalises in one kernel and applies scale and shift in the next, which has the norm's name.
    """
    reasons = {}
    for norm in structure.norms:
        parts = _kernels_of(norm, kernels)
        if parts and not any(kernel.norm for kernel in parts):
            before = {layer for k in parts for layer in k.sources if layer == "RMS"}  # of the centred values
            reasons[norm.name] = f"runs as {' + '.join([*before, *sorted({k.title for k in parts})])}"
    return reasons


def match_gelus(structure: Structure, kernels: list[Kernel]) -> dict[str, list[str]]:
    """Return the kernels that compute each GELU, as a kernel's title for each. Casts and reorders compute nothing."""
    return {
        gelu.name: [k.title for k in _kernels_of(gelu, kernels) if k.layer not in _CARRIERS]
        for gelu in structure.gelus or ()
    }


def _kernels_of(part: Norm | Gelu, kernels: list[Kernel]) -> list[Kernel]:
    return [k for k in kernels if any(is_named_after(name, node) for node in part.nodes for name in k.names)]


def match_linears(structure: Structure, kernels: list[Kernel]) -> dict[str, Kernel]:
    """Return the kernel that multiplies for each linear and each other product with weights."""
    matches: dict[str, Kernel] = {}
    products = [k for k in kernels if k.layer in _LINEAR_LAYERS]
    for linear in structure.weighted:
        for kernel in products:
            names = kernel.names | kernel.weight_names
            has_constant = names & ({linear.initializer, linear.bias} - {""})
            if has_constant or any(is_named_after(name, node) for node in linear.nodes for name in names):
                matches[linear.name] = kernel
                break
    return matches
