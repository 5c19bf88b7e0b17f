"""Which linears are quantized, and the rule that decided it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from fnmatch import fnmatch

from vitdeploy.errors import QuantizeError
from vitdeploy.graph.structure import Linear, Structure

NEVER_QUANTIZED = {"patch": "the patch embedding sees raw pixels and is a few percent of the work"}
"""Attention cores, residual adds, LayerNorm and softmax are no linears and stay in float altogether: quantizing them
costs up to 80 points of top-1 and breaks attention fusion on every backend."""


def place(structure: Structure, keep: tuple[str, ...]) -> tuple[list[Linear], dict[str, str]]:
    """The linears to quantize, and for each that stays in float the rule.

    Raises:
        QuantizeError: a `keep` entry matches nothing, or nothing is left to quantize.
    """
    kept = kept_by(structure, keep)
    for linear in structure.linears:
        if linear.role in NEVER_QUANTIZED:
            kept.setdefault(linear.name, NEVER_QUANTIZED[linear.role])
    placed = [linear for linear in structure.linears if linear.name not in kept]
    if not placed:
        raise QuantizeError("there is no linear to quantize", fix="Use --precision fp32, or keep less in float.")
    return placed, kept


def with_range(
    placed: list[Linear], kept: dict[str, str], inputs: Mapping[str, str], silent: Collection[str]
) -> tuple[list[Linear], dict[str, str]]:
    """The same, with linears left in float whose input no image moved: a range of zero says nothing of other images.

    Args:
        placed: as `place` gives it.
        kept: likewise.
        inputs: node of a linear -> its input.
        silent: inputs that were 0 throughout.
    """
    still = {linear.name for linear in placed if any(inputs.get(node) in silent for node in linear.nodes)}
    placed = [linear for linear in placed if linear.name not in still]
    if not placed:
        raise QuantizeError(
            "the inputs of all linears are 0 on every calibration image", fix="Give --calibration with other images."
        )
    return placed, kept | dict.fromkeys(still, "its input is 0 on every calibration image: there is no range")


def kept_by(structure: Structure, keep: tuple[str, ...]) -> dict[str, str]:
    """The linears that `keep` (roles or name patterns) keeps in float32, each with its rule.

    Raises:
        QuantizeError: an entry matches nothing.
    """
    kept: dict[str, str] = {}
    unused = set(keep)
    for linear in structure.linears:
        for pattern in keep:
            if pattern == linear.role or fnmatch(linear.name, pattern):
                kept[linear.name] = f"keep: {pattern}"
                unused.discard(pattern)
    if unused:
        known = sorted({linear.role for linear in structure.linears})
        raise QuantizeError(
            f"keep: {min(unused)!r} matches no linear", fix=f"Use a role ({', '.join(known)}) or a name pattern."
        )
    return kept
