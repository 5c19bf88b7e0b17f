"""What TensorRT's fused attention takes, as far as it is known, so that lowering and audits can name it.

Found by compiling two attentions of every kind with TensorRT-RTX 1.7 in FP16 (sm75, sm86, sm89, sm120 agree): it fuses
when q, k and v have one head size of 9 to 256 and batch x windows x heads is more than 1, whatever the number of tokens
and the bias, unless there is one key only. TensorRT's guide ("Multi-Head Attention Fusion") promises less: head sizes
of 16 to 256 that 8 divides. Attention is padded to those; it saves TensorRT-RTX a kernel a site that pads inside.
"""

from __future__ import annotations

from vitdeploy.graph.dialect import FusedAttention, Int8AttentionKernel
from vitdeploy.graph.structure import AttentionSite
from vitdeploy.recipe import Batch

FUSED = FusedAttention(smallest=16, largest=256, multiple=8)

INT8 = Int8AttentionKernel(head_sizes=(16, 32, 64), tokens=512)
"""As TensorRT's guide says it, and TensorRT-RTX 1.7 does it (sm86): with Q/DQ on q, k, v and the probabilities, and a
quantized reader, it fuses just there, with a bias or without, and saves a kernel a site. Some of them only, head sizes
of 24, 48, 80, 128 or 256, 513 tokens, or a reader in float: no kernel. FP8 (sm89) fuses everywhere, but takes three
kernels a site more than FP16 attention does."""

_SMALLEST_FUSED = 9
"""Of head sizes, where nothing was padded."""


def limit(site: AttentionSite, batch: Batch) -> str | None:
    """The rule that forbids a kernel for this site, as its own facts tell it; None when it breaks no known one."""
    fitted = {node.rpartition("/")[2] for node in site.nodes}
    broken = None
    if site.key_tokens == 1:
        broken = "one key"
    elif not any(node.startswith("pad_") for node in fitted):
        broken = _sizes(site.head_size, site.value_size)
    if broken is None and batch.max == 1 and site.windows == 1 and site.heads == 1 and "split_q" not in fitted:
        broken = "a single head at batch 1 (an even number of queries is dealt to two)"
    return broken and f"TensorRT-RTX 1.7 does not fuse attention with {broken}"


def _sizes(head: int | None, value: int | None) -> str | None:
    if head is None or value is None:
        return None
    if head != value:
        return f"head size {head} for q and k and {value} for v"
    if not _SMALLEST_FUSED <= head <= FUSED.largest:
        return f"head size {head}"
    return None
