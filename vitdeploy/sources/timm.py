"""`timm:NAME_OR_DIR`: a model of the timm library, or a folder that timm saved, with its own preprocessing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from vitdeploy.errors import SourceError
from vitdeploy.plain_files import expand_home
from vitdeploy.plugins import did_you_mean
from vitdeploy.recipe import Interpolation, ModelSpec, Preprocess, Resize, TaskSpec
from vitdeploy.sources import LoadedModel, Source, _image, _licence, _weights
from vitdeploy.sources._hub import NOT_CACHED, cache_only_when_unreachable, may_download
from vitdeploy.sources._timm_checkpoint import count_channels, load_checkpoint
from vitdeploy.sources._timm_folder import CONFIG, WEIGHT_ARGUMENTS, read_folder

if TYPE_CHECKING:
    from torch import nn

_IMAGENET_CLASSES = 1000
_RESIZE: dict[str, Resize] = {"squash": "exact", "border": "letterbox"}
_USE_WEIGHTS = "Choose weights with --weights (or model.weights in the recipe)."
_REFUSED = dict.fromkeys(WEIGHT_ARGUMENTS, _USE_WEIGHTS)


class Timm(Source):
    """timm models: ViT, DeiT, Swin, BEiT, EVA, DINOv2, …, and convolutional ones."""

    def load(self, argument: str, spec: ModelSpec, size: tuple[int, int] | None) -> LoadedModel:
        """Load the timm model `argument`, or the folder that timm saved it in; `size` becomes its `img_size`."""
        folder = _find_folder(argument)
        saved = None if folder is None else read_folder(folder)
        name = argument if saved is None else saved.architecture
        _check_name(name)
        _weights.refuse_kwargs(spec, _REFUSED)
        weights = _weights.find_weights(spec)
        patch = re.search(r"patch(\d+)", name)
        if size and patch:
            _image.check_patch(name, size, int(patch[1]))
        given = {**(saved.arguments if saved else {}), **spec.kwargs}
        if spec.num_classes is not None:
            given["num_classes"] = spec.num_classes
        file = saved.weights if saved and weights == "pretrained" else weights
        fitted = None
        if isinstance(file, Path):

            def build(img_size: tuple[int, int] | None = size, **changes: Any) -> nn.Module:
                return _build(name, {**given, **changes}, img_size, pretrained=False)

            module, fitted = load_checkpoint(name, build, given, size, file, spec.weights_key)
            size = size or fitted.use.size
            channels = count_channels(module, fitted.state)
            given |= {} if channels is None else {"in_chans": channels}
        else:
            module = _build(name, given, size, pretrained=weights == "pretrained")
        config = _read_config(name, module, given, size)
        preprocess = read_preprocess(config)
        _image.check_patch(name, preprocess.size, getattr(getattr(module, "patch_embed", None), "patch_size", None))
        classes = getattr(module, "num_classes", None)
        labels = saved.labels if saved else fitted.labels if fitted else None
        return _weights.make_loaded_model(
            module,
            weights=weights if isinstance(weights, str) else "file",
            preprocess=preprocess,
            labels=labels if labels and len(labels) == classes else _read_labels(module),
            task=TaskSpec(kind="embedding") if classes == 0 else None,
            processor=make_processor(config),
            checkpoint=fitted.use if fitted else None,
            license=_licence.of_timm(module) if weights == "pretrained" else "",
        )

    def anchor(self, argument: str, folder: Path) -> str:
        """Make the path of a model's folder absolute, if `folder` has one of this name."""
        return str(folder / argument) if (folder / argument / CONFIG).is_file() else argument


def _find_folder(argument: str) -> Path | None:
    path = expand_home(argument)
    return path if path.is_dir() else None


def _check_name(name: str) -> None:
    import timm

    if ":" in name:
        raise SourceError(
            f"timm:{name} is not a name of timm's model list", fix=f"For the hub, give hf:{name.partition(':')[2]}."
        )
    if not timm.is_model(name.partition(".")[0]):
        known = timm.list_models()
        nearest = timm.list_models(f"*{name}*")[:3]
        hint = f" (did you mean {' or '.join(map(repr, nearest))}?)" if nearest else did_you_mean(name, known)
        raise SourceError(f"timm has no model {name!r}{hint}", fix="All names: `timm.list_models()`.")


def _build(name: str, kwargs: dict[str, Any], size: tuple[int, int] | None, *, pretrained: bool) -> nn.Module:
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
        arguments = {**kwargs, **({"img_size": size} if size else {})}
        raise SourceError(
            f"timm:{name} cannot be built with {arguments}: {' '.join(str(error).split())[:300]}",
            fix="Correct --image-size or the kwargs of the recipe.",
        ) from None


def _create(name: str, kwargs: Mapping[str, Any], *, pretrained: bool) -> nn.Module:
    import timm

    if not pretrained:
        with _weights.fixed_seed():
            module: nn.Module = timm.create_model(name, pretrained=False, **kwargs)
        return module
    with cache_only_when_unreachable() as reachable:
        try:
            module = timm.create_model(name, pretrained=True, **kwargs)
        except (TypeError, AssertionError, ValueError):
            raise
        except Exception as error:  # hub, http, files and checkpoints have errors of their own
            offline = "the Hugging Face hub does not answer, and the local cache does not have them"
            raise _weights.missing_weights(f"timm:{name}", error if reachable else offline) from error
    return module


def _check_pretrained(name: str, kwargs: Mapping[str, Any]) -> None:
    import timm

    try:
        cfg = timm.get_pretrained_cfg(name)
    except RuntimeError as error:  # an unknown tag after the dot
        raise SourceError(
            f"timm:{name}: {error}", fix=f"All tags: `timm.list_pretrained('{name.partition('.')[0]}*')`."
        ) from None
    if cfg is None or not cfg.has_weights:
        raise _weights.missing_weights(f"timm:{name}", "timm has none for this model")
    if not cfg.hf_hub_id and not may_download(str(cfg.url)):
        raise _weights.missing_weights(f"timm:{name}", NOT_CACHED)
    classes = kwargs.get("num_classes", cfg.num_classes)
    if classes not in (0, cfg.num_classes):
        raise _weights.missing_weights(
            f"timm:{name}", f"they have {cfg.num_classes} classes, not {classes}: the head would be random"
        )


def _read_config(
    name: str, module: nn.Module, kwargs: Mapping[str, Any], size: tuple[int, int] | None
) -> dict[str, Any]:
    """Return timm's data config of the model, for its own channels and size."""
    from timm.data import config as timm_config

    resolve: Any = timm_config.resolve_model_data_config  # timm has no types for it
    config = resolve(module)
    channels = int(kwargs.get("in_chans", config["input_size"][0]))
    if channels not in (1, 3):
        raise SourceError(f"timm:{name} takes {channels} channels", fix="Set in_chans to 1 or 3.")
    default = kwargs.get("img_size", config["input_size"][1:])
    height, width = size or (tuple(default) if isinstance(default, (tuple, list)) else (default, default))
    mean, std = (_fit_to_channels(config[key], channels) for key in ("mean", "std"))
    filter_ = config["interpolation"] if config["interpolation"] in get_args(Interpolation) else "bicubic"
    return {**config, "input_size": (channels, height, width), "mean": mean, "std": std, "interpolation": filter_}


def read_preprocess(config: Mapping[str, Any]) -> Preprocess:
    """Translate a data config of timm into the steps from an image to the input."""
    channels, height, width = config["input_size"]
    crop_mode = config["crop_mode"]
    return Preprocess(
        size=(height, width),
        mean=config["mean"],
        std=config["std"],
        interpolation=config["interpolation"],
        channels=1 if channels == 1 else 3,
        resize=_RESIZE.get(crop_mode, "shortest"),
        crop_pct=config["crop_pct"],
        size_rounding="even" if crop_mode == "border" else "down",
        fill=None if crop_mode == "border" else (0,) * channels,
    )


def make_processor(config: Mapping[str, Any]) -> _image.TransformProcessor:
    """Return timm's own evaluation transform."""
    from timm.data import transforms_factory

    names = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")
    create: Any = transforms_factory.create_transform  # timm has no types for it
    return _image.TransformProcessor("timm's transform", create(**{name: config[name] for name in names}))


def _fit_to_channels(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Average statistics of RGB for a grey model, as timm averages the weights of its first layer."""
    return tuple(values) if len(values) == channels else (sum(values) / len(values),) * channels


def _read_labels(module: nn.Module) -> tuple[str, ...] | None:
    from timm.data.imagenet_info import ImageNetInfo

    if getattr(module, "num_classes", None) != _IMAGENET_CLASSES:
        return None
    return tuple(ImageNetInfo().label_descriptions())
