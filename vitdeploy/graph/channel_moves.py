"""The permutations between channels first, (B, C, H, W), and channels last, (B, H, W, C)."""

from __future__ import annotations

import onnx_ir as ir


def to_last(rank: int) -> list[int]:
    """Return the permutation that moves the channels from axis 1 to the end."""
    return [0, *range(2, rank), 1]


def to_first(rank: int) -> list[int]:
    """Return the permutation that moves the channels from the end to axis 1."""
    return [0, rank - 1, *range(1, rank - 1)]


def is_transpose(node: ir.Node | None, perm: list[int]) -> bool:
    """Return whether `node` is a Transpose by `perm`."""
    return node is not None and node.op_type == "Transpose" and list(node.attributes.get_ints("perm", ())) == perm
