"""Read the kernels of a TensorRT engine from its layer plan, and match them to the model.

TensorRT and TensorRT-RTX describe an engine in lines of the same form, in the build log (after a line `Layers:`) and
from the engine inspector in its one-line format. Two lines for an FP16 ViT, shortened:

    Name: _gemm_mha_v2_myl0_5, LayerType: kgen, Inputs: [ { Name: .., Dimensions: [3,197,64], .., Datatype: Half, ..},
    ..], Constants: [], Outputs: [ .. ], TacticName: _gemm_mha_v2_0xba7f.., StreamId: 0,
    Metadata: [ONNX Layer: pv_matmul][ONNX Layer: softmax][ONNX Layer: qk_matmul]
    Name: __myl_FcAdd_myl0_3, LayerType: runtime_fusion, .., Metadata: [ONNX Layer: qkv_matmul][ONNX Layer: qkv_bias]

Kernels are matched to the model by the ONNX node names in `Metadata`, never by their number or order. TensorRT 10.3
writes `Format/Datatype` for `Datatype`. It lists constants among the inputs, or as `Weights: {"Type": "Int8", "Count":
864}` for a convolution of its kernel library. All forms are read. A node without a name appears as `node_of_<its first
output>`. A node that became a view of another tensor (Reshape) does not appear.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Literal

from vitdeploy.graph.structure import Gelu

NumberType = Literal["int8", "fp8", "fp16", "bf16", "fp32"]


@dataclass(frozen=True)
class PlanTensor:
    """An operand of a kernel.

    Attributes:
        name: of the tensor.
        dtype: its type as TensorRT writes it (Half, Int8, …).
        shape: its shape, with -1 for dynamic dimensions.
    """

    name: str
    dtype: str
    shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class PlanLayer:
    """A kernel of the engine, with the ONNX nodes that it computes.

    Attributes:
        name: of the kernel.
        kind: LayerType: `gemm`, `correlation` (convolution), `runtime_fusion`, `kgen` (pointwise, softmax, attention) …
        onnx_nodes: the names of the nodes.
        inputs: the tensors that it reads.
        constants: the constants that it reads.
        outputs: the tensors that it writes.
        tactic: the name of its implementation.
    """

    name: str
    kind: str
    onnx_nodes: tuple[str, ...] = ()
    inputs: tuple[PlanTensor, ...] = ()
    constants: tuple[PlanTensor, ...] = ()
    outputs: tuple[PlanTensor, ...] = ()
    tactic: str = ""


@dataclass(frozen=True)
class Fusion:
    """The sites that one kernel computes, and the sites that are not fused.

    Attributes:
        kernels: fused site -> its kernel.
        unfused: other site -> the reason why it is not fused.
    """

    kernels: Mapping[str, str] = field(default_factory=dict)
    unfused: Mapping[str, str] = field(default_factory=dict)


# ------------------------------------------------------------------------------------------------------ parsing

_PLAN_START = "Layers:"
_HEAD = re.compile(r"Name: (?P<name>.*?), LayerType: (?P<rest>.*)", re.DOTALL)
_SECTION = re.compile(r", (Inputs|Constants|Outputs|Weights|TacticName|StreamId|Metadata): ")
_DTYPE = re.compile(r"(?:Format/)?Datatype: ([^,}]*)")
_WEIGHTS = re.compile(r'\{"Type": "(\w+)", "Count": (\d+)\}')
_DIMENSIONS = re.compile(r"Dimensions: \[([-\d, ]*)\]")
# Between two names there is nothing, or a record or unit separator. A name itself can contain brackets.
_ONNX_LAYER = re.compile(r"\[ONNX Layer: ((?:(?!\[ONNX Layer: ).)*?)\](?=\s*$|\[ONNX Layer: |[\x1e\x1f])")


def parse_plan(log_lines: Iterable[str]) -> list[PlanLayer]:
    """Return the layers in a build log or an engine inspector's text. Other lines are skipped.

    If a log has several plans (one per engine that was built), the last one is returned. A damaged line gives a layer
    with its readable part, or none. Node names that were cut off are left out.
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
        onnx_nodes=parse_metadata(section.get("Metadata", "")),
        inputs=_parse_tensors(section.get("Inputs", "")),
        constants=(*_parse_tensors(section.get("Constants", "")), *_parse_weights(section.get("Weights", ""))),
        outputs=_parse_tensors(section.get("Outputs", "")),
        tactic=section.get("TacticName", "").strip(),
    )


def parse_metadata(metadata: str) -> tuple[str, ...]:
    """Return the ONNX nodes that a layer's metadata names, without duplicates."""
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
    match = _WEIGHTS.match(section)
    return (make_weights(match[1], int(match[2])),) if match else ()


def make_weights(dtype: str, count: int) -> PlanTensor:
    """Return the weights of a convolution, of which TensorRT 10.x writes only type and number."""
    return PlanTensor(name="weights", dtype=dtype, shape=(count,))


# ------------------------------------------------------------------------------------------- attention and norms

# `_gemm_mha_v2`, `_gemv_mha_v1` (one query token), `__mye8037_gemm_mha_v2` (TensorRT 9). It is matched from the start,
# and to the tactic first: a layer's name can be a node name of the user, and `/mha/MatMul` is not a fused attention.
_ATTENTION_KERNEL = re.compile(r"(?:__mye\d+)?_(?:gem[mv]_|fused_)?f?mha(?:_|$)")


def is_fused_attention(layer: PlanLayer) -> bool:
    """Return whether the kernel is TensorRT's fused multi-head attention, whose scores never leave the chip."""
    return _ATTENTION_KERNEL.match(layer.tactic or layer.name) is not None


def match_attention(layers: Sequence[PlanLayer], sites: Mapping[str, Sequence[str]]) -> Fusion:
    """Find the attention sites that one fused attention kernel computes.

    Args:
        layers: the plan.
        sites: site -> the ONNX nodes that must share the kernel: the QK MatMul, the Softmax and the PV MatMul (or the
            one Attention node). TensorRT can move other nodes without losing the fusion: the scale (it runs with the
            reshape of Q and K), the preparation of the mask, the Q/DQ pairs.
    """
    layers_of = _index_layers(layers)
    kernels: dict[str, str] = {}
    unfused: dict[str, str] = {}
    for site, nodes in sites.items():
        fused = [layer for layer in layers if is_fused_attention(layer) and set(nodes) <= set(layer.onnx_nodes)]
        if nodes and fused:
            kernels[site] = fused[0].name
        else:
            unfused[site] = _explain_unfused_attention(nodes, layers_of)
    return Fusion(kernels, unfused)


def find_float32(layers: Sequence[PlanLayer], sites: Mapping[str, Sequence[str]]) -> frozenset[str]:
    """Return the attention sites (name -> ONNX nodes) whose kernels read FP32 alone."""
    layers_of = _index_layers(layers)
    return frozenset(
        site
        for site, nodes in sites.items()
        if {_parse_type(t.dtype) for node in nodes for layer in layers_of.get(node, ()) for t in layer.inputs}
        == {"fp32"}
    )


def match_norms(layers: Sequence[PlanLayer], norms: Mapping[str, Sequence[str]]) -> Fusion:
    """Find the LayerNorms (name -> ONNX nodes) that exactly one kernel computes."""
    layers_of = _index_layers(layers)
    kernels: dict[str, str] = {}
    unfused: dict[str, str] = {}
    for norm, nodes in norms.items():
        names = {layer.name for node in nodes for layer in layers_of.get(node, ())}
        if len(names) == 1 and all(node in layers_of for node in nodes):
            kernels[norm] = names.pop()
        else:
            parts = [layer for layer in layers if set(nodes) & set(layer.onnx_nodes)]
            unfused[norm] = _explain_unfused_norm(nodes, parts)
    return Fusion(kernels, unfused)


def _explain_unfused_norm(nodes: Sequence[str], layers: Sequence[PlanLayer]) -> str:
    """Return the kernels of a norm, and what its last one also computes.

    TensorRT often cuts a norm in two: the mean and the variance are one kernel, and scaling by them begins the kernel
    of what follows, which moves tokens into windows, pools them, joins them with others or multiplies one of them.
    """
    names, layers_of = [layer.name for layer in layers], _index_layers(layers)
    if len(layers) < 2 or not set(nodes) <= set(layers_of):
        return _list_kernels(nodes, layers_of)
    if set(layers[-1].onnx_nodes) - set(nodes):
        follower = "the product of one token that reads it" if _GENERATED_MATVEC.match(names[-1]) else "what follows it"
        return f"ends inside {follower} ({names[-1]}), behind {', '.join(names[:-1])}"
    if _GENERATED_LINEAR.match(names[0]):
        return f"begins inside the product before it ({names[0]}), followed by {', '.join(names[1:])}"
    return f"runs as {len(names)} kernels: {', '.join(names)}"


def match_gelus(layers: Sequence[PlanLayer], gelus: Sequence[Gelu]) -> dict[str, list[str]]:
    """Return the kernels of each GELU."""
    layers_of = _index_layers(layers)
    return {
        gelu.name: list(dict.fromkeys(layer.name for node in gelu.nodes for layer in layers_of.get(node, ())))
        for gelu in gelus
    }


def _index_layers(layers: Sequence[PlanLayer]) -> dict[str, list[PlanLayer]]:
    """Return the kernels of each ONNX node, in the order of the plan."""
    layers_of: dict[str, list[PlanLayer]] = {}
    for layer in layers:
        for node in layer.onnx_nodes:
            layers_of.setdefault(node, []).append(layer)
    return layers_of


def _list_kernels(nodes: Sequence[str], layers_of: Mapping[str, Sequence[PlanLayer]]) -> str:
    """Return the kernels that compute these nodes, in words."""
    kernels = {layer.name for node in nodes for layer in layers_of.get(node, ())}
    if not kernels:
        return f"not found in the plan: {', '.join(nodes)}" if nodes else "no ONNX node names to look for"
    parts = [
        f"{node} in {_main_kernel(layers_of[node])}" if node in layers_of else f"{node} in no kernel" for node in nodes
    ]
    return f"runs as {len(kernels)} kernel{'s' if len(kernels) > 1 else ''}: {'; '.join(parts)}"


def _explain_unfused_attention(nodes: Sequence[str], layers_of: Mapping[str, Sequence[PlanLayer]]) -> str:
    layers = [layer for node in nodes for layer in layers_of.get(node, ())]
    if len({layer.name for layer in layers}) == 1 and not is_fused_attention(layers[0]):
        return f"runs as 1 kernel, {layers[0].name}, which is not a known attention kernel"
    return _list_kernels(nodes, layers_of)


def _main_kernel(layers: Sequence[PlanLayer]) -> str:
    """Return the kernel that does a node's work. Reshapes and paddings around it have its name too."""
    main = min(layers, key=_product_rank)
    return f"{main.name} ({main.kind})"


# ---------------------------------------------------------------------------------------------------- linears

# The names of kernels that TensorRT's compiler generates list their steps: `__myl_FcAddAdd_..` is a linear with bias
# and residual, `__myl_CorrMulAdd_..` a convolution with its activation, and `__myl_..ReshMulSum_..` a matrix times one
# vector (a classifier on one token).
_GENERATED_LINEAR = re.compile(r"__myl_(?:[A-Z][a-z]+)*?(?:Fc|Corr)(?![a-z])")
_GENERATED_MATVEC = re.compile(r"__myl_(?:[A-Z][a-z]+)*?MulSum(?![a-z])")
_LIBRARY_GEMM = re.compile(r"gemm|gemv|xmma|implicit|cutlass|conv", re.IGNORECASE)
_PRODUCT_KINDS = frozenset({"gemm", "correlation", "convolution", "matrixmultiply", "caskconvolution", "caskgemm"})
_NO_PRODUCT = 3

# The older form is, for example, `Row major linear FP16 format`.
_TYPES: tuple[tuple[re.Pattern[str], NumberType], ...] = (
    (re.compile(r"\bint8\b", re.IGNORECASE), "int8"),
    (re.compile(r"\bfp8|float8|e4m3|e5m2", re.IGNORECASE), "fp8"),
    (re.compile(r"\bbf16|bfloat16", re.IGNORECASE), "bf16"),
    (re.compile(r"\bfp16|\bhalf|\bfloat16", re.IGNORECASE), "fp16"),
    (re.compile(r"\bfp32|\bfloat(?:32)?\b", re.IGNORECASE), "fp32"),
)


def match_linears(layers: Sequence[PlanLayer], linears: Mapping[str, Sequence[str]]) -> dict[str, NumberType | None]:
    """Return the type in which each linear multiplies; None if the plan does not show it.

    INT8 or FP8 means that both activations and weights have this type in the multiplication. Weights that are stored in
    INT8 and widened before it count with the wider type.

    Args:
        layers: the plan.
        linears: linear or convolution -> its MatMul, Gemm or Conv node. Its bias can be named too, although it often
            runs in another kernel.
    """
    layers_of = _index_layers(layers)
    types: dict[str, NumberType | None] = {}
    for linear, nodes in linears.items():
        candidates = [layer for node in nodes for layer in layers_of.get(node, ())]
        # Among kernels of one rank, the one with most of the linear's nodes is its own and not a neighbour's.
        best = min(candidates, key=lambda layer: (_product_rank(layer), -candidates.count(layer)), default=None)
        types[linear] = product_type(best) if best is not None and is_product(best) else None
    return types


def is_product(layer: PlanLayer) -> bool:
    """Return whether the kernel is a matrix product or a convolution."""
    return _product_rank(layer) < _NO_PRODUCT


def _product_rank(layer: PlanLayer) -> int:
    """Return how surely a kernel multiplies matrices: 0 is certain, `_NO_PRODUCT` is that it does not."""
    if is_fused_attention(layer):
        return _NO_PRODUCT
    if layer.kind.lower() in _PRODUCT_KINDS or _LIBRARY_GEMM.search(layer.tactic):
        return 0
    if _GENERATED_LINEAR.match(layer.name):
        return 1
    return 2 if _GENERATED_MATVEC.match(layer.name) else _NO_PRODUCT


def product_type(layer: PlanLayer) -> NumberType | None:
    """Return the type in which a product multiplies, by its tensors, not its name; or None."""
    tensors = [tensor for tensor in (*layer.inputs, *layer.constants) if prod(tensor.shape) != 1]  # scalars are scales
    types = [number_type for tensor in tensors if (number_type := _parse_type(tensor.dtype))]
    quantized: tuple[NumberType, ...] = ("int8", "fp8")
    for number_type in quantized:
        if types.count(number_type) > 1:
            return number_type
    weight = max(layer.constants, key=lambda tensor: prod(tensor.shape), default=None)
    weight_type = _parse_type(weight.dtype) if weight else None
    if weight_type and weight_type not in quantized:
        return weight_type
    return next((number_type for number_type in types if number_type not in quantized), None)


def changes_type(layer: PlanLayer) -> bool:
    """Return whether the first output of a kernel has another type than its first input."""
    types = [_parse_type(tensor.dtype) for tensor in (*layer.inputs[:1], *layer.outputs[:1])]
    return len(types) == 2 and None not in types and types[0] != types[1]


def _parse_type(dtype: str) -> NumberType | None:
    return next((number_type for pattern, number_type in _TYPES if pattern.search(dtype)), None)
