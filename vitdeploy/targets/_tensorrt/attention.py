"""The rules of TensorRT's fused attention, for lowering and for audits.

They were found by compiling two attentions of every kind with TensorRT-RTX 1.7 in FP16 (sm75, sm86, sm89 and sm120
agree). It fuses if q, k and v have the same head size of 9 to 256, batch x windows x heads is more than 1, and there is
more than one key. The number of tokens and the bias do not matter. TensorRT's guide ("Multi-Head Attention Fusion")
promises less: head sizes of 16 to 256 in steps of 8. Attention is padded to those sizes. Without it, TensorRT-RTX pads
with one more kernel per site.
"""

from __future__ import annotations

from vitdeploy.graph.dialect import FusedAttention, Int8AttentionKernel
from vitdeploy.graph.structure import AttentionSite
from vitdeploy.recipe import Batch

FUSED = FusedAttention(smallest=16, largest=256, multiple=8)

INT8 = Int8AttentionKernel(head_sizes=(16, 32, 64), tokens=512)
"""INT8 attention as TensorRT's guide describes it and TensorRT-RTX 1.7 does it (sm86). It fuses with Q/DQ pairs on q,
k, v and the probabilities and a quantized reader, with a bias or without, and saves one kernel per site. It does not
fuse with only some of these pairs, with head sizes of 24, 48, 80, 128 or 256, with 513 tokens, or with a reader in
float. FP8 (sm89) fuses everywhere, but takes three kernels per site more than FP16 attention."""

FLOAT32_RULE = "runs in FP32, which TensorRT does not fuse"
"""TensorRT developer guide, "Multi-Head Attention Fusion": FP16, BF16, INT8 and FP8 have kernels, FP32 has none. The
passes leave such attention as it is, so its head sizes are no reason."""

_SMALLEST_FUSED = 9
"""The smallest head size that fuses without padding."""


def broken_rule(site: AttentionSite, batch: Batch) -> str | None:
    """Return the rule that forbids a fused kernel for this site, or None."""
    nodes = {node.rpartition("/")[2] for node in site.nodes}
    rule = None
    if site.key_tokens == 1:
        rule = "one key"
    elif not any(node.startswith("pad_") for node in nodes):
        rule = _broken_size_rule(site.head_size, site.value_size)
    if rule is None and batch.max == 1 and site.windows == 1 and site.heads == 1 and "split_q" not in nodes:
        rule = "a single head at batch 1 (a known number of queries is split into two heads)"
    return rule and f"TensorRT-RTX 1.7 does not fuse attention with {rule}"


def _broken_size_rule(head: int | None, value: int | None) -> str | None:
    if head is None or value is None:
        return None
    if head != value:
        return f"head size {head} for q and k and {value} for v"
    if not _SMALLEST_FUSED <= head <= FUSED.largest:
        return f"head size {head}"
    return None
