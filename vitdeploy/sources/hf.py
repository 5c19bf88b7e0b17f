"""`hf:NAME_OR_DIR`: a vision model of Hugging Face transformers, from a local folder or from the hub."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitdeploy.errors import SourceError
from vitdeploy.frozen import replace
from vitdeploy.recipe import ModelSpec
from vitdeploy.sources import LoadedModel, Source, _image, _weights
from vitdeploy.sources._hf_preprocess import image_size, preprocess_of
from vitdeploy.sources._hf_task import labels_of, task_of
from vitdeploy.sources._hub import cache_only_when_unreachable

if TYPE_CHECKING:
    from torch import nn

_OFFLINE = "the Hugging Face hub does not answer and it is not in its cache"
_INPUT = "pixel_values"
_WHOLE_IMAGE = ("segmentation", "depth", "detection")
"""Of these no border may be cropped; where transformers keeps the aspect ratio and pads, one fixed size is filled."""
_REFUSED = {
    "trust_remote_code": "Only python:FILE:FACTORY runs code that is not installed.",
    "ignore_mismatched_sizes": "It would leave weights random: use --weights random or weights that fit.",
    "state_dict": "Choose weights with --weights.",
    "weights_only": "Weights are always read as tensors only.",
    "dtype": "The source is float32: choose --precision.",
    "torch_dtype": "The source is float32: choose --precision.",
    "quantization_config": "The source is float32: choose --precision.",
}


class Hf(Source):
    """Image models of transformers: called with `pixel_values`, outputs by their ModelOutput keys."""

    def load(self, argument: str, spec: ModelSpec, size: tuple[int, int] | None) -> LoadedModel:
        """The model in the folder or hub repository `argument`, of the class that its config names.

        `model.kwargs` are values of its config, and `attn_implementation`.
        """
        _weights.refuse_kwargs(spec, _REFUSED)
        weights = _weights.chosen(spec)
        local = _is_local(argument)
        with cache_only_when_unreachable(local=local) as reachable:
            config = _config(argument, spec.kwargs, local, reachable)
            _check_patch(argument, config, size)
            if size and weights == "random" and hasattr(config, "image_size"):
                config.image_size = size[0] if size[0] == size[1] else list(size)
            kind = _model_class(config)
            attention = spec.kwargs.get("attn_implementation")
            if weights == "pretrained":
                module = _pretrained(argument, kind, config, attention, local, reachable)
            else:
                module = _random(argument, kind, config, attention)
            if isinstance(weights, Path):
                module = _from_file(module, weights)
            processor = _processor(argument, local)
        _check_input(argument, module)
        task = task_of(type(module).__name__, config, processor)
        preprocess = preprocess_of(argument, processor, config, size)
        if task is not None and task.kind in _WHOLE_IMAGE:
            preprocess = replace(preprocess, resize="exact", crop_pct=1.0)
        _check_size(argument, module, preprocess.channels, preprocess.size)
        return _weights.finished(
            module,
            weights=weights if isinstance(weights, str) else "file",
            preprocess=preprocess,
            labels=labels_of(task, config),
            input_name=_INPUT,
            task=task,
        )

    def anchor(self, argument: str, folder: Path) -> str:
        """Return the folder of a model, if there is one of that name in `folder`."""
        return str(folder / argument) if (folder / argument).is_dir() else argument


def _is_local(argument: str) -> bool:
    path = Path(argument).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise SourceError(f"hf:{argument} has no config.json", fix="Save the model there with save_pretrained().")
        return True
    if path.is_absolute() or argument.startswith((".", "~")) or argument.count("/") > 1:
        raise SourceError(f"there is no folder {argument}", fix="Check the path.")
    return False


def _config(argument: str, kwargs: Mapping[str, Any], local: bool, reachable: bool) -> Any:
    import transformers

    own = {key: value for key, value in kwargs.items() if key != "attn_implementation"}
    try:
        config, unused = transformers.AutoConfig.from_pretrained(
            _place(argument), local_files_only=local, trust_remote_code=False, return_unused_kwargs=True, **own
        )
    except Exception as error:  # hub, http, JSON and validation errors alike
        reason = " ".join(str(error).split())[:300] if local or reachable else _OFFLINE
        raise SourceError(
            f"hf:{argument} cannot be had: {reason}", fix="Check the name, or give a folder with config.json."
        ) from error
    wrong = [key for key in own if key in unused]
    if wrong:
        raise SourceError(f"hf:{argument}: its config has no {wrong[0]!r}", fix="Correct model.kwargs in the recipe.")
    return config


def _place(argument: str) -> str:
    path = Path(argument).expanduser()
    return str(path) if path.is_dir() else argument


def _model_class(config: Any) -> Any:
    """The class that the checkpoint was saved from, else an image classifier, else the plain backbone."""
    import transformers

    named = (getattr(config, "architectures", None) or [None])[0]
    kind = getattr(transformers, named, None) if named and re.fullmatch(r"\w+", named) else None
    if isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel):
        return kind
    classifiers = transformers.models.auto.modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING
    return transformers.AutoModelForImageClassification if type(config) in classifiers else transformers.AutoModel


def _options(attention: str | None) -> dict[str, str]:
    return {"attn_implementation": attention} if attention else {}


def _random(argument: str, kind: Any, config: Any, attention: str | None) -> nn.Module:
    build = kind.from_config if hasattr(kind, "from_config") else kind._from_config
    try:
        with _weights.seeded():
            module: nn.Module = build(config, **_options(attention))
    except (TypeError, ValueError, ImportError, AssertionError) as error:
        raise SourceError(
            f"hf:{argument} cannot be built: {' '.join(str(error).split())[:300]}", fix="Correct model.kwargs."
        ) from None
    return module


@contextmanager
def _without_bars() -> Iterator[None]:
    """Transformers draws a bar while it copies weights, over what vitdeploy says; off with it go those of downloads."""
    from transformers import utils

    bars: Any = utils.logging  # it has no types
    drawn = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if drawn:
            bars.enable_progress_bar()


def _from_file(module: Any, path: Path) -> nn.Module:
    """Through transformers, because it renames keys between the file and the module."""
    import torch

    with _without_bars():
        loaded, info = type(module).from_pretrained(
            None,
            config=module.config,
            state_dict=_weights.read_state_dict(path),
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, with their names
            dtype=torch.float32,
        )
    _weights.check_fit(
        path,
        missing=sorted(info["missing_keys"]),
        unexpected=sorted(info["unexpected_keys"]),
        shapes=sorted(info["mismatched_keys"]),
    )
    result: nn.Module = loaded
    return result


def _pretrained(
    argument: str, kind: Any, config: Any, attention: str | None, local: bool, reachable: bool
) -> nn.Module:
    import torch

    try:
        module: nn.Module
        with _without_bars() if Path(_place(argument)).is_dir() else nullcontext():
            module, info = kind.from_pretrained(
                _place(argument),
                config=config,
                local_files_only=local,
                output_loading_info=True,
                weights_only=True,
                dtype=torch.float32,
                **_options(attention),
            )
    except Exception as error:  # hub, http, file and checkpoint errors alike
        raise _weights.unavailable(f"hf:{argument}", error if local or reachable else _OFFLINE) from error
    fresh = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
    if fresh:
        raise _weights.unavailable(
            f"hf:{argument}", f"they leave {len(fresh)} tensors of {type(module).__name__} random, first {fresh[0]}"
        )
    return module


def _processor(argument: str, local: bool) -> dict[str, Any] | None:
    """What preprocessor_config.json says, with the defaults of its class; None when there is no such file."""
    import transformers

    try:
        auto: Any = transformers.AutoImageProcessor
        processor = auto.from_pretrained(_place(argument), local_files_only=local, trust_remote_code=False)
    except (OSError, ValueError):
        return None
    return dict(processor.to_dict())


def _check_patch(argument: str, config: Any, size: tuple[int, int] | None) -> None:
    own = size or image_size(config)
    if own is not None:
        _image.check_patch(f"hf:{argument}", own, getattr(config, "patch_size", None))


def _check_input(argument: str, module: nn.Module) -> None:
    first = next(iter(inspect.signature(module.forward).parameters), None)
    if first != _INPUT:
        raise SourceError(
            f"hf:{argument} ({type(module).__name__}) takes {first} first, not {_INPUT}",
            fix="Wrap its vision part in a factory of your own: python:FILE:FACTORY.",
        )


def _check_size(argument: str, module: nn.Module, channels: int, size: tuple[int, int]) -> None:
    """One image through it: which sizes a transformers model takes is only known by asking."""
    import torch

    try:
        with torch.inference_mode():
            module.eval().float()(torch.zeros(1, channels, *size))
    except (ValueError, RuntimeError) as error:
        raise SourceError(
            f"hf:{argument} does not take images of {size[0]}x{size[1]}: {' '.join(str(error).split())[:200]}",
            fix="Leave out --image-size.",
        ) from None
