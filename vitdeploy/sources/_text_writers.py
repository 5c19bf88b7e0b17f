"""Models that take an image and write text (TrOCR, BLIP, LLaVA, Florence-2, Qwen2-VL): their image encoders."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from vitdeploy.errors import SourceError
from vitdeploy.recipe import ENCODER
from vitdeploy.sources import _weights
from vitdeploy.sources._hf_preprocess import image_size, vision_config

if TYPE_CHECKING:
    from torch import nn

_GRIDS = ("qwen2_vl", "qwen2_5_vl")
"""Families whose encoder takes patches and a grid, and whose patches are cut here as their processors cut them."""
_LONGEST = 200
"""Characters of an error of the model's own code."""
_FACTORY = "Write a factory that returns its image encoder, and give python:FILE:FACTORY."


def writes_text(kind: Any, config: Any) -> bool:
    """Return True for a class of transformers that takes an image and writes text."""
    if getattr(kind, "__name__", "") == "VisionEncoderDecoderModel":
        return True
    if getattr(config, "vision_config", None) is None:
        return False
    can_generate = getattr(kind, "can_generate", None)
    reads_images = hasattr(kind, "get_image_features") and not hasattr(kind, "get_text_features")
    return reads_images or bool(can_generate and can_generate())


def check_part(model: str, kind: Any, config: Any, part: str | None, size: tuple[int, int] | None) -> bool:
    """Return True if the image encoder of a model that writes text is to be exported, and False for other models.

    Raises:
        SourceError: the model writes text, and the user does not ask for its encoder; or it has no parts; or its
            encoder takes images of any size, and none is given.
    """
    name = getattr(kind, "__name__", "")
    if not writes_text(kind, config):
        if part is not None:
            raise SourceError(f"{model} ({name}) has no parts: it is exported whole", fix="Leave out --part.")
        return False
    if part != ENCODER:
        raise SourceError(
            f"{model} ({name}) takes an image and writes text word by word, which no artifact does",
            fix="Export its image encoder with --part encoder.",
        )
    if takes_grid(config):
        vision = vision_config(config)
        side = int(vision.patch_size) * int(vision.spatial_merge_size)
        if size is None:
            raise SourceError(
                f"{model} takes images of any size, and an artifact one",
                fix=f"Give --image-size HxW, multiples of {side}.",
            )
        if size[0] % side or size[1] % side:
            raise SourceError(
                f"{model} merges patches to squares of {side} pixels, and {size[0]}x{size[1]} is no multiple of that",
                fix=f"Give multiples of {side}, such as {16 * side}x{16 * side}.",
            )
    return True


def takes_grid(config: Any) -> bool:
    """Return True for models whose encoder takes patches and their grid."""
    return getattr(config, "model_type", "") in _GRIDS


def take_encoder(model: str, module: nn.Module, size: tuple[int, int] | None) -> nn.Module:
    """Return the image encoder of a model that writes text. The model's other parts are removed from it.

    Args:
        model: the model in messages.
        module: the model with its weights.
        size: height and width of the images, where they are given.

    Raises:
        SourceError: the model has no encoder of images alone.
    """
    import torch

    from vitdeploy.sources._image_encoders import ProjectedEncoder
    from vitdeploy.sources._two_towers import remove_unused

    whole: Any = _weights.freeze(module)
    config = whole.config
    vision = vision_config(config)
    if not takes_grid(config) and hasattr(whole, "get_image_features"):
        _check_features(model, whole)
    own = size or image_size(vision)
    if own is None:
        raise SourceError(f"{model}: its image size is unknown", fix="Give --image-size HxW.")
    encoder = _wrap(model, whole, own)
    if isinstance(encoder, ProjectedEncoder):
        image = torch.zeros(1, getattr(vision, "num_channels", 3), *own)
        try:
            remove_unused(encoder, image)
        except Exception as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:_LONGEST]}"
            raise _refuse(model, whole, f"fails on one image of {own[0]}x{own[1]}: {reason}") from error
    return encoder


def _check_features(model: str, whole: Any) -> None:
    """Refuse a model that computes its features from more than an image, or from patches in an unknown form."""
    parameters = inspect.signature(whole.get_image_features).parameters
    fixed = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    needed = [n for n, p in parameters.items() if p.kind in fixed and p.default is p.empty and n != "pixel_values"]
    if "image_grid_thw" in parameters:
        raise _refuse(model, whole, "takes patches and their grid, in a form that vitdeploy does not know")
    if needed:
        raise _refuse(model, whole, f"takes {' and '.join(needed)} beside the image")


def _refuse(model: str, whole: Any, reason: str) -> SourceError:
    return SourceError(f"the image encoder of {model} ({type(whole).__name__}) {reason}", fix=_FACTORY)


def _wrap(model: str, whole: Any, size: tuple[int, int]) -> nn.Module:
    from vitdeploy.sources._image_encoders import GridEncoder, ProjectedEncoder, TowerEncoder

    if takes_grid(whole.config):
        return GridEncoder(whole.get_encoder(modality="image"), size)
    if hasattr(whole, "get_image_features"):
        return ProjectedEncoder(whole)
    tower = getattr(whole, "vision_model", None)
    if type(whole).__name__ == "VisionEncoderDecoderModel":
        tower = whole.encoder
    if tower is None:
        raise SourceError(f"{model} ({type(whole).__name__}) has no image encoder that vitdeploy knows", fix=_FACTORY)
    return TowerEncoder(tower)
