"""Names for the nodes that a rewrite adds."""

from __future__ import annotations

from collections.abc import Collection


def unique(module: str, op_type: str, taken: Collection[str | None]) -> str:
    """`MODULE/OP_TYPE`, numbered when that is `taken`: a module may call the same function twice."""
    wanted = name = f"{module}/{op_type}".lstrip("/")
    number = 0
    while name in taken:
        number += 1
        name = f"{wanted}_{number}"
    return name
