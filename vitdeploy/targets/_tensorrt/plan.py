"""What a TensorRT engine really runs, read from its layer plan.

TensorRT and TensorRT-RTX describe an engine in the same lines, in the build log (after a line `Layers:`) and from the
engine inspector in its one-line format. Two of them, shortened, for an FP16 ViT:

    Name: _gemm_mha_v2_myl0_5, LayerType: kgen, Inputs: [ { Name: .., Dimensions: [3,197,64], .., Datatype: Half, ..},
    ..], Constants: [], Outputs: [ .. ], TacticName: _gemm_mha_v2_0xba7f.., StreamId: 0,
    Metadata: [ONNX Layer: pv_matmul][ONNX Layer: softmax][ONNX Layer: qk_matmul]
    Name: __myl_FcAdd_myl0_3, LayerType: runtime_fusion, .., Metadata: [ONNX Layer: qkv_matmul][ONNX Layer: qkv_bias]

The ONNX node names in `Metadata` tie a kernel to the model, so nothing here counts or orders kernels. TensorRT 10.3
writes `Format/Datatype` for `Datatype` and lists the constants among the inputs, or, for a convolution of its kernel
library, as `Weights: {"Type": "Int8", "Count": 864}`; all forms are read. A node without a name appears as
`node_of_<its first output>`, and one that became a view of another tensor (Reshape) does not appear.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Literal

Precision = Literal["int8", "fp8", "fp16", "bf16", "fp32"]


@dataclass(frozen=True)
class PlanTensor:
    """An operand of a kernel; `dtype` as TensorRT spells it (Half, Int8, ..), -1 in `shape` for a dynamic dimension."""

    name: str
    dtype: str
    shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class PlanLayer:
    """One kernel of the engine and the ONNX nodes that it computes, as far as the plan tells."""

    name: str
    kind: str
    """LayerType: `gemm`, `correlation` (convolution), `runtime_fusion`, `kgen` (pointwise, softmax, attention) .."""
    onnx_nodes: tuple[str, ...] = ()
    inputs: tuple[PlanTensor, ...] = ()
    constants: tuple[PlanTensor, ...] = ()
    outputs: tuple[PlanTensor, ...] = ()
    tactic: str = ""


@dataclass(frozen=True)
class Fusion:
    """Sites that one kernel computes (`kernels`: site -> kernel), and why each other one is not (`unfused`)."""

    kernels: Mapping[str, str] = field(default_factory=dict)
    unfused: Mapping[str, str] = field(default_factory=dict)


# ------------------------------------------------------------------------------------------------------ parsing

_PLAN_START = "Layers:"
_HEAD = re.compile(r"Name: (?P<name>.*?), LayerType: (?P<rest>.*)", re.DOTALL)
_SECTION = re.compile(r", (Inputs|Constants|Outputs|Weights|TacticName|StreamId|Metadata): ")
_DTYPE = re.compile(r"(?:Format/)?Datatype: ([^,}]*)")
_WEIGHTS = re.compile(r'\{"Type": "(\w+)", "Count": (\d+)\}')
_DIMENSIONS = re.compile(r"Dimensions: \[([-\d, ]*)\]")
# TensorRT puts nothing, or a record or unit separator, between two names. A name may hold brackets itself.
_ONNX_LAYER = re.compile(r"\[ONNX Layer: ((?:(?!\[ONNX Layer: ).)*?)\](?=\s*$|\[ONNX Layer: |[\x1e\x1f])")


def parse_plan(log_lines: Iterable[str]) -> list[PlanLayer]:
    """Read the layers out of a build log or an engine inspector's text; lines of any other kind are passed over.

    A log may hold several plans (one per engine that was built): the last one counts. A damaged line gives a layer
    with what could be read of it, or none; node names that were cut off are never guessed.
    """
    layers: list[PlanLayer] = []
    for line in log_lines:
        if line.rstrip().endswith(_PLAN_START):
            layers = []
        elif layer := _parse_layer(line.rstrip("\r\n")):
            layers.append(layer)
    return layers


def _parse_layer(line: str) -> PlanLayer | None:
    head = _HEAD.match(line)
    if head is None:
        return None
    kind, *sections = _SECTION.split(head["rest"])
    section = dict(zip(sections[::2], sections[1::2], strict=True))
    return PlanLayer(
        name=head["name"],
        kind=kind.strip(),
        onnx_nodes=onnx_names(section.get("Metadata", "")),
        inputs=_parse_tensors(section.get("Inputs", "")),
        constants=(*_parse_tensors(section.get("Constants", "")), *_parse_weights(section.get("Weights", ""))),
        outputs=_parse_tensors(section.get("Outputs", "")),
        tactic=section.get("TacticName", "").strip(),
    )


def onnx_names(metadata: str) -> tuple[str, ...]:
    """The ONNX nodes that a layer's metadata names, each once."""
    return tuple(dict.fromkeys(_ONNX_LAYER.findall(metadata)))


def _parse_tensors(section: str) -> tuple[PlanTensor, ...]:
    tensors = []
    for entry in section.split("{ Name: ")[1:]:
        dtype = _DTYPE.search(entry)
        dimensions = _DIMENSIONS.search(entry)
        shape = re.findall(r"-?\d+", dimensions[1]) if dimensions else []
        tensors.append(
            PlanTensor(
                name=re.split(r", (?:Location|Dimensions): ", entry, maxsplit=1)[0],
                dtype=dtype[1].strip() if dtype else "",
                shape=tuple(int(size) for size in shape),
            )
        )
    return tuple(tensors)


def _parse_weights(section: str) -> tuple[PlanTensor, ...]:
    found = _WEIGHTS.match(section)
    return (weights_of(found[1], int(found[2])),) if found else ()


def weights_of(dtype: str, count: int) -> PlanTensor:
    """The weights of a convolution as 10.x tells them: a type and how many."""
    return PlanTensor(name="weights", dtype=dtype, shape=(count,))


# ------------------------------------------------------------------------------------------- attention and norms

# `_gemm_mha_v2`, `_gemv_mha_v1` (one query token), `__mye8037_gemm_mha_v2` (TensorRT 9). Anchored, and asked of the
# tactic first: a layer's name may be the user's own node name, and `/mha/MatMul` is not a fused attention.
_ATTENTION_KERNEL = re.compile(r"(?:__mye\d+)?_(?:gem[mv]_|fused_)?f?mha(?:_|$)")


def is_fused_attention(layer: PlanLayer) -> bool:
    """Whether the kernel is TensorRT's fused multi-head attention: scores never leave the chip."""
    return _ATTENTION_KERNEL.match(layer.tactic or layer.name) is not None


def attention_fusion(layers: Sequence[PlanLayer], sites: Mapping[str, Sequence[str]]) -> Fusion:
    """Tell for each attention site whether one fused attention kernel computes all of it.

    `sites` maps a site to the names of the ONNX nodes that have to share the kernel: the QK MatMul, the Softmax and the
    PV MatMul (or the one Attention node). Leave out what TensorRT may move elsewhere without losing the fusion: the
    scale (runs with the reshape of Q and K), the mask's preparation, the Q/DQ pairs.
    """
    carriers = _carriers(layers)
    kernels: dict[str, str] = {}
    unfused: dict[str, str] = {}
    for site, nodes in sites.items():
        fused = [layer for layer in layers if is_fused_attention(layer) and set(nodes) <= set(layer.onnx_nodes)]
        if nodes and fused:
            kernels[site] = fused[0].name
        else:
            unfused[site] = _why_unfused(nodes, carriers)
    return Fusion(kernels, unfused)


def norm_fusion(layers: Sequence[PlanLayer], norms: Mapping[str, Sequence[str]]) -> Fusion:
    """Tell for each LayerNorm (its name -> its ONNX nodes) whether exactly one kernel computes it."""
    carriers = _carriers(layers)
    kernels: dict[str, str] = {}
    unfused: dict[str, str] = {}
    for norm, nodes in norms.items():
        names = {layer.name for node in nodes for layer in carriers.get(node, ())}
        if len(names) == 1 and all(node in carriers for node in nodes):
            kernels[norm] = names.pop()
        else:
            unfused[norm] = _where(nodes, carriers)
    return Fusion(kernels, unfused)


def _carriers(layers: Sequence[PlanLayer]) -> dict[str, list[PlanLayer]]:
    """ONNX node -> the kernels that compute a part of it, in plan order."""
    carriers: dict[str, list[PlanLayer]] = {}
    for layer in layers:
        for node in layer.onnx_nodes:
            carriers.setdefault(node, []).append(layer)
    return carriers


def _where(nodes: Sequence[str], carriers: Mapping[str, Sequence[PlanLayer]]) -> str:
    """Say which kernels the nodes ended up in."""
    kernels = {layer.name for node in nodes for layer in carriers.get(node, ())}
    if not kernels:
        return f"not found in the plan: {', '.join(nodes)}" if nodes else "no ONNX node names to look for"
    told = [f"{node} in {_main_kernel(carriers[node])}" if node in carriers else f"{node} nowhere" for node in nodes]
    return f"runs as {len(kernels)} kernel{'s' if len(kernels) > 1 else ''}: {'; '.join(told)}"


def _why_unfused(nodes: Sequence[str], carriers: Mapping[str, Sequence[PlanLayer]]) -> str:
    layers = [layer for node in nodes for layer in carriers.get(node, ())]
    if len({layer.name for layer in layers}) == 1 and not is_fused_attention(layers[0]):
        return f"runs as 1 kernel, {layers[0].name}, which is not known as an attention kernel"
    dtypes = {_precision_name(tensor.dtype) for layer in layers for tensor in layer.inputs}
    # TensorRT developer guide, "Multi-Head Attention Fusion": FP16, BF16, INT8 and FP8 have kernels, FP32 has none.
    because = " (in FP32, which TensorRT does not fuse)" if dtypes == {"fp32"} else ""
    return _where(nodes, carriers) + because


def _main_kernel(layers: Sequence[PlanLayer]) -> str:
    """The kernel that does a node's work: reshapes and paddings around a product carry the node's name as well."""
    main = min(layers, key=_multiply_rank)
    return f"{main.name} ({main.kind})"


# ---------------------------------------------------------------------------------------------------- precision

# Kernels that TensorRT's compiler generates are named after what they do: `__myl_FcAddAdd_..` is a linear with bias and
# residual, `__myl_..ReshMulSum_..` a matrix times one vector (a classifier on one token).
_GENERATED_LINEAR = re.compile(r"__myl_(?:[A-Z][a-z]+)*?Fc(?![a-z])")
_GENERATED_MATVEC = re.compile(r"__myl_(?:[A-Z][a-z]+)*?MulSum(?![a-z])")
_LIBRARY_GEMM = re.compile(r"gemm|gemv|xmma|implicit|cutlass|conv", re.IGNORECASE)
_MULTIPLYING_KINDS = frozenset({"gemm", "correlation", "convolution", "matrixmultiply", "caskconvolution", "caskgemm"})
_NOT_MULTIPLYING = 3

# The older form says, for example, `Row major linear FP16 format`.
_PRECISIONS: tuple[tuple[re.Pattern[str], Precision], ...] = (
    (re.compile(r"\bint8\b", re.IGNORECASE), "int8"),
    (re.compile(r"\bfp8|float8|e4m3|e5m2", re.IGNORECASE), "fp8"),
    (re.compile(r"\bbf16|bfloat16", re.IGNORECASE), "bf16"),
    (re.compile(r"\bfp16|\bhalf|\bfloat16", re.IGNORECASE), "fp16"),
    (re.compile(r"\bfp32|\bfloat(?:32)?\b", re.IGNORECASE), "fp32"),
)


def linear_precisions(layers: Sequence[PlanLayer], linears: Mapping[str, Sequence[str]]) -> dict[str, Precision | None]:
    """Tell for each linear (or convolution) in which type the kernel that multiplies for it takes its operands.

    `linears` maps a linear to the name of its MatMul, Gemm or Conv node. The bias may be given too, although it often
    runs in another kernel. INT8 or FP8 means that activations *and* weights enter the multiplication so: weights that
    are only stored in INT8 and widened on the way count as what they are widened to. None: the plan does not tell.
    """
    carriers = _carriers(layers)
    precisions: dict[str, Precision | None] = {}
    for linear, nodes in linears.items():
        candidates = [layer for node in nodes for layer in carriers.get(node, ())]
        # Several kernels of one rank: the one that carries most of the linear is its own, not a neighbour's.
        best = min(candidates, key=lambda layer: (_multiply_rank(layer), -candidates.count(layer)), default=None)
        told = best is not None and _multiply_rank(best) < _NOT_MULTIPLYING
        precisions[linear] = _operand_precision(best) if best is not None and told else None
    return precisions


def multiplies(layer: PlanLayer) -> bool:
    """Whether the kernel is a matrix product or a convolution."""
    return _multiply_rank(layer) < _NOT_MULTIPLYING


def multiplied_in(layer: PlanLayer) -> Precision | None:
    """In which type such a kernel takes its operands; None: the plan does not tell."""
    return _operand_precision(layer)


def _multiply_rank(layer: PlanLayer) -> int:
    """How surely a kernel is one that multiplies matrices, 0 being certain."""
    if is_fused_attention(layer):
        return _NOT_MULTIPLYING
    if layer.kind.lower() in _MULTIPLYING_KINDS or _LIBRARY_GEMM.search(layer.tactic):
        return 0
    if _GENERATED_LINEAR.match(layer.name):
        return 1
    return 2 if _GENERATED_MATVEC.match(layer.name) else _NOT_MULTIPLYING


def _operand_precision(layer: PlanLayer) -> Precision | None:
    """The type of the multiplication: from the tensors, never from the kernel's name."""
    tensors = [tensor for tensor in (*layer.inputs, *layer.constants) if prod(tensor.shape) != 1]  # scalars are scales
    named = [precision for tensor in tensors if (precision := _precision_name(tensor.dtype))]
    quantized: tuple[Precision, ...] = ("int8", "fp8")
    for precision in quantized:
        if named.count(precision) > 1:
            return precision
    weight = max(layer.constants, key=lambda tensor: prod(tensor.shape), default=None)
    precision_of_weight = _precision_name(weight.dtype) if weight else None
    if precision_of_weight and precision_of_weight not in quantized:
        return precision_of_weight
    return next((precision for precision in named if precision not in quantized), None)


def changes_type(layer: PlanLayer) -> bool:
    """Whether what comes out of a kernel with one input is of another type than what goes in."""
    types = [_precision_name(tensor.dtype) for tensor in (*layer.inputs[:1], *layer.outputs[:1])]
    return len(types) == 2 and None not in types and types[0] != types[1]


def _precision_name(dtype: str) -> Precision | None:
    return next((precision for pattern, precision in _PRECISIONS if pattern.search(dtype)), None)
