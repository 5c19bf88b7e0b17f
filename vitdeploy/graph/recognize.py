"""Recognise the structure of a model in its raised graph."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping

import onnx_ir as ir

from vitdeploy.errors import GraphError
from vitdeploy.frozen import replace
from vitdeploy.graph.channel_moves import is_transpose, to_first, to_last
from vitdeploy.graph.model import Graph, bias_behind, constant, dims, only_consumer, producer
from vitdeploy.graph.one_image import one_image
from vitdeploy.graph.products import CONVOLUTIONS, bias_add_name, list_products, product_name, weight_of
from vitdeploy.graph.softmaxes import explain_softmax, find_softmaxes
from vitdeploy.graph.structure import CORE, AttentionSite, Bias, Gelu, Linear, Norm, Role, Structure, Unclassified

_TRANSPARENT = {
    "Add", "Cast", "Concat", "DequantizeLinear", "Div", "Expand", "Flatten", "Gather", "Identity", "Mul",
    "QuantizeLinear", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze",
}  # fmt: skip
"""Operators that may stand between a linear and the operator that decides its role."""

_ACTIVATIONS = {"Elu", "Erf", "Gelu", "HardSwish", "Relu", "Sigmoid", "Softplus", "Tanh"}
_PRODUCTS = {"Clip", "MatMul", "Pow", "Where"}
_CORES = {"Attention", "Softmax"}


def recognize(graph: Graph, refused: Mapping[str, str], size: tuple[int, int] | None = None) -> Structure:
    """Read the structure of a raised graph.

    Args:
        graph: the graph.
        refused: the reason for each softmax node that was not raised.
        size: height and width of the images to count tokens for, if they vary.

    Raises:
        GraphError: the graph has control flow. An attention inside of it would be missing from all results.
    """
    for node in graph.nodes:
        if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
            raise GraphError(
                f"node {node.name!r} is {node.op_type}, and the operators inside control flow cannot be checked",
                fix="Export the model without branches and loops that depend on data.",
            )
    cores = [n for n in graph.nodes if n.op_type == "Attention" or (n.name or "") in refused]
    batch = next(iter(dims(graph.model.graph.inputs[0]) or ()), None) if graph.model.graph.inputs else None
    norms = tuple(
        Norm(name=n.name or "", nodes=(n.name or "",)) for n in graph.nodes if n.op_type == "LayerNormalization"
    )
    gelus = tuple(Gelu(name=n.name or "", nodes=(n.name or "",)) for n in graph.nodes if n.op_type == "Gelu")
    structure = Structure(
        attention=tuple(_site(node, block, refused, batch) for block, node in enumerate(cores)),
        linears=tuple(_linears(graph, cores, batch)),
        norms=norms,
        gelus=gelus,
        unclassified=tuple(_unclassified(graph, refused)),
        products=tuple(list_products(graph, batch)),
    )
    if batch is not None and size is None:
        return structure
    return _count_for_one_image(structure, graph, cores, refused, size)


def _unclassified(graph: Graph, refused: Mapping[str, str]) -> Iterator[Unclassified]:
    """Yield the softmaxes of which it is not certain whether they belong to an attention."""
    for softmax in find_softmaxes(graph):
        name = softmax.node.name or ""
        if name not in refused and (finding := explain_softmax(softmax)) is not None:
            yield Unclassified(name=name, nodes=(name,), reason=finding.reason)


def _count_for_one_image(
    structure: Structure,
    graph: Graph,
    cores: list[ir.Node],
    refused: Mapping[str, str],
    size: tuple[int, int] | None,
) -> Structure:
    """Fill in how many windows, tokens and rows one image makes, which a graph whose sizes vary does not tell."""
    with one_image(graph, size):
        counted = [_site(node, block, refused, 1) for block, node in enumerate(cores)]
        rows = [linear.rows for linear in _linears(graph, cores, 1)]
        products = tuple(list_products(graph, 1))
    sites, linears = zip(structure.attention, counted, strict=True), zip(structure.linears, rows, strict=True)
    return replace(
        structure,
        attention=tuple(
            replace(site, windows=one.windows, tokens=one.tokens, key_tokens=one.key_tokens) for site, one in sites
        ),
        linears=tuple(replace(linear, rows=count) for linear, count in linears),
        products=products,
    )


def scope(node: ir.Node) -> str:
    """Return the module path in a node's name: `blocks.0.attn` for `blocks.0.attn/Softmax`."""
    return (node.name or "").rpartition("/")[0]


def _site(node: ir.Node, block: int, refused: Mapping[str, str], batch: int | None) -> AttentionSite:
    name = node.name or ""
    if name in refused:
        return AttentionSite(name=name, nodes=(name,), block=block, refused=refused[name])
    query, key, value = (_as_4d(dims(v)) for v in node.inputs[:3])
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


def _as_4d(shape: tuple[int | None, ...] | None) -> tuple[int | None, ...]:
    return shape if shape is not None and len(shape) == 4 else (None,) * 4


def _bias(core: ir.Node) -> Bias | None:
    """Return the kind of bias or mask that the scores get."""
    if core.attributes.get_int("is_causal"):
        return "causal"
    bias = core.inputs[3] if len(core.inputs) > 3 else None
    if bias is None:
        return None
    if bias.dtype == ir.DataType.BOOL:
        return "mask"
    return "window bias" if (_as_4d(dims(bias))[0] or 1) > 1 else "bias"


def _linears(graph: Graph, cores: list[ir.Node], batch: int | None) -> Iterator[Linear]:
    """Yield every linear in order. Its block is that of the attention that it feeds, or else of the last one before."""
    feeding = {
        id(node): block for block, core in enumerate(cores) for node in _search_above(_attention_operands(core))[0]
    }
    activated = {id(n) for node in graph.nodes if weight_of(node) is not None for n in _linears_before_activation(node)}
    order = {id(core): block for block, core in enumerate(cores)}
    block: int | None = None
    for node in graph.nodes:
        block = order.get(id(node), block)
        weight = weight_of(node)
        if weight is None:
            continue
        role = _role(node, feeds_attention=id(node) in feeding, is_activated=id(node) in activated)
        linear_block = None if role in ("patch", "head") else feeding.get(id(node), block)
        yield Linear(
            name=product_name(node),
            nodes=(node.name or "",),
            role=role,
            block=linear_block,
            weight=weight,
            size=_size(node, weight),
            rows=_rows(node, batch),
            initializer=(node.inputs[1].name or "") if node.inputs[1] is not None else "",
            bias=bias_add_name(node),
            channels_first=_is_between_moves(node),
        )


def _is_between_moves(node: ir.Node) -> bool:
    """Return whether a Transpose moves the channels of a product to the end, and another one moves them back."""
    rank, bias = len(dims(node.outputs[0]) or ()), bias_behind(node)
    after = only_consumer((node if bias is None else bias[0]).outputs[0])
    is_product = node.op_type == "MatMul" and rank > 2
    return is_product and is_transpose(producer(node.inputs[0]), to_last(rank)) and is_transpose(after, to_first(rank))


def _size(node: ir.Node, weight: tuple[int, ...]) -> tuple[int, int]:
    """Return K x N of a linear with a weight (K, N), (N, K) in a Gemm, or (N, channels, height, width) in a Conv."""
    if node.op_type in CONVOLUTIONS:
        return math.prod(weight[1:]), weight[0]
    transposed = node.op_type == "Gemm" and bool(node.attributes.get_int("transB"))
    return (weight[1], weight[0]) if transposed else (weight[0], weight[1])


def _rows(node: ir.Node, batch: int | None) -> int | None:
    """Count the rows (tokens or patches) that one image feeds through the linear."""
    shape = dims(node.outputs[0])
    if not shape:
        return None
    shape = (shape[0], *shape[2:]) if node.op_type in CONVOLUTIONS else shape[:-1]
    if None in shape or batch is None:
        return None
    total = math.prod(d for d in shape if d is not None)
    return total // batch if total % batch == 0 else None


def _role(node: ir.Node, *, feeds_attention: bool, is_activated: bool) -> Role:
    if node.op_type in CONVOLUTIONS:
        return "patch"
    if feeds_attention:
        return "qkv"
    is_at_end = _is_at_end(node.outputs[0])
    if not is_at_end and (is_activated or _reaches(node.outputs[0], _ACTIVATIONS)):
        return "fc1"
    _, op_types = _search_above([node.inputs[0]], _ACTIVATIONS)
    if op_types & _CORES:
        return "proj"
    if is_at_end:  # checked before fc2, because some heads are MLPs
        return "head"
    return "fc2" if op_types & _ACTIVATIONS else "other"


def _attention_operands(core: ir.Node) -> list[ir.Value | None]:
    """Return q, k and v of an attention; the scores and v around a softmax that was not raised."""
    if core.op_type == "Attention":
        return list(core.inputs[:3])
    return [core.inputs[0], *(value for product in _products(core.outputs[0]) for value in product.inputs)]


def _products(attention_map: ir.Value) -> Iterator[ir.Node]:
    """Yield the products that read the attention map, directly or through operators that guard or convert it."""
    for node in (use.node for use in attention_map.uses()):
        if node.op_type == "MatMul":
            yield node
        elif node.op_type in ("Cast", "Dropout", "Identity", "Transpose", "Where"):
            yield from _products(node.outputs[0])


def _linears_before_activation(node: ir.Node) -> list[ir.Node]:
    """Return the linears that `node` reads through an activation, which may be several operators."""
    linears, op_types = _search_above([node.inputs[0]], _ACTIVATIONS)
    return linears if op_types & _ACTIVATIONS and not op_types & _CORES else []


def linears_above(values: list[ir.Value | None]) -> list[ir.Node]:
    """Return the linears that reach `values` through operators that only move, shift or multiply numbers."""
    return _search_above(values)[0]


def _search_above(values: list[ir.Value | None], through: Collection[str] = ()) -> tuple[list[ir.Node], set[str]]:
    """Return the linears that reach `values`, and the types of all operators between them and `values`.

    The search goes through operators that move or shift numbers, products of two computed tensors, depthwise
    convolutions (SegFormer has one in its MLP, MViT has one behind its queries), and operators of `through`.
    """
    linears, op_types, pending, visited = [], set(), list(values), set()
    while pending:
        node = producer(pending.pop())
        if node is None or id(node) in visited:
            continue
        visited.add(id(node))
        op_types.add(node.op_type)
        if weight_of(node) is not None:
            linears.append(node)
        elif node.op_type in _TRANSPARENT | _PRODUCTS or node.op_type in through or _is_depthwise(node):
            pending += node.inputs
    return linears, op_types


def _is_depthwise(node: ir.Node) -> bool:
    """Return whether `node` is a convolution that keeps channels apart."""
    weight = constant(node.inputs[1]) if node.op_type == "Conv" and len(node.inputs) > 1 else None
    return weight is not None and weight.shape[1] == 1 and (node.attributes.get_int("group") or 1) > 1


def _reaches(value: ir.Value, op_types: set[str], depth: int = 4) -> bool:
    """Return whether `value` reaches one of `op_types` through its bias, casts, Q/DQ and constant factors."""
    if depth == 0:
        return False
    for use in value.uses():
        if use.node.op_type in op_types:
            return True
        is_bias = use.node.op_type in ("Add", "Mul", "Div") and any(constant(v) is not None for v in use.node.inputs)
        if (is_bias or use.node.op_type in ("QuantizeLinear", "DequantizeLinear", "Cast")) and _reaches(
            use.node.outputs[0], op_types, depth - 1
        ):
            return True
    return False


def _is_at_end(value: ir.Value) -> bool:
    """Return whether only a bias, activations and moving operators stand between `value` and the graph outputs."""
    if value.is_graph_output():
        return True
    uses = [use.node for use in value.uses()]
    return bool(uses) and all(_is_tail(n) and _is_at_end(n.outputs[0]) for n in uses)


def _is_tail(node: ir.Node) -> bool:
    if node.op_type == "Add":  # an Add of a bias; the Add of a residual ends a block and not the model
        return any(constant(value) is not None for value in node.inputs)
    return node.op_type in _TRANSPARENT | _ACTIVATIONS | {"Softmax"}
