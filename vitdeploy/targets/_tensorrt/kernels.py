"""Count what a TensorRT engine is made of: fused attention, products by precision, and kernels that compute nothing."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from vitdeploy.evidence import KernelAudit
from vitdeploy.targets._tensorrt.plan import (
    PlanLayer,
    changes_type,
    is_fused_attention,
    multiplied_in,
    multiplies,
)

# Kernels that TensorRT's compiler generates are named after what they do, each step in four letters at most:
# `__myl_ReshTranSlicConc_myl0_4` moves numbers, `__myl_CastConc_..` changes their type on the way.
_GENERATED = re.compile(r"__myl_((?:[A-Z][a-z]*)+)")
_MOVES = frozenset({"Move", "Resh", "Tran", "Slic", "Conc", "Pad", "Squz", "Unsq", "Gath"})
_REFORMAT_KINDS = frozenset({"reformat", "shuffle", "slice", "concatenation", "noop"})


def count_kernels(layers: Sequence[PlanLayer]) -> KernelAudit:
    """Sum up an engine's layer plan."""
    gemms: Counter[str] = Counter()
    attention = reformats = casts = 0
    for layer in layers:
        if is_fused_attention(layer):
            attention += 1
        elif multiplies(layer):
            gemms[multiplied_in(layer) or "other"] += 1
        elif _only_casts(layer):
            casts += 1
        elif _only_moves(layer):
            reformats += 1
    return KernelAudit(
        kernels=len(layers), attention=attention, gemms=dict(sorted(gemms.items())), reformats=reformats, casts=casts
    )


def _steps(layer: PlanLayer) -> set[str]:
    found = _GENERATED.match(layer.name)
    return set(re.findall(r"[A-Z][a-z]*", found[1])) if found else set()


def _only_casts(layer: PlanLayer) -> bool:
    steps, kind = _steps(layer), layer.kind.lower()
    if kind == "reformat":  # 10.x quantizes and casts with reformat kernels, too
        return changes_type(layer)
    return kind == "cast" or ("Cast" in steps and steps <= _MOVES | {"Cast"})


def _only_moves(layer: PlanLayer) -> bool:
    steps = _steps(layer)
    moves = bool(steps) and steps <= _MOVES
    return moves or layer.kind.lower() in _REFORMAT_KINDS or layer.name.startswith("Reformatting CopyNode")
