"""Small models of every task, trained on made-up scenes: good enough that a loss would show.

python -m tests.tasks.models [NAME]    trains those of transformers again, into fixtures/: minutes on two cores
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests import scenes
from vitdeploy.data.preprocess import normalize, to_pixels
from vitdeploy.recipe import Preprocess

SIDE = 48
_SEEN = 1024  # scenes that are trained on; their numbers start where those of the tests do not reach
_FIRST = 10_000
_RATE = 2e-3
_BATCH = 16
_SMALL = {"hidden_size": 48, "num_attention_heads": 3, "intermediate_size": 96, "image_size": SIDE, "patch_size": 8}
_STATISTICS = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}

Loss = Callable[[nn.Module, Tensor, list[scenes.Scene]], Tensor]


FIXTURES = Path(__file__).parent / "fixtures"


def segformer(folder: Path) -> Path:
    """SegFormer of transformers, with its processor."""
    import transformers

    labels = dict(enumerate(scenes.NAMES))
    config = transformers.SegformerConfig(
        depths=[1, 1, 1, 1], hidden_sizes=[16, 24, 32, 48], num_attention_heads=[1, 1, 2, 3], decoder_hidden_size=48,
        id2label=labels, classifier_dropout_prob=0.0, drop_path_rate=0.0,
    )  # fmt: skip

    def loss(model: nn.Module, images: Tensor, truth: list[scenes.Scene]) -> Tensor:
        return nn.functional.cross_entropy(_to_size(model(images).logits), _masks(truth))

    model = _trained(transformers.SegformerForSemanticSegmentation, config, loss, 150)
    return _saved(model, folder, "SegformerImageProcessor", {"height": SIDE, "width": SIDE})


def dpt(folder: Path) -> Path:
    """DPT of transformers: inverse depth, up to scale and shift."""
    import transformers

    config = transformers.DPTConfig(
        **_SMALL, num_hidden_layers=4, backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[16, 24, 32, 48],
        fusion_hidden_size=32,
    )  # fmt: skip

    def loss(model: nn.Module, images: Tensor, truth: list[scenes.Scene]) -> Tensor:
        depth = torch.tensor(np.stack([t.depth for t in truth]))
        found = _to_size(model(images).predicted_depth[:, None])[:, 0]
        return (found - 3 / depth).abs().mean()

    model = _trained(transformers.DPTForDepthEstimation, config, loss, 150)
    return _saved(model, folder, "DPTImageProcessor", {"height": SIDE, "width": SIDE})


def yolos(folder: Path) -> Path:
    """YOLOS of transformers, one query for each kind of shape, so that matching needs no search."""
    import transformers

    kinds = len(scenes.NAMES) - 1
    config = transformers.YolosConfig(
        **{**_SMALL, "image_size": [SIDE, SIDE]}, num_hidden_layers=3, num_detection_tokens=kinds,
        use_mid_position_embeddings=False, id2label=dict(enumerate(scenes.NAMES[1:])), hidden_dropout_prob=0.0,
    )  # fmt: skip

    def loss(model: nn.Module, images: Tensor, truth: list[scenes.Scene]) -> Tensor:
        found = model(images)
        kind = torch.full((len(truth), kinds), kinds)
        place = torch.zeros(len(truth), kinds, 4)
        for i, one in enumerate(truth):
            for left, top, width, height, name in one.boxes:
                kind[i, name] = name
                box = [left + width / 2, top + height / 2, width, height]
                place[i, name] = torch.tensor(box) / torch.tensor([scenes.WIDTH, scenes.HEIGHT] * 2)
        there = (kind < kinds)[..., None]
        boxes = ((found.pred_boxes - place).abs() * there).sum() / there.sum()
        return nn.functional.cross_entropy(found.logits.transpose(1, 2), kind) + 5 * boxes

    model = _trained(transformers.YolosForObjectDetection, config, loss, 5000)
    return _saved(model, folder, "YolosImageProcessor", {"height": SIDE, "width": SIDE})


def lw_detr(folder: Path) -> Path:
    """LW-DETR of transformers, the model behind RF-DETR: a ViT with windows, a TopK of proposals, a decoder of queries.

    It is trained with transformers' own loss: Hungarian matching in two groups of queries.
    """
    import transformers

    backbone = transformers.LwDetrViTConfig(
        hidden_size=48, num_hidden_layers=3, num_attention_heads=3, mlp_ratio=2, image_size=SIDE,
        pretrain_image_size=SIDE, patch_size=6, num_windows=4, window_block_indices=[0], out_indices=[2, 3],
    )  # fmt: skip
    config = transformers.LwDetrConfig(
        backbone_config=backbone, projector_scale_factors=[1.0], c2f_num_blocks=1, d_model=64, decoder_layers=2,
        decoder_ffn_dim=128, decoder_n_points=2, decoder_self_attention_heads=4, decoder_cross_attention_heads=4,
        num_queries=16, group_detr=2, id2label=dict(enumerate(scenes.NAMES[1:])),
    )  # fmt: skip

    def loss(model: nn.Module, images: Tensor, truth: list[scenes.Scene]) -> Tensor:
        sides = torch.tensor([scenes.WIDTH, scenes.HEIGHT] * 2)
        labels = []
        for one in truth:
            boxes = torch.tensor([box[:4] for box in one.boxes], dtype=torch.float32).reshape(-1, 4)
            boxes[:, :2] += boxes[:, 2:] / 2
            labels.append({"class_labels": torch.tensor([box[4] for box in one.boxes]), "boxes": boxes / sides})
        computed: Tensor = model(images, labels=labels).loss
        return computed

    model = _trained(transformers.LwDetrForObjectDetection, config, loss, 1500)
    return _saved(model, folder, "RTDetrImageProcessor", {"height": SIDE, "width": SIDE})


def vit(file: Path) -> Path:
    """The weights of a timm ViT that gives vectors. Untrained: its random features tell the colours apart."""
    import timm

    torch.manual_seed(0)
    save_file(timm.create_model("vit_tiny_patch16_224", **VIT).state_dict(), file)
    return file


VIT: dict[str, Any] = {"num_classes": 0, "img_size": SIDE, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3}


def _trained(kind: Any, config: Any, loss: Loss, steps: int) -> Any:
    torch.manual_seed(0)
    model = kind(config)
    _train(model, loss, steps)
    return model


def _train(model: nn.Module, loss: Loss, steps: int) -> None:
    preprocess = Preprocess(size=(SIDE, SIDE), resize="exact")
    seen = [scenes.scene(_FIRST + i) for i in range(_SEEN)]
    images = torch.tensor(np.stack([normalize(to_pixels(one.image, preprocess), preprocess) for one in seen]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=steps)
    drawn = torch.Generator().manual_seed(0)
    model.train()
    for _ in range(steps):
        batch = torch.randperm(_SEEN, generator=drawn)[:_BATCH]
        optimizer.zero_grad()
        loss(model, images[batch], [seen[int(i)] for i in batch]).backward()
        optimizer.step()
        schedule.step()
    model.eval()


def _masks(truth: list[scenes.Scene]) -> Tensor:
    return torch.tensor(np.stack([one.mask for one in truth]))


def _to_size(maps: Tensor) -> Tensor:
    return nn.functional.interpolate(maps, size=(scenes.HEIGHT, scenes.WIDTH), mode="bilinear", align_corners=False)


def _saved(model: Any, folder: Path, processor: str, size: dict[str, int]) -> Path:
    model.half().save_pretrained(folder)  # half the bytes; they are read as float32
    facts = {"image_processor_type": processor, "size": size, "resample": 2, "do_normalize": True, **_STATISTICS}
    (folder / "preprocessor_config.json").write_text(json.dumps(facts))
    return folder


if __name__ == "__main__":
    known = {build.__name__: build for build in (segformer, dpt, yolos, lw_detr)}
    for build in [known[name] for name in sys.argv[1:] or known]:
        build(FIXTURES / build.__name__)
