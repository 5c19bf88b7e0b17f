"""`timm:NAME_OR_DIR`: a model of the timm library, or a folder that timm saved, with its own preprocessing."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from vitdeploy import frozen
from vitdeploy.errors import SourceError
from vitdeploy.plain_files import expand_home, read_plain
from vitdeploy.plugins import did_you_mean
from vitdeploy.recipe import Interpolation, ModelSpec, Preprocess, Resize, TaskSpec
from vitdeploy.sources import LoadedModel, Source, _image, _weights
from vitdeploy.sources._checkpoint import Fitted, count_classes
from vitdeploy.sources._hub import NOT_CACHED, cache_only_when_unreachable, may_download

if TYPE_CHECKING:
    from torch import Tensor, nn

_IMAGENET_CLASSES = 1000
_POSITIONS = "pos_embed"
_CONFIG, _WEIGHTS = "config.json", ("model.safetensors", "pytorch_model.bin", "model.safetensors.index.json")
_MAX_CONFIG_BYTES = 16 << 20
_SEARCH_SECONDS = 20.0
_PREPROCESSING = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode", "test_input_size")
_RESIZE: dict[str, Resize] = {"squash": "exact", "border": "letterbox"}
_USE_WEIGHTS = "Choose weights with --weights (or model.weights in the recipe)."
_REFUSED = {
    "pretrained": _USE_WEIGHTS,
    "checkpoint_path": _USE_WEIGHTS,
    "pretrained_cfg": _USE_WEIGHTS,
    "pretrained_cfg_overlay": _USE_WEIGHTS,
    "pretrained_strict": _USE_WEIGHTS,
}


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
            module, fitted = _load_checkpoint(name, given, size, file, spec.weights_key)
            size = size or fitted.use.size
            channels = _count_channels(module, fitted.state)
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
        )

    def anchor(self, argument: str, folder: Path) -> str:
        """Make the path of a model's folder absolute, if `folder` has one of this name."""
        return str(folder / argument) if (folder / argument / _CONFIG).is_file() else argument


def _find_folder(argument: str) -> Path | None:
    path = expand_home(argument)
    return path if path.is_dir() else None


def _load_checkpoint(
    name: str, given: Mapping[str, Any], size: tuple[int, int] | None, path: Path, key: str | None
) -> tuple[nn.Module, Fitted]:
    """Build the model for the classes, channels and image size of a checkpoint. Resample its positions to `size`."""

    def build(changes: Mapping[str, Any]) -> nn.Module:
        others = {key: value for key, value in changes.items() if key != "img_size"}
        return _build(name, {**given, **others}, changes.get("img_size", size), pretrained=False)

    def adapt(module: nn.Module, fitted: Fitted) -> dict[str, Any]:
        expected = module.state_dict()
        changes: dict[str, Any] = {}
        if "num_classes" not in given and (classes := count_classes(fitted.state, module)) is not None:
            changes["num_classes"] = classes
        if set(fitted.state) != set(expected):
            return changes  # of another architecture
        channels = _count_channels(module, fitted.state)
        if "in_chans" not in given and channels != _count_channels(module, expected):
            changes["in_chans"] = channels
        have, want = (state.get(_POSITIONS) for state in (fitted.state, expected))
        if have is not None and want is not None and have.ndim == want.ndim == 3 and have.shape[1] != want.shape[1]:
            patches: Any = module.patch_embed
            tokens = want.shape[1] - math.prod(patches.grid_size)  # those that have a position beside the patches
            changes["img_size"] = _image.read_trained_size(path, have.shape[1] - tokens, patches.patch_size)
        return changes

    try:
        unwanted = _classifiers(name) if given.get("num_classes") == 0 else ()
        module, fitted = _weights.build_and_load(build, path, key, adapt, without=unwanted)
    except _weights.Misfit as misfit:
        only_head = all(each.startswith(_classifiers(name)) for each in misfit.names)
        nearest = None if only_head else _find_fitting(name, misfit.state)
        if nearest is None:
            raise
        raise SourceError(
            f"{misfit.message}: its keys and shapes are those of {nearest!r}", fix=f"Give timm:{nearest}."
        ) from None
    if size is None or fitted.use.size is None:
        return module, fitted
    if not hasattr(module, "set_input_size"):
        trained = "x".join(map(str, fitted.use.size))
        raise SourceError(
            f"{path} was trained on {trained}, and timm:{name} cannot be changed to another size",
            fix=f"Use --image-size {trained}.",
        )
    resize: Any = module.set_input_size
    resize(img_size=size)
    return module, dataclasses.replace(fitted, use=frozen.replace(fitted.use, resampled=True))


def _count_channels(module: nn.Module, state: Mapping[str, Tensor]) -> int | None:
    """Return the channels of the images that the first convolution in a state dict takes; None if it has no name."""
    config: Any = getattr(module, "pretrained_cfg", None)
    stem = state.get(f"{(config or {}).get('first_conv')}.weight")
    return None if stem is None or stem.ndim != 4 else int(stem.shape[1])


def _classifiers(name: str) -> tuple[str, ...]:
    """Return how the keys of a model's classifier begin."""
    import timm

    config = timm.get_pretrained_cfg(name.partition(".")[0])
    names: Any = config.classifier if config is not None else None
    return tuple(f"{each}." for each in ((names,) if isinstance(names, str) else names or ()))


def _find_fitting(name: str, state: Mapping[str, Tensor]) -> str | None:
    """Return the model of timm's list with the keys and shapes of a state dict, of those with similar names first.

    Its classifier and its position embedding may have other sizes. Models are built without memory, for some seconds.
    """
    import timm

    shapes = {key: value.shape for key, value in state.items()}
    deadline = time.monotonic() + _SEARCH_SECONDS
    for other in sorted(timm.list_models(), key=lambda other: -difflib.SequenceMatcher(None, name, other).ratio()):
        expected = _list_shapes(other)
        free = (*_classifiers(other), _POSITIONS)
        if set(expected) == set(shapes) and all(
            shape == expected[key] or key.startswith(free) for key, shape in shapes.items()
        ):
            return str(other)
        if time.monotonic() > deadline:
            break
    return None


def _list_shapes(name: str) -> dict[str, Any]:
    """Return the shapes of a model's tensors, without making them; nothing if it cannot be built so."""
    import timm
    import torch

    try:
        with torch.device("meta"):
            return {key: value.shape for key, value in timm.create_model(name).state_dict().items()}
    except Exception:  # noqa: BLE001  constructors that compute with the values of tensors raise what they like
        return {}


@dataclass(frozen=True)
class SavedModel:
    """A folder as timm writes it for the hub.

    Attributes:
        architecture: the name in timm's model list.
        arguments: the arguments that it was built with.
        labels: class names in the order of the outputs.
        weights: the file of the weights.
    """

    architecture: str
    arguments: Mapping[str, Any]
    labels: tuple[str, ...] | None
    weights: Path


def read_folder(folder: Path) -> SavedModel:
    """Read the folder of a model that timm saved: `config.json` and the weights beside it.

    Raises:
        SourceError: it is not such a folder.
    """
    fix = "Save it with timm.models.save_for_hf(model, FOLDER)."
    try:
        config = json.loads(read_plain(folder / _CONFIG, _MAX_CONFIG_BYTES))
        architecture = config["architecture"]
    except FileNotFoundError:
        raise SourceError(f"timm:{folder} has no {_CONFIG}", fix=fix) from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise SourceError(f"{folder / _CONFIG} names no `architecture` of timm", fix=fix) from None
    details = config.get("pretrained_cfg", config)
    weights = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    if not isinstance(architecture, str) or not isinstance(details, dict):
        raise SourceError(f"{folder / _CONFIG} names no `architecture` of timm", fix=fix)
    if weights is None:
        raise SourceError(f"timm:{folder} has none of the files {', '.join(_WEIGHTS)}", fix=fix)
    names = config.get("label_names", details.get("label_names"))
    labels = tuple(names) if isinstance(names, list) and all(isinstance(n, str) for n in names) else None
    built_with = config.get("model_args", {})
    if not isinstance(built_with, dict) or _REFUSED.keys() & built_with.keys():
        raise SourceError(f"{folder / _CONFIG} has `model_args` that choose other weights", fix=fix)
    arguments = {**built_with, **_overlay(details)}
    return SavedModel(architecture, arguments, labels, weights)


def _overlay(details: Mapping[str, Any]) -> dict[str, Any]:
    """Return the saved preprocessing, in the form that timm takes over its own."""
    kept = {name: details[name] for name in _PREPROCESSING if details.get(name) is not None}
    return {"pretrained_cfg_overlay": kept} if kept else {}


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
