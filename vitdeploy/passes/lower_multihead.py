"""Lower each attention to ONNX Runtime's MultiHeadAttention, which runs as one kernel."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.dialect import CONTRIB
from vitdeploy.graph.model import Graph, constant, dims, only_consumer, operand, producer
from vitdeploy.passes import Pass, PassResult
from vitdeploy.passes._attention import attention_cores, has_fewer_key_heads, scale_of, unsupported_reason


class LowerMultihead(Pass):
    """Replace `Attention` by `com.microsoft.MultiHeadAttention`, without the reshapes and transposes around it.

        x (B, N, H·d) ─ Reshape ─ Transpose ─ q, k, v (B, H, N, d) ─ Attention ─ Transpose ─ Reshape
     ─▶ x (B, N, H·d) ─ q, k, v ─ MultiHeadAttention (B, N, H·d)

    k and v may not come from (batch, tokens, channels), for example after a rotary embedding. The operator then takes
    them as they are, and only q is brought to that form. Refused: a boolean mask, and what `unsupported_reason` names.
    These stay the standard operator, which ONNX Runtime runs as one kernel too.
    """

    def apply(self, graph: Graph) -> PassResult:
        """Lower every attention."""
        refused, fired = {}, 0
        for core in attention_cores(graph):
            reason = unsupported_reason(core) or _multihead_refusal(core)
            if reason:
                refused[core.name or ""] = reason
                continue
            _lower(graph, core)
            fired += 1
        if fired:
            graph.model.opset_imports[CONTRIB] = 1
        return PassResult(fired, refused)


def _multihead_refusal(core: ir.Node) -> str | None:
    """Return why MultiHeadAttention cannot express this attention, or None."""
    if has_fewer_key_heads(core):
        return "keys have fewer heads than queries"
    q, v = dims(core.inputs[0]), dims(core.inputs[2])
    bias = core.inputs[3] if len(core.inputs) > 3 else None
    if q is None or v is None or None in (q[1], q[3], v[3]):
        return "the number of heads or the head size is not known"
    if q[3] != v[3]:
        return "v has another head size than q and k"
    if bias is not None and (bias.dtype == ir.DataType.BOOL or dims(bias) is None):
        return "its mask is boolean or of unknown shape"
    return None


def _lower(graph: Graph, core: ir.Node) -> None:
    heads, size = (int(n or 0) for n in (dims(core.inputs[0]) or ())[1::2])
    name, tape = core.name, ir.tape.Tape()

    def ints(label: str, values: list[int]) -> ir.Value:
        return tape.initializer(ir.tensor(np.array(values, np.int64), name=f"{name}/{label}"))

    query = _find_channels_last(tape, core.inputs[0], f"{name}/q")
    if query is None:
        tokens_first = tape.op("Transpose", [core.inputs[0]], {"perm": [0, 2, 1, 3]}, name=f"{name}/transpose_q")
        query = tape.op("Reshape", [tokens_first, ints("q_shape", [0, 0, heads * size])], name=f"{name}/merge_q")
    keys, values = (_find_channels_last(tape, core.inputs[1 + i], f"{name}/{label}") for i, label in enumerate("kv"))
    if keys is None or values is None:  # the operator takes both in the same form
        keys, values = core.inputs[1:3]
    inputs: list[ir.Value | None] = [query, keys, values]
    if len(core.inputs) > 3 and (bias := core.inputs[3]) is not None:
        rank = len(dims(bias) or ())
        if rank < 4:
            axes = ints("bias_axes", list(range(4 - rank)))
            bias = tape.op("Unsqueeze", [bias, axes], name=f"{name}/bias")
        inputs += [None, None, bias]
    merged = tape.op(
        "MultiHeadAttention", inputs, {"num_heads": heads, "scale": scale_of(core)}, domain=CONTRIB, name=name
    )
    if (merge := _match_merge_of_heads(core, heads * size)) is not None:
        result, shape = merged, dims(merge[-1].outputs[0]) or ()
        batch, _, queries, _ = dims(core.outputs[0]) or (None,) * 4
        if len(shape) != 3 or shape[:2] != (batch, queries):  # windows go back to images in the same step
            sizes = ints("images", [-1 if n is None else n for n in shape])
            result = tape.op("Reshape", [merged, sizes], name=f"{name}/merge_windows")
        graph.replace([core, *merge], tape, merge[-1].outputs[0], result)
        return
    split = tape.op("Reshape", [merged, ints("split", [0, 0, heads, size])], name=f"{name}/split")
    result = tape.op("Transpose", [split], {"perm": [0, 2, 1, 3]}, name=f"{name}/heads_first")
    graph.replace([core], tape, core.outputs[0], result)


def _find_channels_last(tape: ir.tape.Tape, value: ir.Value | None, name: str) -> ir.Value | None:
    """Return the (batch, tokens, heads · size) that `value` splits into (batch, heads, tokens, size), or None."""
    transpose = producer(value, "Transpose")
    if transpose is None or tuple(transpose.attributes.get_ints("perm", ())) != (0, 2, 1, 3):
        return None
    split = operand(transpose, 0)
    reshape, after = producer(split, "Reshape"), dims(split)
    if after is None or len(after) != 4 or None in after[2:]:
        return None
    _, tokens, heads, size = after
    channels = (heads or 0) * (size or 0)
    before = dims(reshape.inputs[0]) if reshape is not None else None
    is_split = before is not None and len(before) == 3 and before[1:] == (tokens, channels)
    if reshape is not None and before is not None and is_split and (tokens or _keeps_batch(reshape, before[0])):
        return reshape.inputs[0]
    shape = tape.initializer(ir.tensor(np.array([0, 0, channels], np.int64), name=f"{name}_shape"))
    return tape.op("Reshape", [split, shape], name=f"{name}_merge")


def _keeps_batch(reshape: ir.Node, batch: int | None) -> bool:
    """Return whether the batch stays as it is. With the channels it tells the tokens, where their number varies."""
    target = constant(reshape.inputs[1])
    first = None if target is None else int(target.numpy()[0])
    return first is not None and first in (0, batch)


def _match_merge_of_heads(core: ir.Node, channels: int) -> tuple[ir.Node, ir.Node] | None:
    """Match Transpose and Reshape to (…, channels) behind the core, if nothing else reads its output."""
    transpose = only_consumer(core.outputs[0], "Transpose")
    if transpose is None or tuple(transpose.attributes.get_ints("perm", ())) != (0, 2, 1, 3):
        return None
    reshape = only_consumer(transpose.outputs[0], "Reshape")
    shape, before = dims(reshape.outputs[0]) if reshape is not None else None, dims(transpose.outputs[0])
    if reshape is None or shape is None or before is None or shape[-1] != channels:
        return None
    is_plain = len(shape) == 3 and shape[:2] == before[:2]
    return (transpose, reshape) if is_plain or shape.count(None) < 2 else None
