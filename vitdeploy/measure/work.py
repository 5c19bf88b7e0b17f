"""What a model asks of a machine for one image: operations and bytes, from its structure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from vitdeploy.graph.structure import AttentionSite, Linear, Structure

_WEIGHT_BYTES = {"int4": 0.5, "int8": 1.0, "fp8": 1.0, "fp16": 2.0, "bf16": 2.0}
_FLOAT_BYTES = 4.0


@dataclass(frozen=True)
class Work:
    """Operations by precision (a multiply-add is two), bytes of weights as stored, bytes in and out of products.

    `unknown` names the linears and sites whose sizes are not known before run time: their work is missing here.
    """

    operations: Mapping[str, float]
    weight_bytes: float
    activation_bytes: float
    unknown: tuple[str, ...] = ()

    @property
    def total(self) -> float:
        """All operations."""
        return sum(self.operations.values())


def of(structure: Structure, precisions: Mapping[str, str], stored: Mapping[str, str] | None = None) -> Work:
    """The products of one image: linears in the precision that was read back for them, attention in float32.

    Norms, softmax and activations are a percent of the arithmetic and are left out, so a floor made of this is one.

    Args:
        structure: sites and linears with their sizes.
        precisions: linear -> precision that it multiplies in, from the audit; float32 where it is silent.
        stored: linear -> type of its weights, where the kernel itself unpacks them.
    """
    operations: defaultdict[str, float] = defaultdict(float)
    weights = activations = 0.0
    unknown = []
    for linear in structure.linears:
        precision = precisions.get(linear.name, "fp32")
        k, n = linear.size or (0, 0)
        weights += k * n * _WEIGHT_BYTES.get((stored or {}).get(linear.name, precision), _FLOAT_BYTES)
        rows = _rows(linear, structure)
        if rows is None or not k:
            unknown.append(linear.name)
            continue
        operations[precision] += 2.0 * rows * k * n
        activations += rows * (k + n) * _FLOAT_BYTES
    for site in structure.attention:
        own = _attention(site)
        if own is None:
            unknown.append(site.name)
            continue
        operations["fp32"] += own
    return Work(dict(operations), weights, activations, tuple(unknown))


def in_float32(structure: Structure) -> Work:
    """The same model before anything was quantized: what the FP32 reference does."""
    return of(structure, {})


def _rows(linear: Linear, structure: Structure) -> int | None:
    """As stored; else, for a linear within an attention block, the tokens of its site."""
    if linear.rows is not None:
        return linear.rows
    if linear.block is None or linear.role not in ("qkv", "proj", "fc1", "fc2"):
        return None
    site = next((site for site in structure.attention if site.block == linear.block), None)
    if site is None or site.tokens is None or site.windows is None or site.tokens != site.key_tokens:
        return None
    return site.tokens * site.windows


def _attention(site: AttentionSite) -> float | None:
    """Both products, scores and their sum over the values."""
    sizes = (site.heads, site.tokens, site.key_tokens, site.head_size, site.value_size, site.windows)
    if None in sizes:
        return None
    heads, tokens, keys, head, value, windows = (float(size) for size in sizes if size is not None)
    return 2.0 * heads * tokens * keys * (head + value) * windows
