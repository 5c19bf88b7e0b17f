"""Let the dynamo exporter take every attention that PyTorch takes: it asserts four axes, and equal heads or fewer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_AXES = 4
"""(batch, heads, tokens, size)"""


@contextlib.contextmanager
def attention_in_four_axes() -> Iterator[None]:
    """Bring the operands of every scaled_dot_product_attention to four axes, and its result back.

    Heads that PyTorch broadcasts are said to be shared (`enable_gqa`), which the exporter writes as one operator too.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    attention = torch.nn.functional.scaled_dot_product_attention

    class InFourAxes(TorchFunctionMode):
        """A mode, because models also call the function by a name of their own."""

        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            options = dict(kwargs or {})
            if function is not attention:
                return function(*args, **options)
            operands = dict(zip(("query", "key", "value", "attn_mask"), args, strict=False))
            options |= operands
            q, k, v = (options.pop(name) for name in ("query", "key", "value"))
            mask = options.pop("attn_mask", None)
            more = args[len(operands) :]
            k, v, shared = _share_heads(q, k, v, is_grouped=options.pop("enable_gqa", False))
            if shared:
                options["enable_gqa"] = True
            elif not q.shape[:-2] == k.shape[:-2] == v.shape[:-2] or q.ndim != _AXES:
                return _attend(attention, q, k, v, mask, *more, **options)
            return attention(q, k, v, mask, *more, **options)

    with InFourAxes():
        yield


def _share_heads(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, is_grouped: bool
) -> tuple[torch.Tensor, torch.Tensor, bool]:
    """Return keys and values, and whether the operator shares their heads among more heads of queries.

    PyTorch broadcasts a single head of keys and values without being told that heads are grouped.
    """
    ranks, heads = {x.ndim for x in (q, k, v)}, [x.shape[-3] if x.ndim > 2 else 1 for x in (q, k, v)]
    if not is_grouped and (ranks != {_AXES} or heads[1:] != [1, 1]):
        return k, v, False
    if heads[0] == heads[1] == heads[2]:
        return k, v, False
    if ranks == {_AXES} and heads[1] == heads[2] and q.shape[0] == k.shape[0] == v.shape[0]:
        return k, v, True
    k, v = (x.repeat_interleave(heads[0] // own, -3) for x, own in zip((k, v), heads[1:], strict=True))
    return k, v, False


def _attend(
    attention: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, *more: Any,
    **options: Any,
) -> torch.Tensor:  # fmt: skip
    """Call `attention` on (batch, heads, tokens, size), where the axes in front of the tokens are merged or added."""
    import torch

    shapes = (x.shape[:-2] for x in (q, k, v))
    lead: torch.Size = torch.broadcast_shapes(*shapes)  # type: ignore[no-untyped-call]
    q, k, v = (_merge(x, lead) for x in (q, k, v))
    if mask is not None:  # the operator takes one for each query and key, while PyTorch broadcasts
        mask = mask.expand(*mask.shape[:-2], q.shape[-2], k.shape[-2])
        mask = _merge(mask, lead) if mask.ndim > 2 else mask
    result: torch.Tensor = attention(q, k, v, mask, *more, **options)
    return result.reshape(*lead, *result.shape[-2:])


def _merge(x: torch.Tensor, lead: torch.Size) -> torch.Tensor:
    """Return (first · … , last axis of `lead`, tokens, size); with axes of one in front if there are fewer."""
    x = x.expand(*lead, *x.shape[-2:])
    while x.ndim < _AXES:
        x = x.unsqueeze(-3)
    return x.flatten(0, x.ndim - _AXES)
