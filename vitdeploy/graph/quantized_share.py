"""The share of a model's weights and multiply-accumulates that run in the precision that was asked for."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping

from vitdeploy.evidence import EvidenceLevel, QuantizedShare
from vitdeploy.graph.dialect import Numbers
from vitdeploy.graph.macs import Weighted, count_attention, list_weighted
from vitdeploy.graph.structure import Structure

LEAST_SHARE = 0.5
"""Of the multiply-accumulates with weights that nothing excludes. With less, the precision's name misleads."""


def measure_share(
    structure: Structure,
    numbers: Numbers,
    types: Mapping[str, str],
    stored: Mapping[str, str],
    excluded: Mapping[str, str],
    evidence: EvidenceLevel,
) -> QuantizedShare | None:
    """Measure the share of products with weights that run in the precision that was asked for.

    Args:
        structure: the linears and the other products with weights.
        numbers: the precision. Where only weights are stored in few bits, a product counts if its weights are.
        types: product -> the type it multiplies in.
        stored: product -> the type of its weights in memory, if it multiplies in another one.
        excluded: product -> the rule by which it stays in float: `keep`, the accuracy budget, or a rule with a name.
        evidence: where `types` and `stored` come from.

    Returns:
        None for float32, for a model without weights, and for structures of older versions.
    """
    requested = asked_type(numbers)
    if requested is None or structure.products is None:
        return None
    products = list(list_weighted(structure))
    weights, macs = sum(p.weights for p in products), sum(p.macs or 0 for p in products)
    if not weights or not macs:
        return None
    inside = [p for p in products if requested in (types.get(p.name), stored.get(p.name))]
    outside = [p for p in products if p not in inside]
    eligible = [p for p in products if p in inside or p.name not in excluded]
    attention = [count_attention(site) for site in structure.attention]
    return QuantizedShare(
        precision=requested,
        evidence=evidence,
        weights_pct=100.0 * sum(p.weights for p in inside) / weights,
        macs_pct=100.0 * _sum_macs(inside) / macs,
        eligible_pct=100.0 * _sum_macs(inside) / _sum_macs(eligible) if _sum_macs(eligible) else None,
        weights=weights,
        macs=macs,
        attention_macs=None if None in attention else sum(count or 0 for count in attention),
        outside=_group(outside, excluded, macs),
        unknown=tuple(p.name for p in products if p.macs is None),
    )


def asked_type(numbers: Numbers) -> str | None:
    """Return the type that a precision asks for: of products, or of stored weights; None for float32."""
    if numbers.products != "fp32":
        return numbers.products
    return numbers.weights if numbers.weights != "fp32" else None


def type_by_plan(structure: Structure, numbers: Numbers, excluded: Mapping[str, str]) -> dict[str, str]:
    """Return the type of each product as the graph says, where nothing compiled tells it.

    In a half precision all products are in its type. In the others only the linears are.
    """
    requested, everything = asked_type(numbers), numbers.rest == numbers.products
    planned = [*structure.linears, *((structure.products or ()) if everything else ())]
    return {p.name: requested for p in planned if requested is not None and p.name not in excluded}


def doubt_share(share: QuantizedShare | None) -> Iterator[str]:
    """Yield a doubt if most of what could run in the precision does not."""
    if share is None or share.eligible_pct is None or share.eligible_pct >= 100 * LEAST_SHARE:
        return
    largest = max(((pct, what) for what, pct in share.outside.items() if "(" not in what), default=(0.0, ""))[1]
    reason = f"; most of the rest: {largest}" if largest else ""
    yield (
        f"only {share.eligible_pct:.1f} % of the multiply-accumulates that could be {share.precision} are, and "
        f"{share.weights_pct:.1f} % of the weights{reason}"
    )


def _sum_macs(products: list[Weighted]) -> int:
    return sum(p.macs or 0 for p in products)


def _group(products: list[Weighted], excluded: Mapping[str, str], total: int) -> dict[str, float]:
    """Return kind and rule -> percent of all multiply-accumulates, the largest first."""
    counts: Counter[str] = Counter()
    macs: defaultdict[str, int] = defaultdict(int)
    for product in products:
        rule = excluded.get(product.name, "").partition(":")[0]
        what = product.kind if not rule else f"{product.kind} ({rule})"
        counts[what] += 1
        macs[what] += product.macs or 0
    ordered = sorted(macs, key=lambda what: -macs[what])
    return {f"{counts[what]} {what}": 100.0 * macs[what] / total for what in ordered}
