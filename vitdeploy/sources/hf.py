"""`hf:NAME_OR_DIR`: a vision model of Hugging Face transformers, from a local folder or from the hub."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from vitdeploy.data.example_inputs import ExampleInputs, read_examples
from vitdeploy.data.resizing import request_resize
from vitdeploy.errors import SourceError
from vitdeploy.frozen import replace
from vitdeploy.plain_files import expand_home
from vitdeploy.recipe import ModelSpec, Preprocess, TaskSpec
from vitdeploy.sources import LoadedModel, Source, _image, _licence, _weights
from vitdeploy.sources._hf_clips import count_frames, run_example, takes_clips
from vitdeploy.sources._hf_inputs import bind_images, explain_failure, find_pixels
from vitdeploy.sources._hf_parts import PARTS, find_image_class, find_side, take_part
from vitdeploy.sources._hf_preprocess import image_size, is_patched, prepare_patched, preprocess_of, vision_config
from vitdeploy.sources._hf_processor import HfProcessor, describe, load_processor, read_processor
from vitdeploy.sources._hf_task import labels_of, task_of
from vitdeploy.sources._hf_weights import OFFLINE, build_random, expand, load_from_file, load_pretrained, quiet
from vitdeploy.sources._hub import cache_only_when_unreachable
from vitdeploy.sources._prompts import freeze_text
from vitdeploy.sources._text_writers import check_part, take_encoder, takes_grid
from vitdeploy.sources._tokens import Tokens

if TYPE_CHECKING:
    from torch import nn

_INPUT = "pixel_values"
_ASSUMED = "ImageNet's mean and std are assumed"
_CUTS_OUT = "cuts persons out by their boxes; here an image is one person, scaled to fit and padded with black"
_WHOLE_IMAGE = ("segmentation", "instance-segmentation", "depth", "detection", "pose")
"""Tasks that need all of the image: without a processor nothing is cropped, and the aspect ratio is not kept."""
_REFUSED = {
    "trust_remote_code": "Only python:FILE:FACTORY runs code that is not installed.",
    "ignore_mismatched_sizes": "It would leave weights random: give weights that fit, or --weights random.",
    "state_dict": "Choose weights with --weights.",
    "weights_only": "Weights are always read as tensors only.",
    "dtype": "The source is float32: choose --precision.",
    "torch_dtype": "The source is float32: choose --precision.",
    "quantization_config": "The source is float32: choose --precision.",
}


class Hf(Source):
    """Models of transformers for images and clips. They take `pixel_values`, and name outputs by ModelOutput keys."""

    takes_prompts: ClassVar[bool] = True
    takes_parts: ClassVar[bool] = True
    takes_inputs: ClassVar[bool] = True

    def load(self, argument: str, spec: ModelSpec, size: tuple[int, int] | None) -> LoadedModel:
        """Load the model in the folder or hub repository `argument`, with the class that its config names.

        `model.kwargs` may have values of the config, and `attn_implementation`.
        """
        _weights.refuse_kwargs(spec, _REFUSED)
        weights = _weights.find_weights(spec)
        local = _is_local(argument)
        with cache_only_when_unreachable(local=local) as reachable:
            config, kind = _load_class(argument, spec.kwargs, local, reachable)
            side = find_side(f"hf:{argument}", config, spec, size) if find_image_class(kind) else None
            is_encoder = side is None and check_part(f"hf:{argument}", kind, config, spec.part, size)
            size = size if side is None else (side, side)
            vision = vision_config(config)
            _check_patch(argument, vision, size)
            if size and weights == "random" and hasattr(vision, "image_size"):
                vision.image_size = size[0] if size[0] == size[1] else list(size)
            if spec.num_classes is not None:
                _set_classes(argument, config, spec.num_classes, pretrained=weights == "pretrained")
            attention = spec.kwargs.get("attn_implementation")
            if weights == "pretrained":
                module = load_pretrained(argument, kind, config, attention, local, reachable)
            else:
                module = build_random(argument, kind, config, attention)
            use = None
            if isinstance(weights, Path):
                module, fitted = load_from_file(argument, module, weights, spec)
                use, config = fitted.use, module.config
            frames = count_frames(vision)
            processor = load_processor(argument, expand(argument), local, size, clips=frames is not None)
            if side is not None:
                return _load_part(argument, module, spec, config, processor, weights, use)
            load_tokens = partial(
                Tokens, f"hf:{argument}", expand(argument), local=local, family=getattr(config, "model_type", "")
            )
            if is_encoder:
                module = take_encoder(f"hf:{argument}", module, size)
            frozen = freeze_text(f"hf:{argument}", module, spec, size, load_tokens)
        facts = None if processor is None else describe(processor)
        own_task = TaskSpec(kind="raw") if is_encoder else task_of(type(module).__name__, config, facts)
        task = frozen.task or own_task
        examples = read_examples(spec.open_inputs)
        module = bind_images(f"hf:{argument}", frozen.module, spec.fixed_inputs, list(examples.arrays))
        own, preprocess, no_processor = _read_preprocess(argument, processor, config, size, task)
        preprocess = request_resize(preprocess, spec.resize, sized=size is not None)
        if frames is not None and takes_clips(module, clips := replace(preprocess, frames=frames), examples):
            preprocess = clips
        from vitdeploy.sources._pixel_mask import WithPixelMask, takes_mask

        if (
            not examples
            and own is not None
            and preprocess.resize == "letterbox"
            and takes_mask(module)
            and own.gives_mask()
        ):
            preprocess = replace(preprocess, mask=True)
        callable_module = WithPixelMask(module, preprocess.channels) if preprocess.mask else module
        _check_size(f"hf:{argument}", frozen.module, callable_module, preprocess, examples, sized=size is not None)
        loaded = _weights.make_loaded_model(
            module,
            weights=weights if isinstance(weights, str) else "file",
            preprocess=preprocess,
            labels=frozen.labels or labels_of(task, config),
            input_name=find_pixels(frozen.module) or _INPUT,
            task=task,
            processor=own,
            no_processor=no_processor,
            checkpoint=use,
            license=_licence.of_folder(expand_home(argument)) if weights == "pretrained" and local else "",
        )
        return dataclasses.replace(loaded, module=callable_module, further=examples)

    def list_parts(self, argument: str, spec: ModelSpec) -> tuple[str, ...]:
        """Return encoder and decoder of a promptable model, such as SAM."""
        local = _is_local(argument)
        with cache_only_when_unreachable(local=local) as reachable:
            _, kind = _load_class(argument, spec.kwargs, local, reachable)
        return () if find_image_class(kind) is None else PARTS

    def anchor(self, argument: str, folder: Path) -> str:
        """Make the path of a model's folder absolute, if `folder` has one of this name."""
        return str(folder / argument) if (folder / argument).is_dir() else argument


def _load_part(
    argument: str, module: nn.Module, spec: ModelSpec, config: Any, processor: Any, weights: _weights.Chosen, use: Any
) -> LoadedModel:
    """Return the encoder or the decoder of a promptable model."""
    side = int(config.prompt_encoder_config.image_size)
    whole_image = TaskSpec(kind="instance-segmentation")
    own, preprocess, no_processor = _read_preprocess(argument, processor, config, (side, side), whole_image)
    make = partial(
        _weights.make_loaded_model,
        weights="file" if isinstance(weights, Path) else weights,
        preprocess=preprocess,
        labels=None,
        processor=own,
        no_processor=no_processor,
        checkpoint=use,
    )
    assert spec.part is not None
    return take_part(module, spec.part, preprocess, make)


def _load_class(argument: str, kwargs: Mapping[str, Any], local: bool, reachable: bool) -> tuple[Any, Any]:
    """Return the config and the class of a model. Of a model for videos it is the class for single images."""
    config = _load_config(argument, kwargs, local, reachable)
    kind = _find_class(config)
    image_class = find_image_class(kind)
    if image_class is None or image_class is kind:
        return config, kind
    values = {key: value for key, value in kwargs.items() if key != "attn_implementation"}
    with quiet():
        config = image_class.config_class.from_pretrained(expand(argument), local_files_only=local, **values)
    return config, image_class


def _read_preprocess(
    argument: str, processor: Any, config: Any, size: tuple[int, int] | None, task: TaskSpec | None
) -> tuple[HfProcessor | None, Preprocess, str]:
    """Return the model's own processor, the preprocessing, and the reason why there is nothing to compare it with."""
    vision = vision_config(config)
    if is_patched(config) or takes_grid(config):
        return None, *prepare_patched(argument, None if processor is None else describe(processor), config, size)
    facts = {} if processor is None else describe(processor)
    if facts.get("do_affine_transform"):
        preprocess = preprocess_of(argument, facts, vision, size)
        return None, preprocess, f"the image processor of hf:{argument} {_CUTS_OUT}"
    if processor is not None:
        return *read_processor(argument, processor, vision, size), ""
    preprocess = preprocess_of(argument, None, vision, size)
    if task is not None and task.kind in _WHOLE_IMAGE:
        preprocess = replace(preprocess, resize="exact", crop_pct=1.0)
    return None, preprocess, f"hf:{argument} names no image processor: {_ASSUMED}"


def _set_classes(argument: str, config: Any, classes: int, *, pretrained: bool) -> None:
    if classes == 0:
        raise SourceError(f"hf:{argument} cannot be built without its head", fix="Give --num-classes 1 or more.")
    if pretrained and classes != config.num_labels:
        raise _weights.missing_weights(
            f"hf:{argument}", f"they have {config.num_labels} classes, not {classes}: the head would be random"
        )
    config.num_labels = classes


def _is_local(argument: str) -> bool:
    path = expand_home(argument)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise SourceError(f"hf:{argument} has no config.json", fix="Save the model there with save_pretrained().")
        return True
    if path.is_absolute() or argument.startswith((".", "~")) or argument.count("/") > 1:
        raise SourceError(f"there is no folder {argument}", fix="Check the path.")
    return False


def _load_config(argument: str, kwargs: Mapping[str, Any], local: bool, reachable: bool) -> Any:
    import transformers

    values = {key: value for key, value in kwargs.items() if key != "attn_implementation"}
    try:
        config, unused = transformers.AutoConfig.from_pretrained(
            expand(argument), local_files_only=local, trust_remote_code=False, return_unused_kwargs=True, **values
        )
    except Exception as error:  # hub, http, JSON and validation have errors of their own
        reason = " ".join(str(error).split())[:300] if local or reachable else OFFLINE
        raise SourceError(
            f"hf:{argument} cannot be loaded: {reason}", fix="Check the name, or give a folder with config.json."
        ) from error
    unknown = [key for key in values if key in unused]
    if unknown:
        raise SourceError(f"hf:{argument}: its config has no {unknown[0]!r}", fix="Correct model.kwargs in the recipe.")
    return config


def _find_class(config: Any) -> Any:
    """Return the class that the checkpoint was saved from, else an image classifier, else the plain backbone."""
    import transformers

    name = (getattr(config, "architectures", None) or [None])[0]
    kind = getattr(transformers, name, None) if name and re.fullmatch(r"\w+", name) else None
    if isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel):
        return kind
    classifiers = transformers.models.auto.modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING
    return transformers.AutoModelForImageClassification if type(config) in classifiers else transformers.AutoModel


def _check_patch(argument: str, config: Any, size: tuple[int, int] | None) -> None:
    size = size or image_size(config)
    if size is not None:
        _image.check_patch(f"hf:{argument}", size, getattr(config, "patch_size", None))


def _check_size(
    model: str, own: nn.Module, module: nn.Module, preprocess: Preprocess, examples: ExampleInputs, *, sized: bool
) -> None:
    """Run one image through `module`, which calls `own`: a config does not say which sizes it takes and what else."""
    import torch

    try:
        image = torch.zeros(1, *preprocess.sample_shape)
        image[..., preprocess.channels :, :, :] = 1  # no padding
        with torch.inference_mode():
            run_example(module.eval().float(), image, examples)
    except Exception as error:
        raise explain_failure(model, own, error, preprocess, sized=sized) from error
