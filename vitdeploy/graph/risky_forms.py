"""Find forms of a target-ready graph that some compiler is reported to compute wrongly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping

import onnx_ir as ir

from vitdeploy.graph.model import Graph, dims, producer
from vitdeploy.graph.products import weight_of
from vitdeploy.graph.structure import CORE, RiskyForm, Structure

_DECODER = ("selection", "decoder", "heads")
_REFINED = 3
"""From so many Resizes behind one another on, maps are refined step by step, as by the head of a DPT."""


def find_risky_forms(graph: Graph, structure: Structure) -> tuple[RiskyForm, ...]:
    """Return the forms that the graph has.

    Args:
        graph: lowered to plain operators, so that every linear and attention has its final type.
        structure: the sites and linears of the graph, with their regions.
    """
    return tuple(form for form, has in _FORMS.items() if has(graph, structure))


def _has_rotary_positions(graph: Graph, structure: Structure) -> bool:
    """Return whether a query is rotated: half of its numbers change sign between its linear and the scores."""
    by_name = _by_name(graph)
    products = [by_name.get(f"{site.name}{CORE}/qk") for site in structure.attention]
    return any(
        node.op_type == "Neg" for product in products if product is not None for node in _nodes_up_to_linear(product)
    )


def _nodes_up_to_linear(product: ir.Node) -> Iterator[ir.Node]:
    """Yield the nodes above the queries of a product, up to the linears that make them."""
    visited: set[ir.Node] = set()
    pending = [producer(product.inputs[0])]
    while pending:
        node = pending.pop()
        if node is None or node in visited or weight_of(node) is not None:
            continue
        visited.add(node)
        yield node
        pending += [producer(value) for value in node.inputs]


def _has_separate_qkv(graph: Graph, structure: Structure) -> bool:
    """Return whether several linears of one attention read the same value."""
    by_name = _by_name(graph)
    readers = Counter(
        (linear.block, by_name[name].inputs[0])
        for linear in structure.linears
        for name in linear.nodes[:1]
        if linear.role == "qkv" and name in by_name
    )
    return max(readers.values(), default=0) > 1


def _has_float16_norm(graph: Graph, structure: Structure) -> bool:  # noqa: ARG001
    norms = (node for node in graph.nodes if node.op_type == "LayerNormalization")
    return any(_is_float16(norm.inputs[0]) for norm in norms)


def _is_detector(graph: Graph, structure: Structure) -> bool:  # noqa: ARG001
    return structure.is_detector


def _samples_features(graph: Graph, structure: Structure) -> bool:  # noqa: ARG001
    return any(node.op_type == "GridSample" for node in graph.nodes)


def _gives_instance_masks(graph: Graph, structure: Structure) -> bool:
    return structure.is_detector and any(len(dims(value) or ()) == 4 for value in graph.model.graph.outputs)


def _has_float16_decoder(graph: Graph, structure: Structure) -> bool:
    return any(_is_float16(node.inputs[0]) for node in _decoder_linears(graph, structure))


def _has_integer_decoder(graph: Graph, structure: Structure) -> bool:
    return any(producer(node.inputs[0], "DequantizeLinear") for node in _decoder_linears(graph, structure))


def _decoder_linears(graph: Graph, structure: Structure) -> Iterator[ir.Node]:
    by_name = _by_name(graph)
    if structure.is_detector:
        names = [name for linear in structure.linears if linear.region in _DECODER for name in linear.nodes[:1]]
        yield from (by_name[name] for name in names if name in by_name)


def _refines_maps(graph: Graph, structure: Structure) -> bool:  # noqa: ARG001
    """Return whether Resizes follow one another, each on what the one before has made larger."""
    depth: dict[ir.Node, int] = {}
    for node in graph.nodes:  # in an order in which they can run
        above = max((depth.get(above, 0) for value in node.inputs if (above := producer(value))), default=0)
        depth[node] = above + (node.op_type == "Resize" and node.attributes.get_string("mode", "nearest") == "linear")
    return max(depth.values(), default=0) >= _REFINED


def _is_float16(value: ir.Value | None) -> bool:
    return value is not None and value.dtype == ir.DataType.FLOAT16


def _by_name(graph: Graph) -> dict[str, ir.Node]:
    return {node.name: node for node in graph.nodes if node.name}


_FORMS: Mapping[RiskyForm, Callable[[Graph, Structure], bool]] = {
    "rotary positions": _has_rotary_positions,
    "separate q, k, v": _has_separate_qkv,
    "float16 norm": _has_float16_norm,
    "detector": _is_detector,
    "sampled features": _samples_features,
    "instance masks": _gives_instance_masks,
    "float16 decoder": _has_float16_decoder,
    "integer decoder": _has_integer_decoder,
    "refined maps": _refines_maps,
}
