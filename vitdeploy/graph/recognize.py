"""Recognise a model's structure in its raised graph."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

import onnx_ir as ir

from vitdeploy.errors import GraphError
from vitdeploy.graph.model import Graph, constant, dims, only_consumer, producer
from vitdeploy.graph.structure import CORE, AttentionSite, Bias, Linear, Norm, Role, Structure

# Between a linear and the operator that gives it its role stand only these: they move or shift numbers, no more.
_TRANSPARENT = {
    "Add", "Cast", "Concat", "DequantizeLinear", "Div", "Expand", "Flatten", "Gather", "Identity", "Mul",
    "QuantizeLinear", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze",
}  # fmt: skip
_ACTIVATIONS = {"Elu", "Erf", "Gelu", "HardSwish", "Relu", "Sigmoid", "Softplus", "Tanh"}
_PRODUCTS = {"Clip", "MatMul", "Pow", "Where"}
_CORES = {"Attention", "Softmax"}


def recognize(graph: Graph, refused: Mapping[str, str]) -> Structure:
    """Read the structure from a raised graph; `refused` maps softmax nodes that stayed unraised to the reason.

    Raises:
        GraphError: there is control flow, which could hide an attention from everything that is said of the model.
    """
    for node in graph.nodes:
        if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
            raise GraphError(
                f"node {node.name!r} is {node.op_type}: the image decides what runs, and what is inside stays unseen",
                fix="Export the model without branches and loops that depend on data.",
            )
    cores = [n for n in graph.nodes if n.op_type == "Attention" or (n.name or "") in refused]
    batch = next(iter(dims(graph.model.graph.inputs[0]) or ()), None) if graph.model.graph.inputs else None
    norms = tuple(
        Norm(name=n.name or "", nodes=(n.name or "",)) for n in graph.nodes if n.op_type == "LayerNormalization"
    )
    found = Structure(
        attention=tuple(_site(node, block, refused, batch) for block, node in enumerate(cores)),
        linears=tuple(_linears(graph, cores, batch)),
        norms=norms,
    )
    return found if batch is not None else _counted(found, graph, cores, refused)


def _counted(found: Structure, graph: Graph, cores: list[ir.Node], refused: Mapping[str, str]) -> Structure:
    """Where the batch varies: how many windows and rows one image makes, read from the shapes of one image."""
    with _one_image(graph):
        windows = [_site(node, block, refused, 1).windows for block, node in enumerate(cores)]
        rows = [linear.rows for linear in _linears(graph, cores, 1)]
    sites, linears = zip(found.attention, windows, strict=True), zip(found.linears, rows, strict=True)
    return found.model_copy(
        update={
            "attention": tuple(site.model_copy(update={"windows": count}) for site, count in sites),
            "linears": tuple(linear.model_copy(update={"rows": count}) for linear, count in linears),
        }
    )


@contextmanager
def _one_image(graph: Graph) -> Iterator[None]:
    """The graph's shapes as they are for a batch of one, and afterwards as they were."""
    values = [*graph.model.graph.inputs, *(o for n in graph.model.graph.all_nodes() for o in n.outputs)]
    before = [(value, value.shape) for value in values]
    try:
        for value, shape in before:
            produced = value.producer() is not None
            value.shape = None if produced or shape is None else ir.Shape([1, *shape[1:]])
        graph.infer_shapes()
        yield
    finally:
        for value, shape in before:
            value.shape = shape


def scope(node: ir.Node) -> str:
    """The module path a node's name begins with: `blocks.0.attn` of `blocks.0.attn/Softmax`."""
    return (node.name or "").rpartition("/")[0]


def _site(node: ir.Node, block: int, refused: Mapping[str, str], batch: int | None) -> AttentionSite:
    name = node.name or ""
    if name in refused:
        return AttentionSite(name=name, nodes=(name,), block=block, refused=refused[name])
    query, key, value = (_four(dims(v)) for v in node.inputs[:3])
    sequences, heads, tokens, head_size = query
    return AttentionSite(
        name=name.removesuffix(CORE),
        nodes=(name,),
        block=block,
        heads=heads,
        head_size=head_size,
        tokens=tokens,
        key_tokens=key[2],
        value_size=value[3],
        windows=sequences // batch if sequences and batch and sequences % batch == 0 else None,
        bias=_bias(node),
    )


def _four(shape: tuple[int | None, ...] | None) -> tuple[int | None, ...]:
    return shape if shape is not None and len(shape) == 4 else (None,) * 4


def _bias(core: ir.Node) -> Bias | None:
    """What is added to the scores or taken from them."""
    if core.attributes.get_int("is_causal"):
        return "causal"
    bias = core.inputs[3] if len(core.inputs) > 3 else None
    if bias is None:
        return None
    if bias.dtype == ir.DataType.BOOL:
        return "mask"
    return "window bias" if (_four(dims(bias))[0] or 1) > 1 else "bias"


def _linears(graph: Graph, cores: list[ir.Node], batch: int | None) -> Iterator[Linear]:
    """Every linear in order, with its block: the attention that it feeds, or else the last one before it."""
    feeding = {id(node): block for block, core in enumerate(cores) for node in _above(_operands(core))[0]}
    activated = {id(n) for node in graph.nodes if weight_of(node) is not None for n in _activated_by(node)}
    order = {id(core): block for block, core in enumerate(cores)}
    block: int | None = None
    for node in graph.nodes:
        block = order.get(id(node), block)
        weight = weight_of(node)
        if weight is None:
            continue
        role = _role(node, feeds_attention=id(node) in feeding, is_activated=id(node) in activated)
        at = None if role in ("patch", "head") else feeding.get(id(node), block)
        yield Linear(
            name=_linear_name(node),
            nodes=(node.name or "",),
            role=role,
            block=at,
            weight=weight,
            size=_size(node, weight),
            rows=_rows(node, batch),
            initializer=(node.inputs[1].name or "") if node.inputs[1] is not None else "",
            bias=_bias_add(node),
        )


def _bias_add(node: ir.Node) -> str:
    add = only_consumer(node.outputs[0], "Add")
    if add is None or all(constant(v) is None for v in add.inputs):
        return ""
    return add.name or ""


def weight_of(node: ir.Node) -> tuple[int, ...] | None:
    """The shape of a linear's constant weight, or None when `node` is no linear."""
    if node.domain != "" or len(node.inputs) < 2:
        return None
    if node.op_type == "Conv":
        return _patch_embedding_weight(node)
    if node.op_type not in ("MatMul", "Gemm"):
        return None
    tensor = constant(node.inputs[1])
    if tensor is None or len(tensor.shape) != 2:
        return None
    return tuple(tensor.numpy().shape)


def _patch_embedding_weight(node: ir.Node) -> tuple[int, ...] | None:
    """A convolution is a linear over patches when its stride is its kernel."""
    tensor = constant(node.inputs[1])
    strides = node.attributes.get_ints("strides", ())
    if tensor is None or not strides or tuple(strides) != tuple(tensor.shape[2:]) or max(strides) == 1:
        return None
    return tuple(tensor.numpy().shape)


def _size(node: ir.Node, weight: tuple[int, ...]) -> tuple[int, int]:
    """K x N of a linear whose weight is stored as (K, N), (N, K) in a Gemm, or (N, channels, height, width)."""
    if node.op_type == "Conv":
        return math.prod(weight[1:]), weight[0]
    transposed = node.op_type == "Gemm" and bool(node.attributes.get_int("transB"))
    return (weight[1], weight[0]) if transposed else (weight[0], weight[1])


def _rows(node: ir.Node, batch: int | None) -> int | None:
    """Vectors that one image gives a linear: of N results each, so all others of its output's dimensions."""
    shape = dims(node.outputs[0])
    if not shape:
        return None
    shape = (shape[0], *shape[2:]) if node.op_type == "Conv" else shape[:-1]
    if None in shape or batch is None:
        return None
    total = math.prod(d for d in shape if d is not None)
    return total // batch if total % batch == 0 else None


def _linear_name(node: ir.Node) -> str:
    name = node.name or ""
    return re.sub(r"/(MatMul|Gemm|Conv)$", "", name)


def _role(node: ir.Node, *, feeds_attention: bool, is_activated: bool) -> Role:
    if node.op_type == "Conv":
        return "patch"
    if feeds_attention:
        return "qkv"
    ends = _ends_graph(node.outputs[0])
    if not ends and (is_activated or _reached(node.outputs[0], _ACTIVATIONS)):
        return "fc1"
    _, seen = _above([node.inputs[0]], _ACTIVATIONS)
    if seen & _CORES:
        return "proj"
    if ends:  # before fc2: some heads are MLPs
        return "head"
    return "fc2" if seen & _ACTIVATIONS else "other"


def _operands(core: ir.Node) -> list[ir.Value | None]:
    """What an attention reads: q, k and v, or the scores and v around a softmax that stayed unraised."""
    if core.op_type == "Attention":
        return list(core.inputs[:3])
    return [core.inputs[0], *(product.inputs[1] for product in _products(core.outputs[0]))]


def _products(attention_map: ir.Value) -> Iterator[ir.Node]:
    """The products that read the attention map, directly or through what only guards or converts it."""
    for node in (use.node for use in attention_map.uses()):
        if node.op_type == "MatMul":
            yield node
        elif node.op_type in ("Cast", "Dropout", "Identity", "Where"):
            yield from _products(node.outputs[0])


def _activated_by(node: ir.Node) -> list[ir.Node]:
    """The linears that `node` reads through an activation, in however many operators that is written."""
    linears, seen = _above([node.inputs[0]], _ACTIVATIONS)
    return linears if seen & _ACTIVATIONS and not seen & _CORES else []


def linears_above(values: list[ir.Value | None]) -> list[ir.Node]:
    """The linears that reach `values` through what only moves, shifts or multiplies numbers."""
    return _above(values)[0]


def _above(values: list[ir.Value | None], through: Collection[str] = ()) -> tuple[list[ir.Node], set[str]]:
    """The linears that reach `values`, and the types of all operators from there up to them.

    The way goes through operators that move or shift numbers, products of two computed tensors, depthwise convolutions
    (SegFormer has one within its MLP, MViT behind its queries), and `through`.
    """
    linears, seen_types, pending, seen = [], set(), list(values), set()
    while pending:
        node = producer(pending.pop())
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        seen_types.add(node.op_type)
        if weight_of(node) is not None:
            linears.append(node)
        elif node.op_type in _TRANSPARENT | _PRODUCTS or node.op_type in through or _is_depthwise(node):
            pending += node.inputs
    return linears, seen_types


def _is_depthwise(node: ir.Node) -> bool:
    """Whether it is a convolution that leaves channels apart."""
    weight = constant(node.inputs[1]) if node.op_type == "Conv" and len(node.inputs) > 1 else None
    return weight is not None and weight.shape[1] == 1 and (node.attributes.get_int("group") or 1) > 1


def _reached(value: ir.Value, op_types: set[str], depth: int = 4) -> bool:
    """Whether `value` runs into one of `op_types` through its bias and activations written as several operators."""
    if depth == 0:
        return False
    for use in value.uses():
        if use.node.op_type in op_types:
            return True
        is_bias = use.node.op_type in ("Add", "Mul", "Div") and any(constant(v) is not None for v in use.node.inputs)
        if (is_bias or use.node.op_type in ("QuantizeLinear", "DequantizeLinear", "Cast")) and _reached(
            use.node.outputs[0], op_types, depth - 1
        ):
            return True
    return False


def _ends_graph(value: ir.Value) -> bool:
    """Whether nothing but a bias, an activation and what moves numbers stands between `value` and a graph output."""
    if value.is_graph_output():
        return True
    uses = [use.node for use in value.uses()]
    return bool(uses) and all(_is_tail(n) and _ends_graph(n.outputs[0]) for n in uses)


def _is_tail(node: ir.Node) -> bool:
    if node.op_type == "Add":  # of a bias; that of a residual ends a block, not the model
        return any(constant(value) is not None for value in node.inputs)
    return node.op_type in _TRANSPARENT | _ACTIVATIONS | {"Softmax"}
