"""CLIP in Hugging Face folders: small ones, with a tokenizer that is made here, that know digits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

from benchmarks.training import Plan, train
from vitdeploy.data.preprocess import apply
from vitdeploy.recipe import ModelSpec
from vitdeploy.session import Array
from vitdeploy.sources import load

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SPREAD = 6.0
"""The `initializer_factor` of the image tower. With 1, the cosine of two images of digits is 0.996 in the mean, so that
their embedding hardly depends on the image; with this, it is 0.76."""
_BATCH = 64
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_TOKENS = (*_LETTERS, *(f"{letter}</w>" for letter in _LETTERS), "<|startoftext|>", "<|endoftext|>")


def save_clip(folder: Path, *, image: int, width: int, depth: int, patch: int = 8, factor: float = SPREAD) -> None:
    """Save a CLIPModel as its config initialises it, with a tokenizer of single letters and its image processor.

    Args:
        folder: the folder.
        image: height and width in pixels.
        width: of the tokens of both towers.
        depth: layers of each tower.
        patch: height and width of a patch in pixels.
        factor: the `initializer_factor` of the image tower.
    """
    start, end = len(_TOKENS) - 2, len(_TOKENS) - 1
    tower = {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": width // 32,
             "intermediate_size": 4 * width}  # fmt: skip
    words = {"vocab_size": len(_TOKENS), "max_position_embeddings": 32, "bos_token_id": start, "eos_token_id": end,
             "pad_token_id": end}  # fmt: skip
    sees = {"image_size": image, "patch_size": patch, "initializer_factor": factor}
    config = CLIPConfig(text_config={**tower, **words}, vision_config={**tower, **sees}, projection_dim=width)
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(folder)
    save_tokenizer(folder)
    size = {"height": image, "width": image}
    CLIPImageProcessor(size={"shortest_edge": image}, crop_size=size).save_pretrained(folder)


def save_tokenizer(folder: Path) -> None:
    """Save a CLIP tokenizer of single letters."""
    vocab = {token: index for index, token in enumerate(_TOKENS)}
    CLIPTokenizer(vocab=vocab, merges=[]).save_pretrained(folder)


def teach(
    folder: Path, prompts: Sequence[str], images: Sequence[Array], classes: Array, templates: Sequence[str] = ("{}",)
) -> None:
    """Set the projection of a saved CLIP's text tower so that each prompt is where the images of its class are.

    The embedding of a prompt becomes what a linear discriminant of the images has for its class. The image tower stays
    as it is. There may be as many texts as the text tower is wide.

    Args:
        folder: the folder.
        prompts: a text for each class.
        images: uint8 images, (height, width) or (height, width, 3).
        classes: the class of each.
        templates: each prompt is taught in each of them.
    """
    tower: Any = load(ModelSpec(spec=f"hf:{folder}"))
    pixels = np.stack([apply(image, tower.preprocess) for image in images])
    model: Any = CLIPModel.from_pretrained(folder)
    model.eval()
    tokenizer: Any = CLIPTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        starts = range(0, len(pixels), _BATCH)
        batches = [torch.from_numpy(pixels[start : start + _BATCH]) for start in starts]
        vectors = torch.cat([tower.module(batch)["image_embeds"] for batch in batches])
        filled = [template.format(prompt) for template in templates for prompt in prompts]
        tokens = tokenizer(filled, padding=True, return_tensors="pt")
        texts = model.text_model(**tokens).pooler_output.double()
        goal = _discriminants(torch.nn.functional.normalize(vectors, dim=-1).double(), torch.from_numpy(classes))
        model.text_projection.weight.copy_((torch.linalg.pinv(texts) @ goal.repeat(len(templates), 1)).T.float())
    model.save_pretrained(folder)


class _Classifier(nn.Module):
    """A CLIP whose classes are fixed prompts."""

    def __init__(self, model: CLIPModel, tokens: Any) -> None:
        super().__init__()
        self.model, self.tokens = model, dict(tokens)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the score of each prompt, (batch, prompts)."""
        scores: Tensor = self.model(pixel_values=pixels, **self.tokens).logits_per_image
        return scores


def train_clip(folder: Path, prompts: Sequence[str], images: Sequence[Array], classes: Array, plan: Plan) -> None:
    """Train both towers of a saved CLIP, from the start, to name images by prompts.

    Args:
        folder: the folder.
        prompts: a text for each class.
        images: uint8 images, (height, width) or (height, width, 3).
        classes: the class of each.
        plan: how long and how fast.
    """
    tower: Any = load(ModelSpec(spec=f"hf:{folder}"))
    pixels = torch.from_numpy(np.stack([apply(image, tower.preprocess) for image in images]))
    tokenizer: Any = CLIPTokenizer.from_pretrained(folder)
    tokens = tokenizer(list(prompts), padding=True, return_tensors="pt")

    def build() -> nn.Module:
        return _Classifier(CLIPModel.from_pretrained(folder), tokens)

    trained: Any = train(build, pixels, torch.from_numpy(classes), plan, lambda batch, _: batch)
    trained.model.save_pretrained(folder)


def _discriminants(vectors: Tensor, classes: Tensor) -> Tensor:
    """Return a unit vector for each class.

    It is the direction of a linear discriminant, across the mean of all vectors. Its constant is a part along that
    mean, which all vectors have in common.
    """
    mean = vectors.mean(dim=0)
    common = mean / mean.norm()
    centres = torch.stack([vectors[classes == index].mean(dim=0) for index in range(int(classes.max()) + 1)])
    spread = vectors - centres[classes]
    covariance = spread.T @ spread / len(vectors)
    ridge = 0.01 * covariance.diagonal().mean() * torch.eye(len(covariance), dtype=vectors.dtype)
    directions = torch.linalg.solve(covariance + ridge, (centres - mean).T).T
    directions = directions - (directions @ common)[:, None] * common
    constants = -0.5 * ((centres - mean) * directions).sum(dim=1) / mean.norm()
    return torch.nn.functional.normalize(directions + constants[:, None] * common, dim=-1)
