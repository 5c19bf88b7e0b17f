"""Models that compare an image with texts (CLIP, SigLIP, ALIGN, …), without their text tower."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vitdeploy.errors import SourceError
from vitdeploy.sources._hf_preprocess import image_size, is_patched, patched_size, vision_config
from vitdeploy.sources._tokens import Texts

_SAME = 1e-4
"""The largest difference from the model's own scores, as a share of the largest of them (but at least of 1)."""

_ANY_SIZE = (224, 224)
"""Height and width of an example, where the config of a model does not have them."""


class ImageTower(nn.Module):
    """The image tower with its projection: an embedding of images."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """Return `image_embeds` (batch, size)."""
        model: Any = self.model
        return {"image_embeds": read_features(model.get_image_features(pixel_values=pixel_values))}


class PromptedClassifier(nn.Module):
    """The image tower, and the cosines of its embedding with fixed texts, scaled as the model scales them."""

    def __init__(self, tower: ImageTower, texts: Tensor, scale: Tensor, bias: Tensor | None) -> None:
        """Keep the unit vectors of the texts, (texts, size), times the scale."""
        super().__init__()
        self.tower = tower
        self.head = nn.Linear(texts.shape[1], texts.shape[0], bias=bias is not None)
        self.head.weight = nn.Parameter(scale * texts, requires_grad=False)
        if bias is not None:
            self.head.bias = nn.Parameter(bias.reshape(-1).expand(len(texts)).clone(), requires_grad=False)

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """Return `logits` (batch, texts)."""
        return {"logits": self.head(normalise(self.tower(pixel_values)["image_embeds"]))}


def has_two_towers(module: nn.Module) -> bool:
    """Return True if the model embeds images and texts in one space."""
    return all(callable(getattr(module, name, None)) for name in ("get_image_features", "get_text_features"))


def take_image_tower(module: nn.Module, image: Tensor) -> ImageTower:
    """Return the image tower alone. The model's other parts are removed from it."""
    tower = ImageTower(module)
    remove_unused(tower, image)
    return tower


def freeze_classifier(module: nn.Module, texts: Texts) -> PromptedClassifier:
    """Return a classifier of the prompts.

    With several templates the embedding of a prompt is the mean of its unit vectors, again of length 1, as CLIP's
    authors do it.

    Raises:
        SourceError: a prompt is too long, or the model's own scores are others.
    """
    scale, bias = _read_scale(module)
    vectors = embed_prompts(module, texts)
    plain = texts.tokens.encode([texts.fill(prompt)[0] for prompt in texts.prompts])
    tower = ImageTower(module)
    first = PromptedClassifier(tower, embed_texts(module, plain), scale, bias)
    with torch.inference_mode():
        expected = getattr(module(pixel_values=texts.image, **plain), "logits_per_image", None)
        scores = first(texts.image)["logits"]
    if expected is None or not _are_same(scores, expected):
        raise SourceError(
            f"{texts.model} ({type(module).__name__}) does not score texts by their cosine with the image",
            fix="Write a factory that returns its scores for fixed texts, and give python:FILE:FACTORY.",
        )
    remove_unused(tower, texts.image)
    return PromptedClassifier(tower, vectors, scale, bias)


def embed_prompts(module: nn.Module, texts: Texts) -> Tensor:
    """Return a unit vector for each prompt, (prompts, size): over several templates the mean, again of length 1."""
    rows = [embed_texts(module, texts.tokens.encode(texts.fill(prompt))) for prompt in texts.prompts]
    return torch.cat([normalise(row.mean(dim=0, keepdim=True)) if len(row) > 1 else row for row in rows])


def embed_texts(module: nn.Module, encoded: dict[str, Tensor]) -> Tensor:
    """Return a unit vector for each text, (texts, size)."""
    model: Any = module
    with torch.inference_mode():
        vectors = normalise(read_features(model.get_text_features(**encoded)))
    return vectors.clone()


def normalise(vectors: Tensor) -> Tensor:
    """Scale the last axis to length 1."""
    lengths: Tensor = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return vectors / lengths


def read_features(answer: Any) -> Tensor:
    """Return the vectors in what transformers gives, (batch, size): a tensor in version 4, an object in version 5."""
    vectors: Tensor = answer if isinstance(answer, Tensor) else answer.pooler_output
    return vectors


def make_example(config: Any, size: tuple[int, int] | None) -> Tensor:
    """Return an image of `size`, or else of the size in the config, (1, channels, height, width)."""
    vision = vision_config(config)
    height, width = size or image_size(vision) or (patched_size(config) if is_patched(config) else _ANY_SIZE)
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, getattr(vision, "num_channels", 3), height, width, generator=generator)


def remove_unused(root: nn.Module, image: Tensor) -> None:
    """Remove the parts of `root.model` that an image does not go through: the text tower and its projection.

    Parts are the children of the model, and the children of those.
    """
    called: set[nn.Module] = set()
    hooks = [part.register_forward_pre_hook(lambda part, _: called.add(part)) for part in root.modules()]
    with torch.inference_mode():
        root(image)
    for hook in hooks:
        hook.remove()
    model: Any = root.model
    for parent in (*model.children(), model):
        for name, child in list(parent.named_children()):
            if not called.intersection(child.modules()):
                setattr(parent, name, None)


def _read_scale(module: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Return the factor and the bias between cosines and scores."""
    model: Any = module
    if (temperature := getattr(model, "temperature", None)) is not None:  # ALIGN
        return 1 / torch.as_tensor(temperature).detach(), None
    scale = torch.as_tensor(getattr(model, "logit_scale", 0.0)).detach().exp()
    bias = getattr(model, "logit_bias", None)
    return scale, None if bias is None else bias.detach()


def _are_same(scores: Tensor, expected: Tensor) -> bool:
    limit = _SAME * max(1.0, float(expected.abs().max()))
    return scores.shape == expected.shape and float((scores - expected).abs().max()) <= limit
