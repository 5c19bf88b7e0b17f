"""Count the kernels of a TensorRT engine: attention, products by type, moves and casts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from vitdeploy.evidence import KernelAudit
from vitdeploy.targets._tensorrt.plan import (
    PlanLayer,
    changes_type,
    is_fused_attention,
    is_product,
    product_type,
)

# The names of kernels that TensorRT's compiler generates list their steps, with at most four letters each:
# `__myl_ReshTranSlicConc_myl0_4` moves numbers, `__myl_CastConc_..` also changes their type.
_GENERATED = re.compile(r"__myl_((?:[A-Z][a-z]*)+)")
_MOVES = frozenset({"Move", "Resh", "Tran", "Slic", "Conc", "Pad", "Squz", "Unsq", "Gath"})
_REFORMAT_KINDS = frozenset({"reformat", "shuffle", "slice", "concatenation", "noop"})


def count_kernels(layers: Sequence[PlanLayer]) -> KernelAudit:
    """Count the kernels in an engine's layer plan."""
    gemms: Counter[str] = Counter()
    attention = reformats = casts = 0
    for layer in layers:
        if is_fused_attention(layer):
            attention += 1
        elif is_product(layer):
            gemms[product_type(layer) or "other"] += 1
        elif _is_cast(layer):
            casts += 1
        elif _is_move(layer):
            reformats += 1
    return KernelAudit(
        kernels=len(layers), attention=attention, gemms=dict(sorted(gemms.items())), reformats=reformats, casts=casts
    )


def _parse_steps(layer: PlanLayer) -> set[str]:
    match = _GENERATED.match(layer.name)
    return set(re.findall(r"[A-Z][a-z]*", match[1])) if match else set()


def _is_cast(layer: PlanLayer) -> bool:
    steps, kind = _parse_steps(layer), layer.kind.lower()
    if kind == "reformat":  # 10.x quantizes and casts with reformat kernels, too
        return changes_type(layer)
    return kind == "cast" or ("Cast" in steps and steps <= _MOVES | {"Cast"})


def _is_move(layer: PlanLayer) -> bool:
    steps = _parse_steps(layer)
    moves = bool(steps) and steps <= _MOVES
    return moves or layer.kind.lower() in _REFORMAT_KINDS or layer.name.startswith("Reformatting CopyNode")
