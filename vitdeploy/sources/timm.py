"""`timm:NAME`: a model of the timm library, with its own preprocessing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from vitdeploy.errors import SourceError
from vitdeploy.plugins import did_you_mean
from vitdeploy.recipe import Interpolation, ModelSpec, Preprocess, TaskSpec
from vitdeploy.sources import LoadedModel, Source, _image, _weights
from vitdeploy.sources._hub import cache_only_when_unreachable

if TYPE_CHECKING:
    from torch import nn

_IMAGENET_CLASSES = 1000
_USE_WEIGHTS = "Choose weights with --weights (or model.weights in the recipe)."
_REFUSED = {
    "pretrained": _USE_WEIGHTS,
    "checkpoint_path": _USE_WEIGHTS,
    "pretrained_cfg": _USE_WEIGHTS,
    "pretrained_cfg_overlay": _USE_WEIGHTS,
    "pretrained_strict": _USE_WEIGHTS,
}


class Timm(Source):
    """timm models: ViT, DeiT, Swin, BEiT, EVA, DINOv2 … and convolutional ones."""

    def load(self, argument: str, spec: ModelSpec, size: tuple[int, int] | None) -> LoadedModel:
        """The timm model `argument`; `size` becomes its `img_size` where it has one."""
        _check_name(argument)
        _weights.refuse_kwargs(spec, _REFUSED)
        weights = _weights.chosen(spec)
        named_patch = re.search(r"patch(\d+)", argument)
        if size and named_patch:
            _image.check_patch(argument, size, int(named_patch[1]))
        module = _created(argument, dict(spec.kwargs), size, pretrained=weights == "pretrained")
        if isinstance(weights, Path):
            _weights.load_file(module, weights)
        preprocess = _preprocess(argument, module, spec.kwargs, size)
        _image.check_patch(argument, preprocess.size, getattr(getattr(module, "patch_embed", None), "patch_size", None))
        return _weights.finished(
            module,
            weights=weights if isinstance(weights, str) else "file",
            preprocess=preprocess,
            labels=_labels(module),
            task=TaskSpec(kind="embedding") if getattr(module, "num_classes", None) == 0 else None,
        )


def _check_name(name: str) -> None:
    import timm

    if ":" in name:
        raise SourceError(
            f"timm:{name} goes around timm's own model list", fix=f"For the hub: hf:{name.partition(':')[2]}."
        )
    if not timm.is_model(name.partition(".")[0]):
        known = timm.list_models()
        nearest = timm.list_models(f"*{name}*")[:3]
        hint = f" (did you mean {' or '.join(map(repr, nearest))}?)" if nearest else did_you_mean(name, known)
        raise SourceError(f"timm has no model {name!r}{hint}", fix="`timm.list_models()` gives all names.")


def _created(name: str, kwargs: dict[str, Any], size: tuple[int, int] | None, *, pretrained: bool) -> nn.Module:
    if pretrained:
        _check_pretrained(name, kwargs)
    try:
        if size is not None:
            try:
                return _create(name, {**kwargs, "img_size": size}, pretrained=pretrained)
            except TypeError as error:
                if "img_size" not in str(error):
                    raise
        return _create(name, kwargs, pretrained=pretrained)
    except (TypeError, AssertionError, ValueError) as error:
        given = {**kwargs, **({"img_size": size} if size else {})}
        raise SourceError(
            f"timm:{name} cannot be built with {given}: {' '.join(str(error).split())[:300]}",
            fix="Correct --image-size or the kwargs of the recipe.",
        ) from None


def _create(name: str, kwargs: Mapping[str, Any], *, pretrained: bool) -> nn.Module:
    import timm

    if not pretrained:
        with _weights.seeded():
            module: nn.Module = timm.create_model(name, pretrained=False, **kwargs)
        return module
    with cache_only_when_unreachable() as reachable:
        try:
            module = timm.create_model(name, pretrained=True, **kwargs)
        except (TypeError, AssertionError, ValueError):
            raise
        except Exception as error:  # hub, http, file and checkpoint errors alike
            offline = "the Hugging Face hub does not answer and they are not in its cache"
            raise _weights.unavailable(f"timm:{name}", error if reachable else offline) from error
    return module


def _check_pretrained(name: str, kwargs: Mapping[str, Any]) -> None:
    import timm

    try:
        cfg = timm.get_pretrained_cfg(name)
    except RuntimeError as error:  # an unknown tag after the dot
        raise SourceError(
            f"timm:{name}: {error}", fix=f"`timm.list_pretrained('{name.partition('.')[0]}*')`."
        ) from None
    if cfg is None or not cfg.has_weights:
        raise _weights.unavailable(f"timm:{name}", "timm has none for it")
    classes = kwargs.get("num_classes", cfg.num_classes)
    if classes not in (0, cfg.num_classes):
        raise _weights.unavailable(
            f"timm:{name}", f"they have {cfg.num_classes} classes, not {classes}: its head would be random"
        )


def _preprocess(name: str, module: nn.Module, kwargs: Mapping[str, Any], size: tuple[int, int] | None) -> Preprocess:
    from timm.data import config as timm_config

    resolve: Any = timm_config.resolve_model_data_config  # timm has no types for it
    config = resolve(module)
    channels = int(kwargs.get("in_chans", config["input_size"][0]))
    if channels not in (1, 3):
        raise SourceError(
            f"timm:{name} takes {channels} channels", fix="Images have 1 or 3: set in_chans to one of them."
        )
    own = kwargs.get("img_size", config["input_size"][1:])
    height, width = size or (tuple(own) if isinstance(own, (tuple, list)) else (own, own))
    mean, std = (_for_channels(config[key], channels) for key in ("mean", "std"))
    known = config["interpolation"] in get_args(Interpolation)
    return Preprocess(
        size=(height, width),
        mean=mean,
        std=std,
        interpolation=config["interpolation"] if known else "bicubic",
        channels=1 if channels == 1 else 3,
        resize="exact" if config["crop_mode"] == "squash" else "shortest",
        crop_pct=config["crop_pct"],
    )


def _for_channels(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Statistics of RGB, averaged for a grey model as timm averages the weights of its first layer."""
    return tuple(values) if len(values) == channels else (sum(values) / len(values),) * channels


def _labels(module: nn.Module) -> tuple[str, ...] | None:
    from timm.data.imagenet_info import ImageNetInfo

    if getattr(module, "num_classes", None) != _IMAGENET_CLASSES:
        return None
    return tuple(ImageNetInfo().label_descriptions())
