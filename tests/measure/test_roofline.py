"""The work of a model, and the peak of this machine."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.conftest import EXPORTS
from tests.graphs import images, raised
from vitdeploy.evidence import Peak, Roofline
from vitdeploy.graph.structure import AttentionSite, Linear, Structure
from vitdeploy.measure import roofline, work


@pytest.mark.parametrize("kind", EXPORTS)
def test_operations_are_those_that_pytorch_counts(kind: str, vit: nn.Module, exported: Callable[[str], bytes]) -> None:
    _, structure, _ = raised(exported(kind))
    # FlopCounterMode does not count the fused attention of CPUs.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.inference_mode():
        vit(torch.from_numpy(images()))
    found = work.count_float32_work(structure)
    assert found.unknown == ()
    assert found.total == pytest.approx(counter.get_total_flops())
    assert found.weight_bytes == 4 * sum(p.numel() for p in vit.parameters() if p.ndim > 1 and p.shape[0] > 1)


def test_operations_are_counted_by_precision(exported: Callable[[str], bytes]) -> None:
    _, structure, _ = raised(exported("dynamo"))
    plain = work.count_float32_work(structure)
    names = [linear.name for linear in structure.linears if linear.role in ("qkv", "fc1")]
    mixed = work.count_work(structure, dict.fromkeys(names, "int8"))
    assert set(mixed.operations) == {"fp32", "int8"}
    assert mixed.total == pytest.approx(plain.total)
    sizes = [linear.size for linear in structure.linears if linear.name in names]
    assert plain.weight_bytes - mixed.weight_bytes == sum(3 * k * n for k, n in sizes if k)
    assert mixed.activation_bytes == plain.activation_bytes
    inside = work.count_work(structure, {}, attention=("bf16", "int8"))
    assert inside.total == pytest.approx(plain.total)
    assert inside.operations["bf16"] == inside.operations["int8"] > 0  # heads are as wide in keys as in values
    packed = work.count_work(structure, {}, dict.fromkeys(names, "int4"))
    assert packed.operations == plain.operations
    assert plain.weight_bytes - packed.weight_bytes == sum(3.5 * k * n for k, n in sizes if k)


def test_unknown_sizes_are_named_and_give_no_floor() -> None:
    linear = Linear(name="blocks.0.fc1", nodes=(), role="fc1", block=0, weight=(8, 32), size=(8, 32))
    site = AttentionSite(name="blocks.0.attn", nodes=(), block=0)
    found = work.count_float32_work(Structure(attention=(site,), linears=(linear,), norms=()))
    assert found.unknown == ("blocks.0.fc1", "blocks.0.attn")
    assert roofline.floor_ms(found, 1, roof(found)) is None
    # A linear without rows has the tokens of its block.
    sized = site.model_copy(
        update={"heads": 2, "head_size": 4, "value_size": 4, "tokens": 10, "key_tokens": 10, "windows": 3}
    )
    found = work.count_float32_work(Structure(attention=(sized,), linears=(linear,), norms=()))
    assert (found.unknown, found.total) == ((), 2 * 30 * 8 * 32 + 2 * 2 * 10 * 10 * (4 + 4) * 3)


def roof(found: work.Work, bandwidth: float | None = None, cache: int | None = 1 << 20) -> Roofline:
    peaks = {"fp32": Peak(gops=100.0, engine="a"), "int8": Peak(gops=400.0, engine="b")}
    described = roofline.describe(found, 2, peaks, bandwidth)
    return described.model_copy(update={"cache_bytes": cache})


def test_the_floor_is_arithmetic_or_weights_whichever_takes_longer() -> None:
    found = work.Work({"fp32": 2e9, "int8": 8e9}, weight_bytes=64e6, activation_bytes=0)
    assert roofline.floor_ms(found, 1, roof(found)) == pytest.approx(20 + 20)
    assert roofline.floor_ms(found, 3, roof(found)) == pytest.approx(3 * 40)
    assert roofline.floor_ms(found, 1, roof(found, bandwidth=1.0)) == pytest.approx(64)  # read once from memory
    assert roofline.floor_ms(found, 3, roof(found, bandwidth=1.0)) == pytest.approx(120)
    assert roofline.floor_ms(found, 1, roof(found, bandwidth=1.0, cache=100 << 20)) == pytest.approx(40)
    other = work.Work({"bf16": 1e9}, 1, 0)
    assert roofline.floor_ms(other, 1, roof(other)) is None  # there is no measured peak of bfloat16


def test_bandwidth_of_this_host() -> None:
    assert 0.1 < roofline.measure_copy_gbs(1) < 1000


def test_the_largest_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index, size in enumerate(("48K", "2048K", "32M")):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(size + "\n")
    monkeypatch.setattr(roofline, "_CACHES", tmp_path)
    assert roofline.read_largest_cache() == 32 << 20
    monkeypatch.setattr(roofline, "_CACHES", tmp_path / "none")
    assert roofline.read_largest_cache() is None
