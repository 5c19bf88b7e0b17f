"""Vision Transformers of every kind, with weights under which every error shows in the outputs.

A freshly initialised model proves little: with LayerScale at 1e-5, zero bias tables and tiny weights, zeroing every
attention changes some outputs by less than 1e-4. So all weights are drawn anew: matrices so that they keep the
variance; norms, LayerScale, biases and bias tables of order 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import timm
import torch
import torchvision
import transformers as hf
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vitdeploy.session import named_outputs


@dataclass(frozen=True)
class Entry:
    """A model of the zoo: how to build it, and the image size (height, width) it takes."""

    build: Callable[[], nn.Module]
    size: tuple[int, int]


def redraw(module: nn.Module, seed: int = 0) -> nn.Module:
    """Draw every parameter and statistic of a module anew, and put it into eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            matrix = parameter.ndim > 1 and len(parameter) > 1 and parameter[0].numel() > 1  # not tokens, not scales
            parameter.copy_(noise / parameter[0].numel() ** 0.5 if matrix else 0.5 * noise + 0.5)
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.3 * torch.randn(buffer.shape, generator=generator))
            elif name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
        for name, parameter in module.named_parameters():
            if name.endswith("bias_table"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return module.eval()


class Tensors(nn.Module):
    """A Hugging Face model that returns a tuple of its tensors."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return all tensors of the model's output."""
        result = self.model(pixel_values=image).to_tuple()
        return tuple(value for value in result if isinstance(value, torch.Tensor))


class TextbookAttention(nn.Module):
    """Attention with a packed projection: reshaped to (batch, tokens, heads, 3 · size), *then* cut into q, k, v."""

    def __init__(self, width: int, heads: int, mask: torch.Tensor | None, *, returns_map: bool) -> None:
        super().__init__()
        self.heads, self.size, self.returns_map = heads, width // heads, returns_map
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.register_buffer("mask", mask)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the tokens, and the attention map if it is wanted."""
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, self.heads, 3 * self.size).permute(0, 2, 1, 3)
        q, k, v = qkv.chunk(3, dim=-1)
        scores = torch.matmul(q, k.transpose(-2, -1)) / self.size**0.5
        if self.mask is not None:
            scores = scores.masked_fill(self.mask == 0, -9e15)
        attention = functional.softmax(scores, dim=-1)
        values = torch.matmul(attention, v).permute(0, 2, 1, 3).reshape(batch, tokens, width)
        return self.out(values), attention if self.returns_map else None


class TextbookViT(nn.Module):
    """Two pre-norm blocks of the textbook's attention on 4 x 4 patches."""

    def __init__(self, *, masked: bool, returns_map: bool = False, width: int = 64, heads: int = 4) -> None:
        super().__init__()
        mask = torch.tril(torch.ones(16, 16)) if masked else None
        self.embed = nn.Conv2d(3, width, 8, 8)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(4))
        self.attentions = nn.ModuleList(
            TextbookAttention(width, heads, mask, returns_map=returns_map) for _ in range(2)
        )
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 128), nn.GELU(), nn.Linear(128, width)) for _ in range(2)
        )
        self.head = nn.Linear(width, 10)

    def forward(self, image: torch.Tensor) -> Any:
        """Return logits, and the last attention map if it is wanted."""
        x = self.embed(image).flatten(2).transpose(1, 2)
        attention = None
        for i in range(2):
            attended, attention = self.attentions[i](self.norms[2 * i](x))
            x = x + attended
            x = x + self.mlps[i](self.norms[2 * i + 1](x))
        logits = self.head(x.mean(1))
        return logits if attention is None else (logits, attention)


def _timm(name: str, size: tuple[int, int], *, eager: bool = False, **kwargs: Any) -> Entry:
    def build() -> nn.Module:
        model = timm.create_model(name, pretrained=False, **kwargs)
        module: Any
        for module in model.modules():
            if eager and hasattr(module, "fused_attn"):
                module.fused_attn = False
        return model

    return Entry(build, size)


def _hf(kind: str, config: str, size: tuple[int, int], attention: str | None = "sdpa", **kwargs: Any) -> Entry:
    def build() -> nn.Module:
        return Tensors(getattr(hf, kind)._from_config(getattr(hf, config)(**kwargs), attn_implementation=attention))

    return Entry(build, size)


def _torchvision(name: str) -> Entry:
    return Entry(lambda: torchvision.models.get_model(name, weights=None), (224, 224))


_SMALL: dict[str, Any] = {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 384}
_SMALL_RESNET: dict[str, Any] = {
    "embedding_size": 32, "hidden_sizes": [32, 48, 64, 96], "depths": [1] * 4, "layer_type": "basic",
    "out_features": ["stage4"],
}  # fmt: skip

MODELS: dict[str, Entry] = {
    "timm vit_tiny": _timm("vit_tiny_patch16_224", (224, 224)),
    "timm deit_tiny (sdpa)": _timm("deit_tiny_patch16_224", (224, 224)),
    "timm deit_tiny (eager)": _timm("deit_tiny_patch16_224", (224, 224), eager=True),
    "timm deit3_small": _timm("deit3_small_patch16_224", (224, 224)),
    "timm dinov2_small 518": _timm("vit_small_patch14_dinov2", (518, 518)),
    "timm eva02_tiny": _timm("eva02_tiny_patch14_224", (224, 224)),
    "timm beit_base": _timm("beit_base_patch16_224", (224, 224)),
    "timm levit_128s": _timm("levit_128s", (224, 224)),
    "timm mobilevit_s": _timm("mobilevit_s", (256, 256)),
    "timm vit_small_resnet26d (hybrid)": _timm("vit_small_resnet26d_224", (224, 224)),
    "timm swin_tiny": _timm("swin_tiny_patch4_window7_224", (224, 224)),
    "timm swinv2_tiny": _timm("swinv2_tiny_window8_256", (256, 256)),
    "hf vit (eager)": _hf("ViTForImageClassification", "ViTConfig", (224, 224), "eager", num_hidden_layers=4),
    "hf vit (sdpa)": _hf("ViTForImageClassification", "ViTConfig", (224, 224), num_hidden_layers=4),
    "hf dinov2 registers": _hf(
        "Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", (224, 224), num_hidden_layers=4, hidden_size=384,
        num_attention_heads=6,
    ),
    "hf swin": _hf("SwinForImageClassification", "SwinConfig", (224, 224)),
    "hf segformer": _hf("SegformerForSemanticSegmentation", "SegformerConfig", (256, 256)),
    "hf dpt": _hf("DPTForDepthEstimation", "DPTConfig", (384, 384), **_SMALL),
    "hf yolos": _hf(
        "YolosForObjectDetection", "YolosConfig", (256, 320), num_hidden_layers=4, image_size=[256, 320],
        num_detection_tokens=20, **_SMALL,
    ),
    "hf detr": _hf(
        "DetrForObjectDetection", "DetrConfig", (256, 320), None, use_timm_backbone=False, backbone=None,
        use_pretrained_backbone=False, backbone_config=hf.ResNetConfig(**_SMALL_RESNET),
        num_queries=20, d_model=96, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=192, decoder_ffn_dim=192,
        encoder_attention_heads=3, decoder_attention_heads=3,
    ),
    "hf clip vision": _hf("CLIPVisionModelWithProjection", "CLIPVisionConfig", (224, 224), num_hidden_layers=4),
    "torchvision vit_b_16": _torchvision("vit_b_16"),
    "torchvision swin_t": _torchvision("swin_t"),
    "textbook": Entry(lambda: TextbookViT(masked=False), (32, 32)),
    "textbook, masked": Entry(lambda: TextbookViT(masked=True), (32, 32)),
    "textbook, returns its map": Entry(lambda: TextbookViT(masked=False, returns_map=True), (32, 32)),
}  # fmt: skip


def build(name: str) -> Any:
    """Build a model of the zoo, as vitdeploy's `python:` source takes it."""
    entry = MODELS[name]
    torch.manual_seed(0)
    model: Any = redraw(entry.build())
    model.vitdeploy_preprocess = {"size": entry.size, "mean": (0.5,) * 3, "std": (0.25,) * 3}
    return model


def count_attentions(model: nn.Module, size: tuple[int, int], frames: int | None = None) -> int:
    """Count the attentions that a model's outputs are computed from, while it runs on an image, or on a clip.

    An attention is a softmax or a fused operator. Those of layers behind the last feature that the model returns are
    dead: it computes them and nothing reads them, so they are in no graph.
    """
    running = _Attentions()
    # In inference, nn.MultiheadAttention runs one operator of its own, which would hide its softmax.
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        shape = (1, 3, *size) if frames is None else (1, frames, 3, *size)
        image = torch.from_numpy(np.random.default_rng(0).standard_normal(shape).astype(np.float32))
        with torch.no_grad(), running:
            outputs = model(image)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return len(running.above(named_outputs(outputs).values()))


class _Attentions(TorchDispatchMode):
    """Note for the memory of each tensor which attentions its values come from."""

    def __init__(self) -> None:
        super().__init__()
        self._count = 0
        self._sources: dict[int, frozenset[int]] = {}

    def above(self, tensors: Iterable[torch.Tensor]) -> frozenset[int]:
        """Return the numbers of the attentions that these are computed from."""
        return frozenset().union(*(self._sources.get(_memory(tensor), frozenset()) for tensor in tensors))

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        read = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
        sources, memory = self.above(read), {_memory(tensor) for tensor in read}
        result = function(*args, **(kwargs or {}))
        name = function.name().removeprefix("aten::")
        if name.startswith(("_softmax", "_safe_softmax", "_scaled_dot_product")):
            self._count += 1
            sources |= {self._count}
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor):  # in new memory, or in that of an operand: a view, or written in place
                before = self._sources.get(_memory(value), frozenset()) if _memory(value) in memory else frozenset()
                self._sources[_memory(value)] = sources | before
        return result


def _memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
