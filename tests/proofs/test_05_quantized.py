"""INT8 that is INT8: the share of weights and of multiply-accumulates in the precision that was asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tests.cli.conftest import run
from tests.evidence import audit
from tests.graphs import legacy, raised, redrawn
from vitdeploy.artifact import Artifact, load
from vitdeploy.evidence import QuantizedShare
from vitdeploy.frozen import replace
from vitdeploy.graph.macs import list_weighted
from vitdeploy.recipe import GateSpec
from vitdeploy.verdict import Case, judge

HYBRID = """
import torch
from torch import nn


class Hybrid(nn.Module):
    '''Convolutions with most of the work, then one block of a ViT, as in CoAtNet.'''

    def __init__(self, channels):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, channels, 4, 4)
        self.convs = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.GELU(), nn.Conv2d(channels, 32, 1))
        self.norm, self.qkv, self.proj = nn.LayerNorm(32), nn.Linear(32, 96), nn.Linear(32, 32)
        self.fc1, self.fc2, self.head = nn.Linear(32, 64), nn.Linear(64, 32), nn.Linear(32, 10)
        self.vitdeploy_preprocess = {"size": [32, 32]}

    def forward(self, image):
        x = self.convs(self.stem(image)).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 2, 16)).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.proj(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return self.head((x + self.fc2(nn.functional.gelu(self.fc1(x)))).mean(1))


def many():
    return Hybrid(64).eval()
"""
STEM, CONVS, LINEARS = 64 * 48 * 64, 64 * 64 * 64 * 9, 64 * 64 * 32 + 64 * 32 * (96 + 32 + 64 + 64) + 320
"""Multiply-accumulates of `many`: 8 x 8 positions. The 1×1 convolution is a linear."""


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("hybrid") / "hybrid.py"
    file.write_text(HYBRID)
    return f"python:{file}:many"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import numpy as np

    file = tmp_path_factory.mktemp("images") / "images.npz"
    np.savez(file, images=np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8))
    return file


def answer(*words: object, code: int = 0) -> Any:
    ended = run(*words, "--json")
    assert ended.code == code, ended.err + ended.out
    return json.loads(ended.out)


class Products(nn.Module):
    """Every kind of product with weights."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.wide = nn.Conv2d(3, 16, 4, 4), nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.depth, self.grouped = nn.Conv2d(16, 16, 5, padding=2, groups=16), nn.Conv2d(16, 32, 1, groups=4)
        self.up, self.down = nn.ConvTranspose2d(32, 8, 2, 2), nn.Conv2d(8, 16, 3, 2, padding=1)
        self.linear, self.heads = nn.Linear(16, 24), nn.Parameter(torch.randn(4, 6, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(self.up(self.grouped(self.depth(self.wide(self.patch(x))))))
        return self.linear(x.flatten(2).transpose(1, 2)).unflatten(-1, (4, 6)).transpose(1, 2) @ self.heads


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("dynamic", [False, True])
def test_multiply_accumulates_are_those_that_pytorch_counts(batch: int, dynamic: bool) -> None:
    module = redrawn(Products())
    x = torch.zeros(batch, 3, 32, 32)
    with FlopCounterMode(display=False) as counter:
        module(x)
    _, structure, _ = raised(legacy(module, x.numpy(), dynamic=dynamic))
    products = list(list_weighted(structure))
    assert sum(p.macs or 0 for p in products) == counter.get_total_flops() // (2 * batch)
    weights = sum(p.numel() for name, p in module.named_parameters() if not name.endswith("bias"))
    assert sum(p.weights for p in products) == weights
    assert sorted(p.kind for p in products) == ["Conv"] * 4 + ["ConvTranspose", "MatMul", "linear", "linear"]


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_a_hybrid_whose_convolutions_stay_in_float_is_a_doubt(
    target: str, spec: str, images: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    exported = answer("export", spec, "--target", target, "--precision", "int8", "--calibration", images, "-o", out)
    share = exported["quantized"]
    assert share["evidence"] == "compiled"
    assert share["macs_pct"] == pytest.approx(100 * LINEARS / (STEM + CONVS + LINEARS))
    assert share["eligible_pct"] == pytest.approx(100 * LINEARS / (CONVS + LINEARS))
    (doubt,) = [note for note in exported["notes"] if note.startswith("doubt: only")]
    assert f"only {share['eligible_pct']:.1f} %" in doubt
    assert "1 Conv" in doubt
    stored = load(out).manifest.quantized_share
    assert stored is not None
    assert stored.model_dump(mode="json") == share
    inspected = answer("inspect", out)
    assert inspected["quantized"] == share
    assert any("only" in text for text in inspected["doubts"])
    assert set(inspected["products"].values()) == {"fp32"}
    text = run("inspect", out).out
    assert "in int8" in text
    assert f"{share['macs_pct']:.1f} % of the multiply-accumulates" in text
    gate = answer("gate", out, "--min-quantized", 50, code=1)
    (check,) = [check for check in gate["checks"] if check["name"] == "quantized (%)"]
    assert check["observed"] == pytest.approx(share["macs_pct"])
    assert "1 Conv" in check["why"]


def test_a_vit_is_int8_as_a_whole(demo: Callable[..., Artifact]) -> None:
    artifact = demo(target="openvino", precision="int8")
    share = artifact.manifest.quantized_share
    assert share is not None
    assert share.eligible_pct == 100
    assert share.macs_pct > 90
    assert [what.partition("(")[2][:19] for what in share.outside] == ["the patch embedding"]
    assert share.attention_macs
    assert answer("gate", artifact.path, "--min-quantized", 90)["verdict"] == "pass"


def test_what_the_user_keeps_in_float_is_no_doubt(spec: str, images: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    keep = ["qkv", "fc1", "fc2", "proj"]
    recipe.write_text(
        json.dumps(
            {"target": {"kind": "onnxruntime"}, "precision": {"kind": "int8", "keep": keep}, "model": {"spec": spec}}
        )
    )
    out = tmp_path / "out"
    answer("export", spec, "--recipe", recipe, "--calibration", images, "-o", out)
    share = load(out).manifest.quantized_share
    assert share is not None
    assert share.eligible_pct == pytest.approx(100 * 320 / (CONVS + 320))
    assert any("linear (keep)" in what for what in share.outside)


def share_of(percent: float, **facts: Any) -> QuantizedShare:
    values = {"precision": "int8", "evidence": "compiled", "weights_pct": 50.0, "weights": 10, "macs": 10, **facts}
    return QuantizedShare(macs_pct=percent, **values)


@pytest.mark.parametrize(
    ("share", "precision", "status", "why"),
    [
        (share_of(80.0), "int8", "pass", "80.0 % of the multiply-accumulates"),
        (share_of(79.9, outside={"3 Conv": 20.1}), "int8", "fail", "20.1 % do not: 3 Conv"),
        (share_of(99.0, evidence="graph"), "int8", "invalid", "graph evidence"),
        (share_of(99.0, evidence="rehearsed"), "int8", "invalid", "rehearsed evidence"),
        (share_of(99.0, unknown=("x",)), "int8", "invalid", "not known before run time"),
        (None, "fp32", "fail", "nothing is quantized"),
        (None, "int8", "invalid", "does not say"),
    ],
)
def test_the_gate_checks_the_share(share: QuantizedShare | None, precision: str, status: str, why: str) -> None:
    evidence = replace(audit(1, 1), quantized=share, precision=precision)
    gate = judge(
        Case(audit=evidence, bench=None, evaluation=None, manifest=evidence.manifest), GateSpec(min_quantized_pct=80)
    )
    (check,) = gate.checks
    assert (gate.verdict, check.status) == (status, status)
    assert why in check.why
