"""Multiply-accumulates of one image: in linears, in other products with weights, and in attention."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from vitdeploy.graph.structure import AttentionSite, Linear, Structure


@dataclass(frozen=True)
class Weighted:
    """A product with a constant weight.

    Attributes:
        name: of the linear or of the other product.
        kind: "linear", or the operator of another product, such as "Conv".
        weights: the number of elements of its weight.
        macs: multiply-accumulates for one image; None if they are not known before run time.
    """

    name: str
    kind: str
    weights: int
    macs: int | None


def list_weighted(structure: Structure) -> Iterator[Weighted]:
    """Yield all products with weights. Structures of older versions have only the linears."""
    for linear in structure.linears:
        yield Weighted(linear.name, "linear", prod(linear.weight), count_linear(linear, structure))
    for product in structure.products or ():
        yield Weighted(product.name, product.operator, product.weights, product.macs)


def count_linear(linear: Linear, structure: Structure) -> int | None:
    """Return a linear's multiply-accumulates; None if its rows or its size are not known."""
    rows = count_rows(linear, structure)
    return None if rows is None or linear.size is None else rows * prod(linear.size)


def count_rows(linear: Linear, structure: Structure) -> int | None:
    """Return a linear's rows, or the tokens of its attention block; None if neither is known."""
    if linear.rows is not None:
        return linear.rows
    if linear.block is None or linear.role not in ("qkv", "proj", "fc1", "fc2"):
        return None
    site = next((site for site in structure.attention if site.block == linear.block), None)
    if site is None or site.tokens is None or site.windows is None or site.tokens != site.key_tokens:
        return None
    return site.tokens * site.windows


def count_attention(site: AttentionSite) -> int | None:
    """Return the multiply-accumulates of both products."""
    products = count_attention_products(site)
    return None if products is None else sum(products)


def count_attention_products(site: AttentionSite) -> tuple[int, int] | None:
    """Return the multiply-accumulates of each product: queries × keys, and probabilities × values."""
    sizes = (site.heads, site.tokens, site.key_tokens, site.head_size, site.value_size, site.windows)
    if None in sizes:
        return None
    heads, tokens, keys, head, value, windows = (size for size in sizes if size is not None)
    scores = heads * tokens * keys * windows
    return scores * head, scores * value
