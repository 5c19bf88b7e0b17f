"""A DPT with 197 tokens for made-up rooms, for `python:benchmarks/dense/model.py:load_trained`.

It looks at patches of 8x8 pixels, so that there are as many tokens as in a ViT for ImageNet: fewer tokens
(`--merge-tokens`) are measured with it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import DPTConfig, DPTForDepthEstimation

WEIGHTS = Path(__file__).with_name("dpt.safetensors")
SIDE = 112
WIDTH = 128
MEAN = (0.5, 0.5, 0.5)
STD = (0.25, 0.25, 0.25)
_USUAL_DISPARITY = 0.25  # 1/metres: where training starts, so that the last ReLU is not zero


class RoomDpt(DPTForDepthEstimation):  # type: ignore[no-untyped-call]
    """A DPT of transformers with its preprocessing, which `vitdeploy` reads. Gives 1 / metres."""

    vitdeploy_preprocess: ClassVar[dict[str, Any]] = {
        "size": [SIDE, SIDE],
        "mean": list(MEAN),
        "std": list(STD),
        "resize": "exact",
    }

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Return 1 / depth, float32 (N, 112, 112), of normalized images (N, 3, 112, 112)."""
        disparity: Tensor = super().forward(pixel_values).predicted_depth
        return disparity


def build() -> Any:
    """Build the model with fresh weights: width 128, six blocks, features behind blocks 1, 3 and 5."""
    config = DPTConfig(
        image_size=SIDE, patch_size=8, hidden_size=WIDTH, num_hidden_layers=6, num_attention_heads=4,
        intermediate_size=4 * WIDTH, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        backbone_out_indices=[1, 3, 5], reassemble_factors=[2, 1, 0.5], neck_hidden_sizes=[32, 64, 96],
        fusion_hidden_size=32,
    )  # fmt: skip
    model: Any = RoomDpt(config)
    # Small convolutions in place of one of 8x8 pixels learn faster (Xiao et al., 2021).
    model.dpt.embeddings.patch_embeddings.projection = nn.Sequential(
        nn.Conv2d(3, WIDTH // 4, 3, stride=2, padding=1), nn.GELU(),
        nn.Conv2d(WIDTH // 4, WIDTH // 2, 3, stride=2, padding=1), nn.GELU(),
        nn.Conv2d(WIDTH // 2, WIDTH, 3, stride=2, padding=1),
    )  # fmt: skip
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                module.reset_parameters()  # those of transformers are smaller, and learn slowly from scratch
        nn.init.trunc_normal_(model.dpt.embeddings.position_embeddings, std=0.02)
        model.head.head[-2].bias.fill_(_USUAL_DISPARITY)
    return model


def load_trained() -> Any:
    """Return the model with the committed weights, which are stored in float16."""
    model = build()
    model.load_state_dict({name: values.float() for name, values in load_file(WEIGHTS).items()})
    model.eval()
    return model
