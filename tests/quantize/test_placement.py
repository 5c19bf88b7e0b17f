"""The choice of linears to quantize, and the rule that decided it."""

from __future__ import annotations

import pytest

from vitdeploy.errors import QuantizeError
from vitdeploy.frozen import replace
from vitdeploy.graph.dialect import Dialect, Int8AttentionKernel
from vitdeploy.graph.structure import AttentionSite, Linear, Region, Role, Structure
from vitdeploy.quantize.placement import keep_zero_inputs, record_placement, select_linears


def structure(*linears: tuple[str, Role]) -> Structure:
    found = tuple(Linear(name=n, nodes=(f"{n}/MatMul",), role=r, block=0, weight=(4, 4)) for n, r in linears)
    return Structure(attention=(), linears=found, norms=())


VIT = structure(
    ("patch_embed.proj", "patch"),
    ("blocks.0.attn.qkv", "qkv"),
    ("blocks.0.mlp.fc1", "fc1"),
    ("blocks.1.attn.qkv", "qkv"),
    ("head", "head"),
)


def names(keep: tuple[str, ...]) -> list[str]:
    return [linear.name for linear in select_linears(VIT, keep)[0]]


def test_every_linear_but_the_patch_embedding() -> None:
    placed, kept = select_linears(VIT, ())
    assert [linear.name for linear in placed] == ["blocks.0.attn.qkv", "blocks.0.mlp.fc1", "blocks.1.attn.qkv", "head"]
    assert list(kept) == ["patch_embed.proj"]
    assert "raw pixels" in kept["patch_embed.proj"]


@pytest.mark.parametrize(
    ("keep", "left"),
    [
        (("head",), ["blocks.0.attn.qkv", "blocks.0.mlp.fc1", "blocks.1.attn.qkv"]),
        (("qkv",), ["blocks.0.mlp.fc1", "head"]),
        (("blocks.0.*",), ["blocks.1.attn.qkv", "head"]),
        (("*.fc1", "head"), ["blocks.0.attn.qkv", "blocks.1.attn.qkv"]),
        (("blocks.1.attn.qkv",), ["blocks.0.attn.qkv", "blocks.0.mlp.fc1", "head"]),
    ],
)
def test_keeps_by_role_and_by_name(keep: tuple[str, ...], left: list[str]) -> None:
    assert names(keep) == left
    _, kept = select_linears(VIT, keep)
    assert {rule for name, rule in kept.items() if name != "patch_embed.proj"} == {f"keep: {k}" for k in keep}


def detector(*, is_detector: bool = True) -> Structure:
    regions: dict[str, Region] = {
        "patch_embed.proj": "backbone", "blocks.0.attn.qkv": "backbone", "blocks.0.mlp.fc1": "selection",
        "blocks.1.attn.qkv": "decoder", "head": "heads",
    }  # fmt: skip
    linears = tuple(replace(linear, region=regions[linear.name]) for linear in VIT.linears)
    return replace(VIT, linears=linears, is_detector=is_detector)


def test_a_detector_keeps_selection_decoder_and_heads_in_float() -> None:
    placed, kept = select_linears(detector(), (), float_decoder=True)
    assert [linear.name for linear in placed] == ["blocks.0.attn.qkv"]
    assert [rule.partition(":")[0] for rule in kept.values()] == [
        "the patch embedding reads raw pixels and is a few percent of the work", "selection scores of a detector",
        "decoder of a detector", "heads of a detector",
    ]  # fmt: skip
    assert "#26191" in kept["blocks.1.attn.qkv"]
    assert len(select_linears(detector(), (), float_decoder=False)[0]) == 4


def test_other_models_keep_no_region_in_float() -> None:
    assert select_linears(detector(is_detector=False), (), float_decoder=True) == select_linears(
        detector(is_detector=False), ()
    )


def test_keeps_a_region_beside_those_of_a_detector() -> None:
    assert [linear.name for linear in select_linears(detector(), ("decoder",))[0]] == [
        "blocks.0.attn.qkv", "blocks.0.mlp.fc1", "head",
    ]  # fmt: skip
    with pytest.raises(QuantizeError, match=r"set `float_decoder: false` in the recipe"):
        select_linears(detector(), ("backbone",), float_decoder=True)
    with pytest.raises(QuantizeError, match=r"a region \(backbone, decoder, heads, selection\) or a name pattern"):
        select_linears(detector(), ("neck",))


def test_the_users_rule_comes_before_the_rule_of_the_role() -> None:
    assert select_linears(VIT, ("patch",))[1] == {"patch_embed.proj": "keep: patch"}


def test_a_keep_that_matches_nothing_is_an_error_with_the_roles() -> None:
    with pytest.raises(QuantizeError, match=r"'heda' matches no linear\. Use a role \(fc1, head, patch, qkv\)"):
        select_linears(VIT, ("qkv", "heda"))


@pytest.mark.parametrize(("least", "left"), [(None, {"small", "large", "tokens"}), (32, {"large", "tokens"})])
def test_a_convolution_of_few_channels_stays_in_float_where_that_is_faster(least: int | None, left: set[str]) -> None:
    whole = structure(("small", "fc1"), ("large", "fc1"), ("tokens", "fc1"))
    sizes = {"small": (24, 96), "large": (64, 64), "tokens": (24, 96)}  # 19 and 32 effective channels
    linears = tuple(
        replace(linear, size=sizes[linear.name], channels_first=linear.name != "tokens") for linear in whole.linears
    )
    placed, kept = select_linears(replace(whole, linears=linears), (), least)
    assert {linear.name for linear in placed} == left
    assert all("few channels" in rule for rule in kept.values())


@pytest.mark.parametrize("linears", [(), (("patch_embed.proj", "patch"),)])
def test_nothing_to_quantize_is_an_error(linears: tuple[tuple[str, Role], ...]) -> None:
    with pytest.raises(QuantizeError, match="no linear to quantize"):
        select_linears(structure(*linears), ())
    with pytest.raises(QuantizeError, match="no linear to quantize"):
        select_linears(VIT, ("*",))


def test_a_linear_whose_input_is_zero_on_all_images_has_no_range() -> None:
    placed, kept = select_linears(VIT, ())
    ranged, floats = keep_zero_inputs(placed, kept, set(placed[1].nodes))
    assert [linear.name for linear in placed if linear not in ranged] == [placed[1].name]
    assert floats == {**kept, placed[1].name: "its input is 0 on every calibration image: there is no range"}
    with pytest.raises(QuantizeError, match="inputs of all linears are 0"):
        keep_zero_inputs(placed, kept, {node for linear in placed for node in linear.nodes})


@pytest.mark.parametrize(
    ("stored", "kernel", "attention"),
    [
        ("int8", None, "not offered for this target"),
        ("int8", Int8AttentionKernel((64,), 512), "only on request"),
        ("fp8", Int8AttentionKernel((64,), 512), "more kernels"),
        ("int4 weights", None, "multiplies no weights"),
    ],
)
def test_every_site_has_its_rule(stored: str, kernel: Int8AttentionKernel | None, attention: str) -> None:
    site = AttentionSite(name="blocks.0.attn", nodes=("blocks.0.attn/Attention",), block=0)
    whole = replace(VIT, attention=(site,))
    _, kept = select_linears(whole, ("fc1",))
    found = record_placement(whole, kept, stored, Dialect(20, "primitives", int8_attention=kernel))
    assert list(found) == [*(linear.name for linear in VIT.linears), "blocks.0.attn", "residual adds"]
    assert {name for name, placed in found.items() if placed.quantized} == {
        "blocks.0.attn.qkv",
        "blocks.1.attn.qkv",
        "head",
    }
    assert found["head"].precision == stored
    assert "the last layer" in found["head"].rule
    assert found["blocks.0.mlp.fc1"].rule == "keep: fc1"
    assert attention in found["blocks.0.attn"].rule
    assert "outliers" in found["residual adds"].rule
