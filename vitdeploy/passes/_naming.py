"""Unique names for the nodes that a rewrite adds."""

from __future__ import annotations

from collections.abc import Collection


def unique_name(module: str, op_type: str, used_names: Collection[str | None]) -> str:
    """Return `MODULE/OP_TYPE`, with a number if that name is used: a module may call the same function twice."""
    base = name = f"{module}/{op_type}".lstrip("/")
    number = 0
    while name in used_names:
        number += 1
        name = f"{base}_{number}"
    return name
