"""Models of instance segmentation, from a config with weights drawn anew: parity, and all attention accounted for."""

from __future__ import annotations

import json
from collections.abc import Callable
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


def save_rf_detr_seg(folder: Path) -> Path:
    """Save an RF-DETR-Seg: a DINOv2 with windows, a TopK of proposals, masks."""
    torch.manual_seed(0)
    backbone = transformers.RfDetrDinov2Config(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=2, mlp_ratio=2, image_size=SIDE, patch_size=8,
        num_windows=2, window_block_indexes=[0], out_indices=[2, 3],
    )  # fmt: skip
    config = transformers.RfDetrConfig(
        backbone_config=backbone, projector_scale_factors=[1.0], c2f_num_blocks=1, d_model=32, decoder_layers=2,
        decoder_ffn_dim=64, decoder_n_points=2, decoder_self_attention_heads=4, decoder_cross_attention_heads=4,
        num_queries=10, group_detr=1, num_labels=3,
    )  # fmt: skip
    redraw(transformers.RfDetrForInstanceSegmentation(config)).save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("target", ["openvino", "onnxruntime"])
@pytest.mark.parametrize(
    ("save", "names"),
    [
        (save_mask2former, ["class_queries_logits", "masks_queries_logits"]),
        (save_rf_detr_seg, ["logits", "pred_masks"]),
    ],
)
def test_models_of_masks_give_classes_and_masks(
    tmp_path: Path, target: str, save: Callable[[Path], Path], names: list[str]
) -> None:
    folder, out = save(tmp_path / "model"), tmp_path / "out"
    ended = run("export", f"hf:{folder}", "--task", "instance-segmentation", "--target", target, "--image-size",
                f"{SIDE}x{SIDE}", "-o", out, "--json", "--no-cache")  # fmt: skip
    assert ended.code == 0, ended.err
    parity = json.loads(ended.out)["parity"]
    outputs = {output["name"]: output for output in parity["outputs"]}
    assert list(outputs) == names
    assert all(o["max_abs"] < 1e-4 * o["reference_max"] for o in outputs.values())
    audit = json.loads((out / "audit.json").read_text())
    assert audit["attention"]["sites"] > 0
    assert audit["attention"]["fused"] + len(audit["attention"]["unfused"]) == audit["attention"]["sites"]
