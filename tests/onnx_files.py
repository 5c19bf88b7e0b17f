"""ONNX files as others export them: sizes that vary, half precision, quantized."""

from __future__ import annotations

import io
import warnings
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
import onnxruntime as ort
import torch
from torch import nn
from torch.nn import functional

from tests.graphs import redrawn
from vitdeploy.session import Array

PATCH, CLASSES = 8, 10
AXES = {"image": {0: "batch", 2: "height", 3: "width"}, "scores": {0: "batch"}}


def sized_vit(*, interpolated: bool = True, fused: bool = True) -> nn.Module:
    """Two blocks of a ViT that was trained at 32 x 32. Without interpolated positions it takes that size only."""
    from timm.models.vision_transformer import VisionTransformer

    module = VisionTransformer(
        img_size=32, patch_size=PATCH, embed_dim=32, depth=2, num_heads=2, num_classes=CLASSES,
        dynamic_img_size=interpolated,
    )  # fmt: skip
    for block in module.blocks:
        block.attn.fused_attn = fused
    return redrawn(module)


def sized_legacy(module: nn.Module, opset: int, axes: Any = AXES, size: tuple[int, int] = (32, 48)) -> bytes:
    """The model by TorchScript's exporter, without antialiasing, which it lacks. At 32 x 32 nothing is resized."""
    buffer = io.BytesIO()
    plain = partial(functional.interpolate, antialias=False)
    resize = mock.patch.object(functional, "interpolate", lambda *a, antialias=False, **k: plain(*a, **k))
    with warnings.catch_warnings(), torch.no_grad(), resize:
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module, (torch.zeros(2, 3, *size),), buffer, dynamo=False, opset_version=opset, input_names=["image"],
            output_names=["scores"], dynamic_axes=axes,
        )  # fmt: skip
    return buffer.getvalue()


def sized_dynamo(module: nn.Module, opset: int) -> bytes:
    """The model by the newer exporter, whose sides are multiples of the patch: `8*h`."""
    sides = {2: PATCH * torch.export.Dim("h", min=2, max=64), 3: PATCH * torch.export.Dim("w", min=2, max=64)}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module, (torch.zeros(2, 3, 32, 48),), dynamo=True, opset_version=opset, input_names=["image"],
            output_names=["scores"], dynamic_shapes=({0: torch.export.Dim("batch")} | sides,), verbose=False,
        )  # fmt: skip
    assert program is not None
    return program.model_proto.SerializeToString()


def run_plain(model: bytes | Path, image: Array) -> list[Array]:
    """The outputs of a file in ONNX Runtime without optimisations."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    source = str(model) if isinstance(model, Path) else model
    session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    outputs: list[Array] = session.run(None, {session.get_inputs()[0].name: image})
    return outputs


def noise(*shape: int, seed: int = 7) -> Array:
    """An image batch that no export has seen."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def operators(path: Path) -> set[str]:
    """The operators of a saved graph."""
    return {node.op_type for node in onnx.load(path, load_external_data=False).graph.node}


def input_shape(path: Path) -> list[int | str]:
    """The declared shape of the first input of a saved graph."""
    sizes = onnx.load(path, load_external_data=False).graph.input[0].type.tensor_type.shape.dim
    return [size.dim_value or size.dim_param for size in sizes]
