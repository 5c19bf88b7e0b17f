"""Choose the linears to quantize, and record the rule that decided it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence, Set
from fnmatch import fnmatch

from vitdeploy.artifact.manifest import FLOAT, Placement
from vitdeploy.errors import QuantizeError
from vitdeploy.graph.dialect import Dialect
from vitdeploy.graph.structure import Linear, Region, Structure

NEVER_QUANTIZED = {"patch": "the patch embedding reads raw pixels and is a few percent of the work"}
"""Roles of linears that always stay in float. Attention cores, residual adds, LayerNorm and softmax are not linears,
and stay in float too: quantizing them costs up to 80 points of top-1 and breaks attention fusion on every backend."""

FLOAT_IN_DETECTORS: dict[Region, str] = {
    "selection": "selection scores of a detector: rounded, they select other rows "
    "(`float_decoder: false` quantizes them)",
    "decoder": "decoder of a detector: RT-DETR's mAP fell from 0.65 to 0.0002 in INT8 (ultralytics #26191; "
    "`float_decoder: false` quantizes it)",
    "heads": "heads of a detector: boxes are refined from what they add (`float_decoder: false` quantizes them)",
}
"""Regions of a detector with queries that stay in float where activations are rounded, with the rule."""

_LINEAR = "a product with constant weights"
_LAST = "the last layer, quantized like the others: `keep: [head]` leaves it in float"
_FEW_CHANNELS = "few channels: the moves around the INT8 product cost what it gains on this target"
_RESIDUAL = "the residual stream carries the outliers: quantizing it costs accuracy and breaks fusion"
_ATTENTION_ALONE = "fused in float: INT8 attention is not offered for this target"
_ATTENTION_ON_REQUEST = "fused in float: INT8 attention is used only on request (`attention: true`)"
_ATTENTION_TRIED = "fused in float: INT8 attention is an option (`attention: true`), which auto tries"
_ATTENTION_COMPLETE = "q, k, v and the probabilities, which this target runs as one INT8 kernel"
_ATTENTION_VALUES = "v and the probabilities, which this target multiplies in INT8 in its one kernel"
_ATTENTION_FP8 = "FP8 attention is fused, but takes more kernels than float attention"
_ATTENTION_WEIGHTS = "attention multiplies no weights"


def select_linears(
    structure: Structure,
    keep: tuple[str, ...],
    least_pointwise: int | None = None,
    *,
    float_decoder: bool = False,
) -> tuple[list[Linear], dict[str, str]]:
    """Select the linears to quantize; give the rule for each that stays in float.

    Args:
        structure: the linears, with their regions.
        keep: roles, regions or name patterns of linears that stay in float.
        least_pointwise: of the target where activations are quantized, see `Dialect`.
        float_decoder: leave the regions `FLOAT_IN_DETECTORS` of a detector in float too.

    Raises:
        QuantizeError: a `keep` entry matches nothing, or nothing is left to quantize.
    """
    rules = match_keep(structure, keep)
    for linear in structure.linears:
        if linear.role in NEVER_QUANTIZED:
            rules.setdefault(linear.name, NEVER_QUANTIZED[linear.role])
        if float_decoder and structure.is_detector and linear.region in FLOAT_IN_DETECTORS:
            rules.setdefault(linear.name, FLOAT_IN_DETECTORS[linear.region])
        if least_pointwise is not None and linear.channels_first and _effective_channels(linear) < least_pointwise:
            rules.setdefault(linear.name, _FEW_CHANNELS)
    selected = [linear for linear in structure.linears if linear.name not in rules]
    if not selected:
        by_region = set(rules.values()) & set(FLOAT_IN_DETECTORS.values())
        less = "set `float_decoder: false` in the recipe" if by_region else "keep less in float"
        raise QuantizeError("there is no linear to quantize", fix=f"Use --precision fp32, or {less}.")
    return selected, rules


def regions_in_float(structure: Structure) -> dict[str, str]:
    """Return the attention cores (`SITE/Attention`) of a detector that stay in float by their region, with the rule."""
    if not structure.is_detector:
        return {}
    sites = [site for site in structure.attention if site.region in FLOAT_IN_DETECTORS]
    return {node: FLOAT_IN_DETECTORS[site.region] for site in sites if site.region for node in site.nodes}


def _effective_channels(linear: Linear) -> float:
    """Return K · N / (K + N): the products for each number that is moved."""
    inputs, outputs = linear.size or linear.weight
    return inputs * outputs / (inputs + outputs)


def record_placement(
    structure: Structure, rules: Mapping[str, str], stored: str, dialect: Dialect
) -> dict[str, Placement]:
    """Return the precision of each site, and the rule that decided it.

    Args:
        structure: the linears and attention sites.
        rules: linears that stay in float, with the rule, as `select_linears` gives them.
        stored: the precision of the others: "int8", "fp8", "int8 weights", "int4 weights".
        dialect: says which attention the compiler can quantize.
    """
    linears = {
        linear.name: Placement(precision=FLOAT, rule=rules[linear.name])
        if linear.name in rules
        else Placement(precision=stored, rule=_LAST if linear.role == "head" else _LINEAR)
        for linear in structure.linears
    }
    rule = _attention_rule(stored, dialect)
    sites = {site.name: Placement(precision=FLOAT, rule=rule) for site in structure.attention}
    return {**linears, **sites, "residual adds": Placement(precision=FLOAT, rule=_RESIDUAL)}


def record_attention_placement(
    structure: Structure, quantized: Collection[str], rules: Mapping[str, str], *, values_alone: bool = False
) -> dict[str, Placement]:
    """Return the precision of each attention site where INT8 attention was requested, and its rule.

    Args:
        structure: the sites.
        quantized: the names of the cores (`SITE/Attention`) that are INT8.
        rules: the other cores, with the rule that keeps them in float.
        values_alone: whether only the probabilities and v are INT8.
    """
    rule = _ATTENTION_VALUES if values_alone else _ATTENTION_COMPLETE
    placement = {}
    for site in structure.attention:
        core = next((node for node in site.nodes if node in quantized or node in rules), None)
        if core in quantized:
            placement[site.name] = Placement(precision="int8", rule=rule)
        elif core is not None:
            placement[site.name] = Placement(precision=FLOAT, rule=rules[core])
    return placement


def _attention_rule(stored: str, dialect: Dialect) -> str:
    if stored.endswith("weights"):
        return _ATTENTION_WEIGHTS
    if dialect.int8_attention is None:
        return _ATTENTION_ALONE
    if stored == "fp8":
        return _ATTENTION_FP8
    return _ATTENTION_TRIED if dialect.int8_attention.values_alone else _ATTENTION_ON_REQUEST


def keep_zero_inputs(
    linears: Sequence[Linear], rules: Mapping[str, str], zero_nodes: Set[str]
) -> tuple[list[Linear], dict[str, str]]:
    """Keep linears in float whose input is 0 on every image: their range is not known.

    Args:
        linears: those to quantize, as `select_linears` gives them.
        rules: those that stay in float, with the rule.
        zero_nodes: nodes whose input is 0 on every image.

    Raises:
        QuantizeError: no linear is left to quantize.
    """
    zero = [linear.name for linear in linears if not zero_nodes.isdisjoint(linear.nodes)]
    others = [linear for linear in linears if linear.name not in zero]
    if not others:
        raise QuantizeError(
            "the inputs of all linears are 0 on every calibration image", fix="Give --calibration with other images."
        )
    return others, {**rules, **dict.fromkeys(zero, "its input is 0 on every calibration image: there is no range")}


def match_keep(structure: Structure, keep: tuple[str, ...]) -> dict[str, str]:
    """Return the linears that `keep` (roles, regions or name patterns) keeps in float32, each with its rule.

    Raises:
        QuantizeError: an entry matches nothing.
    """
    rules: dict[str, str] = {}
    unused = set(keep)
    for linear in structure.linears:
        for pattern in keep:
            if pattern in (linear.role, linear.region) or fnmatch(linear.name, pattern):
                rules[linear.name] = f"keep: {pattern}"
                unused.discard(pattern)
    if unused:
        roles = sorted({linear.role for linear in structure.linears})
        regions = sorted({linear.region for linear in structure.linears if linear.region is not None})
        region = f", a region ({', '.join(regions)})" if regions else ""
        raise QuantizeError(
            f"keep: {min(unused)!r} matches no linear",
            fix=f"Use a role ({', '.join(roles)}){region} or a name pattern.",
        )
    return rules
