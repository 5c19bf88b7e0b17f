"""Models of instance segmentation, from a config with weights drawn anew: parity, and all attention accounted for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

transformers = pytest.importorskip("transformers")

from benchmarks.zoo.models import redraw  # noqa: E402
from tests.cli.conftest import run  # noqa: E402

SIDE = 64


def save_mask2former(folder: Path) -> Path:
    """Save a Mask2Former with a Swin of four stages."""
    torch.manual_seed(0)
    swin = transformers.SwinConfig(
        image_size=SIDE, patch_size=4, embed_dim=16, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = transformers.Mask2FormerConfig(
        backbone_config=swin, feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=64,
        encoder_layers=1, decoder_layers=2, num_attention_heads=2, dim_feedforward=64, num_queries=10, num_labels=4,
    )  # fmt: skip
    redraw(transformers.Mask2FormerForUniversalSegmentation(config)).save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("target", ["openvino", "onnxruntime"])
def test_mask2former_gives_classes_and_masks(tmp_path: Path, target: str) -> None:
    folder, out = save_mask2former(tmp_path / "model"), tmp_path / "out"
    ended = run("export", f"hf:{folder}", "--task", "instance-segmentation", "--target", target, "--image-size",
                f"{SIDE}x{SIDE}", "-o", out, "--json", "--no-cache")  # fmt: skip
    assert ended.code == 0, ended.err
    parity = json.loads(ended.out)["parity"]
    outputs = {output["name"]: output for output in parity["outputs"]}
    assert list(outputs) == ["class_queries_logits", "masks_queries_logits"]
    assert all(o["max_abs"] < 1e-4 * o["reference_max"] for o in outputs.values())
    audit = json.loads((out / "audit.json").read_text())
    assert audit["attention"]["sites"] > 0
    assert audit["attention"]["fused"] + len(audit["attention"]["unfused"]) == audit["attention"]["sites"]
