"""The outline of a structure: groups of equal blocks, and counts and sizes of linears."""

from __future__ import annotations

from typing import Any

import pytest

from vitdeploy.evidence import BlockGroup, LinearGroup
from vitdeploy.graph.outline import outline
from vitdeploy.graph.structure import AttentionSite, Linear, Norm, Structure


def site(block: int, heads: int = 3, **more: Any) -> AttentionSite:
    facts = {"head_size": 32, "value_size": 32, "tokens": 49, "key_tokens": 49, "windows": 16}
    return AttentionSite(name=f"blocks.{block}.attn", nodes=(), block=block, heads=heads, **(facts | more))


def linear(role: Any, block: int | None, k: int, n: int, name: str = "") -> Linear:
    return Linear(name=name or f"{block}.{role}", nodes=(), role=role, block=block, weight=(k, n), size=(k, n))


def test_equal_blocks_make_a_stage_whatever_is_added_to_their_scores() -> None:
    sites = (site(0, bias="bias"), site(1, bias="window bias"), site(2, 6, windows=4))
    merge = linear("other", 1, 384, 192, "merge")
    stages = [linear("qkv", b, 96, 288) for b in (0, 1)] + [merge, linear("qkv", 2, 192, 576)]
    patch, head = linear("patch", None, 48, 96, "patch"), linear("head", None, 768, 1000, "head")
    result = outline(Structure(attention=sites, linears=(patch, *stages, head), norms=(Norm(name="n", nodes=()),) * 7))
    first, second = result.blocks
    assert first == BlockGroup(
        first=0, last=1, kind="windowed", heads=3, head_size=32, value_size=32, queries=49, keys=49, windows=16,
        bias=("bias", "window bias"), linears=(LinearGroup(role="qkv", count=1, k=96, n=288),),
    )  # fmt: skip
    assert (second.first, second.last, second.bias) == (2, 2, ())
    assert dict(result.linears) == {"patch": 1, "qkv": 3, "head": 1, "other": 1}
    assert [(g.role, g.k, g.n, g.names) for g in result.outside] == [
        ("patch", 48, 96, ("patch",)), ("head", 768, 1000, ("head",)), ("other", 384, 192, ("merge",)),
    ]  # fmt: skip
    assert result.layernorms == 7


@pytest.mark.parametrize(
    ("facts", "kind"),
    [
        ({"windows": 1}, "global"),
        ({}, "windowed"),
        ({"windows": 1, "tokens": 16}, "fewer queries"),
        ({"windows": 1, "key_tokens": 16}, "fewer keys"),
        ({"windows": None}, None),
        ({"refused": "its scale is not constant"}, "unraised"),
    ],
)
def test_kinds_of_attention(facts: dict[str, Any], kind: str) -> None:
    [group] = outline(Structure(attention=(site(0, **facts),), linears=(), norms=())).blocks
    assert group.kind == kind


def test_separate_q_k_and_v_are_counted_and_linears_of_another_size_are_not_equal() -> None:
    separate = tuple(linear("qkv", 0, 96, 96, f"0.{name}") for name in "qkv")
    result = outline(Structure(attention=(site(0), site(1)), linears=(*separate, linear("qkv", 1, 96, 288)), norms=()))
    assert [[(g.count, g.k, g.n) for g in block.linears] for block in result.blocks] == [[(3, 96, 96)], [(1, 96, 288)]]


def test_what_an_older_version_stored_is_read() -> None:
    old = Structure.model_validate(
        {
            "attention": [{"name": "a", "nodes": [], "block": 0, "heads": 3, "head_size": 32, "tokens": 65}],
            "linears": [
                {"name": "patch", "nodes": [], "role": "patch", "block": None, "weight": [96, 3, 4, 4]},
                {"name": "qkv", "nodes": [], "role": "qkv", "block": 0, "weight": [96, 288]},
            ],
            "norms": [],
        }
    )
    result = outline(old)
    assert [(g.k, g.n) for g in (*result.outside, *result.blocks[0].linears)] == [(48, 96), (96, 288)]
    assert (result.blocks[0].kind, result.blocks[0].queries, result.blocks[0].keys) == (None, 65, None)


def test_a_model_without_attention() -> None:
    result = outline(
        Structure(attention=(), linears=(linear("fc1", None, 8, 16, "a"), linear("fc2", 0, 16, 8, "b")), norms=())
    )
    assert result.blocks == ()
    assert [group.role for group in result.outside] == ["fc1", "fc2"]
