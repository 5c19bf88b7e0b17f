"""Which linears are quantized, and the rule that decided it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from fnmatch import fnmatch

from vitdeploy.artifact.manifest import FLOAT, Placement
from vitdeploy.errors import QuantizeError
from vitdeploy.graph.dialect import Dialect
from vitdeploy.graph.structure import Linear, Structure

NEVER_QUANTIZED = {"patch": "the patch embedding sees raw pixels and is a few percent of the work"}
"""Attention cores, residual adds, LayerNorm and softmax are no linears and stay in float altogether: quantizing them
costs up to 80 points of top-1 and breaks attention fusion on every backend."""

_STORED = {"int8-bf16": "int8", "int8-dynamic": "int8", "int8-weights": "int8 weights", "int4-weights": "int4 weights"}
_LINEAR = "a product with constant weights"
_LAST = "the last layer, quantized like the others: `keep: [head]` leaves it in float"
_RESIDUAL = "the residual stream carries the outliers: quantizing it costs points and breaks fusion"
_ATTENTION_ALONE = "fused in float; INT8 attention is not offered for this target"
_ATTENTION_ON_REQUEST = "fused in float; INT8 for all that it multiplies only on request (`attention: true`)"
_ATTENTION_COMPLETE = "asked for: q, k, v and the probabilities, which this target runs as one INT8 kernel"
_ATTENTION_FP8 = "FP8 attention is fused, but takes more kernels than float attention"
_ATTENTION_WEIGHTS = "attention multiplies no weights"


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


def told(structure: Structure, kept: Mapping[str, str], kind: str, dialect: Dialect) -> dict[str, Placement]:
    """Of each site, what becomes of it in precision `kind`, and why; `kept`: what stays in float, of `place`."""
    stored = _STORED.get(kind, kind)
    found = {
        linear.name: Placement(precision=FLOAT, rule=kept[linear.name])
        if linear.name in kept
        else Placement(precision=stored, rule=_LAST if linear.role == "head" else _LINEAR)
        for linear in structure.linears
    }
    rule = _attention_rule(kind, dialect)
    found |= {site.name: Placement(precision=FLOAT, rule=rule) for site in structure.attention}
    return {**found, "residual adds": Placement(precision=FLOAT, rule=_RESIDUAL)}


def attention_told(structure: Structure, placed: Collection[str], left: Mapping[str, str]) -> dict[str, Placement]:
    """The same of attention sites, where INT8 was asked for.

    Args:
        structure: the sites.
        placed: the names of the cores (`SITE/Attention`) that are INT8.
        left: the others, with the rule.
    """
    found = {}
    for site in structure.attention:
        core = next((node for node in site.nodes if node in placed or node in left), None)
        if core in placed:
            found[site.name] = Placement(precision="int8", rule=_ATTENTION_COMPLETE)
        elif core is not None:
            found[site.name] = Placement(precision=FLOAT, rule=left[core])
    return found


def _attention_rule(kind: str, dialect: Dialect) -> str:
    if kind.endswith("-weights"):
        return _ATTENTION_WEIGHTS
    if dialect.int8_attention is None:
        return _ATTENTION_ALONE
    return _ATTENTION_FP8 if kind == "fp8" else _ATTENTION_ON_REQUEST


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
