"""Small models as TensorRT gets them, in any of its precisions."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tests.graphs import dynamo, parsed, redrawn, refusals
from vitdeploy import passes, precision, targets
from vitdeploy.graph.model import Graph
from vitdeploy.graph.recognize import recognize
from vitdeploy.graph.regions import assign_regions
from vitdeploy.graph.structure import Structure
from vitdeploy.passes import order
from vitdeploy.progress import Silent
from vitdeploy.quantize import Calibration
from vitdeploy.recipe import PrecisionSpec, TargetSpec
from vitdeploy.session import Array


def lower(module: nn.Module, x: Array, kind: str = "fp16", *, dynamic: bool = False) -> tuple[Graph, Structure]:
    """Return the target-ready graph of a model for TensorRT, and its structure."""
    dialect = targets.find(TargetSpec(kind="tensorrt")).dialect()
    graph = parsed(dynamo(module, x, dynamic=dynamic))
    records = passes.run([*order.raising(None if dynamic else len(x)), *order.folding(packed_qkv=False)], graph)
    structure = assign_regions(graph, recognize(graph, refusals(records, "raise-attention")))
    calibration = Calibration(lambda: iter([x]), 1, 1, "test", "digest")
    spec = PrecisionSpec.model_validate({"kind": kind, **({"smooth_alpha": "off"} if kind == "int8" else {})})
    graph = precision.quantize(graph, structure, spec, dialect, calibration, Silent()).graph
    passes.run(order.lowering(dialect), graph)
    return graph, structure.locate_attention(node.name or "" for node in graph.nodes)


def eva(**more: Any) -> nn.Module:
    """An EVA02 of two blocks at 32 x 32: rotary positions behind a class token, an MLP with a gate."""
    from timm.models.eva import Eva

    sizes: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    options: dict[str, Any] = {
        "num_classes": 10, "use_rot_pos_emb": True, "use_abs_pos_emb": True, "swiglu_mlp": True, "qkv_fused": False,
    }  # fmt: skip
    return redrawn(Eva(**sizes, **(options | more)))


def swin() -> nn.Module:
    """A Swin of two stages at 64 x 64, with a bias and shifted windows."""
    from timm.models.swin_transformer import SwinTransformer

    sizes: dict[str, Any] = {"img_size": 64, "patch_size": 4, "window_size": 4, "embed_dim": 32}
    return redrawn(SwinTransformer(**sizes, depths=(2, 2), num_heads=(2, 4), num_classes=10))


class Depth(nn.Module):
    """Hugging Face's DPT, with the depth map alone as its output."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import DPTConfig, DPTForDepthEstimation

        config = DPTConfig(
            hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=64, image_size=32,
            patch_size=8, backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[16, 16, 32, 32],
            fusion_hidden_size=16, reassemble_factors=[4, 2, 1, 0.5],
        )  # fmt: skip
        self.model = redrawn(DPTForDepthEstimation(config))
        self.model.head.head[-2].bias.data += 4  # or a ReLU leaves nothing

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(batch, 3, 32, 32) to a map."""
        return self.model(image).predicted_depth  # type: ignore[no-any-return]
