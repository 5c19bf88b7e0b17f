"""Text towers that run once, at export: what they say of the prompts becomes weights of an image model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vitdeploy.errors import SourceError
from vitdeploy.recipe import ModelSpec, TaskSpec
from vitdeploy.sources._hf_preprocess import is_patched, patched_size
from vitdeploy.sources._tokens import Texts, Tokens

if TYPE_CHECKING:
    from torch import nn

_NO_TOWER = "Leave out --prompts, or give a model with a text tower: CLIP, SigLIP, OWLv2, Grounding DINO."


@dataclass(frozen=True)
class WithoutText:
    """A model that takes images alone.

    Attributes:
        module: takes pixel values, and no texts.
        task: the task, if that follows from the prompts; None: the model's own.
        labels: the prompts; None without prompts.
    """

    module: nn.Module
    task: TaskSpec | None = None
    labels: tuple[str, ...] | None = None


def freeze_text(
    model: str, module: nn.Module, spec: ModelSpec, size: tuple[int, int] | None, load_tokens: Callable[..., Tokens]
) -> WithoutText:
    """Return the model without its text tower, with the prompts in its weights; as it is if it has no such tower.

    A model of two towers becomes a classifier, or without prompts an embedding of images. A detector finds the
    prompts.

    Args:
        model: the model in messages.
        module: the model with its weights.
        spec: has the prompts and templates.
        size: height and width of the images, where they are given.
        load_tokens: loads the tokenizer, for a tower that takes `limit` tokens.

    Raises:
        SourceError: there are prompts for a model without text tower, or none for a detector that needs them; there is
            no tokenizer; a prompt is too long.
    """
    from vitdeploy.sources import _prompted_detectors, _siglip2, _two_towers

    name, config = type(module).__name__, module.config
    module.eval().float().requires_grad_(requires_grad=False)
    if is_patched(config):
        module = _siglip2.take_images(module, size or patched_size(config))
    has_towers = _two_towers.has_two_towers(module)
    freeze = _prompted_detectors.find_freeze(module) or (_two_towers.freeze_classifier if has_towers else None)
    if freeze is None:
        if spec.prompts is not None:
            raise SourceError(f"{model} ({name}) has no text tower that vitdeploy knows", fix=_NO_TOWER)
        return WithoutText(module)
    is_classifier = freeze is _two_towers.freeze_classifier
    image = _two_towers.make_example(config, size if is_patched(config) else None)
    if spec.prompts is None:
        if is_classifier:
            return WithoutText(_two_towers.take_image_tower(module, image), TaskSpec(kind="embedding"))
        raise SourceError(
            f"{model} ({name}) finds what prompts name, and there is none", fix='Give --prompts "a cat,a dog".'
        )
    tokens = load_tokens(limit=_read_limit(config))
    texts = Texts(model, tokens, spec.prompts, spec.templates, image)
    options = {"kind": "classification"} if is_classifier else {"kind": "detection", "scores": "sigmoid"}
    return WithoutText(freeze(module, texts), TaskSpec.model_validate(options), spec.prompts)


def _read_limit(config: Any) -> int:
    """Return the number of tokens that a text tower takes, from its config."""
    if (limit := getattr(config, "max_text_len", None)) is not None:  # Grounding DINO, for all prompts together
        return int(limit)
    return int(getattr(config, "text_config", config).max_position_embeddings)
