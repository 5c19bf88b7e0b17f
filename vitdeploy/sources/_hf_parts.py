"""Models of transformers that are exported in two parts, image encoder and mask decoder: SAM, SAM 2, EdgeTAM."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from vitdeploy.data.point_prompts import fill_slots, make_prompts
from vitdeploy.data.preprocess import normalize
from vitdeploy.data.synthetic import LOOKS, natural_image
from vitdeploy.errors import SourceError
from vitdeploy.recipe import DECODER, ENCODER, ModelSpec, Preprocess, TaskSpec
from vitdeploy.session import Array
from vitdeploy.sources import LoadedModel, _weights

if TYPE_CHECKING:
    from torch import nn

PARTS = (ENCODER, DECODER)
_IMAGE_CLASSES = {
    "SamModel": "SamModel",
    "Sam2Model": "Sam2Model",
    "EdgeTamModel": "EdgeTamModel",
    "Sam2VideoModel": "Sam2Model",
    "EdgeTamVideoModel": "EdgeTamModel",
}
"""The class that segments single images, for each class that a config of a promptable model may name."""


def find_image_class(kind: Any) -> Any:
    """Return the class of the promptable model without memory of other images; None if it is no promptable model."""
    import transformers

    name = _IMAGE_CLASSES.get(getattr(kind, "__name__", ""))
    return None if name is None else getattr(transformers, name, None)


def find_side(model: str, config: Any, spec: ModelSpec, size: tuple[int, int] | None) -> int:
    """Return the side of the images that a promptable model takes, and refuse what such a model does not have.

    Raises:
        SourceError: the user asks for another size, for prompts in words, or for inputs to fix.
    """
    side = int(config.prompt_encoder_config.image_size)
    if size not in (None, (side, side)):
        raise SourceError(f"{model} takes images of {side}x{side} only", fix="Leave out --image-size.")
    if spec.prompts is not None:
        raise SourceError(
            f"{model} takes points and boxes, not words", fix="Leave out --prompts; give --points and --box to predict."
        )
    if spec.bind:
        raise SourceError(f"{model} has no input to bind: points and boxes are its inputs", fix="Leave out --bind.")
    if spec.part is None:
        raise SourceError(
            f"{model} takes an image and a prompt, so it becomes two artifacts: {' and '.join(PARTS)}",
            fix="Use `vitdeploy export`, which makes both, or choose one with --part encoder or --part decoder.",
        )
    return side


def take_part(module: nn.Module, part: str, preprocess: Preprocess, make: Callable[..., LoadedModel]) -> LoadedModel:
    """Return one part of a promptable model.

    Args:
        module: the model as transformers has it.
        part: "encoder" or "decoder".
        preprocess: the steps from an image to the encoder's input.
        make: returns a loaded model of a module, an input name and a task.
    """
    from vitdeploy.sources import _promptable

    module = _weights.freeze(module)
    encoder = _promptable.ImageEncoder(module)
    if part == ENCODER:
        loaded = make(encoder, input_name="pixel_values", task=TaskSpec(kind="raw"))
        return dataclasses.replace(loaded, run_whole=partial(_promptable.run_whole, module))

    def make_inputs() -> list[tuple[str, dict[str, Array]]]:
        return [
            (f"{prompt} on {look.name}", {**_encode(encoder, preprocess, seed), **fill_slots(prompt)})
            for seed, (look, prompt) in enumerate(zip(LOOKS, make_prompts(*preprocess.size), strict=True))
        ]

    loaded = make(_promptable.make_decoder(module), input_name=_promptable.EMBEDDINGS, task=TaskSpec(kind="raw"))
    return dataclasses.replace(loaded, make_inputs=make_inputs, processor=None, no_processor="")


def _encode(encoder: nn.Module, preprocess: Preprocess, seed: int) -> dict[str, Array]:
    """Return the encoder's outputs for one made-up image."""
    import torch

    image = normalize(natural_image(seed, preprocess, 1, LOOKS[seed]), preprocess)
    with torch.inference_mode():
        return {name: value.numpy() for name, value in encoder(torch.from_numpy(image)).items()}
