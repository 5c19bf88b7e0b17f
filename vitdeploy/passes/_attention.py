"""Find canonical `Attention` nodes, and check whether a pass can lower them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.model import Graph, array, constant, dims, operand, producer

MASKED = -65504.0
"""The score of a masked key: the lowest float16, so that an FP16 graph can hold it. Its exponential is 0."""


def attention_cores(graph: Graph) -> list[ir.Node]:
    """Return the canonical attentions of a raised graph."""
    return [n for n in graph.nodes if n.op_type == "Attention" and n.domain == ""]


def scale_of(core: ir.Node) -> float:
    """Return the scale, which raising made explicit."""
    return core.attributes.get_float("scale", 1.0)


def has_fewer_key_heads(core: ir.Node) -> bool:
    """Return whether several heads of queries share one of keys and values (multi-query, grouped-query attention)."""
    q, k = dims(core.inputs[0]), dims(core.inputs[1])
    return q is not None and k is not None and q[1] != k[1]


def broadcasts(mask: tuple[int | None, ...] | None, tokens: tuple[int | None, int | None]) -> bool:
    """Return whether a mask of these sizes broadcasts to (queries, keys). Sizes that vary count as equal."""
    pairs = zip((mask or ())[::-1], tokens[::-1], strict=False)
    return all(size in (1, None, full) or full is None for size, full in pairs)


def has_hidden_query(mask: ir.Value) -> bool:
    """Return whether a constant mask lets no key pass for some query. What becomes of it is up to the operator."""
    expand = producer(mask, "Expand")
    value = operand(expand, 0) if expand is not None else mask
    if constant(value) is None:
        return False
    numbers = np.atleast_1d(array(value))
    passes = numbers if numbers.dtype == np.bool_ else numbers > -np.inf
    return not passes.any(axis=-1).all()


def unsupported_reason(core: ir.Node) -> str | None:
    """Return why this attention is more than softmax(q kᵀ · scale + bias) v on 4-D operands, or None if it is not."""
    shapes = [dims(v) for v in core.inputs[:3]]
    if any(s is None or len(s) != 4 for s in shapes):
        return "its operands are not 4-D (batch, heads, tokens, head size)"
    if core.attributes.get("scale") is None:
        return "its head size is not known"
    heads, key_heads, value_heads = ((s or ())[1] for s in shapes)
    if key_heads != value_heads or (heads != key_heads and (not heads or not key_heads or heads % key_heads)):
        return f"{heads} heads of queries cannot share {key_heads} of keys and {value_heads} of values"
    for option in ("is_causal", "softcap", "qk_matmul_output_mode"):
        attribute = core.attributes.get(option)
        if attribute is not None and attribute.value:
            return f"it uses {option}"
    if len([v for v in core.outputs if v.uses() or v.is_graph_output()]) > 1 or any(core.inputs[4:]):
        return "it caches keys or returns its scores"
    mask, (q, k, _) = core.inputs[3] if len(core.inputs) > 3 else None, (s or () for s in shapes)
    if mask is not None and not broadcasts(dims(mask), (q[2], k[2])):
        return "its mask has other numbers of queries or keys than its scores"
    if mask is not None and has_hidden_query(mask):
        return "its mask lets no key pass for some query, of which each operator makes something else"
    return None
