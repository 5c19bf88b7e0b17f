"""`torchvision:NAME`: a classifier or a segmentation model of torchvision, with the preprocessing of its weights."""

from __future__ import annotations

import copy
import dataclasses
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitdeploy.data.geometry import size_before_crop
from vitdeploy.errors import SourceError
from vitdeploy.frozen import replace
from vitdeploy.plugins import did_you_mean
from vitdeploy.recipe import ModelSpec, Preprocess, TaskSpec
from vitdeploy.sources import LoadedModel, Source, _image, _weights
from vitdeploy.sources._checkpoint import Fitted
from vitdeploy.sources._hub import NOT_CACHED, may_download

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import nn

_TIMEOUT_SECONDS = 10.0
_USE_WEIGHTS = "Choose weights with --weights (or model.weights in the recipe)."
_POSITIONS, _CLASS_TOKENS = "encoder.pos_embedding", 1
_REFUSED = {"weights": _USE_WEIGHTS, "weights_backbone": _USE_WEIGHTS, "pretrained": _USE_WEIGHTS}


class Torchvision(Source):
    """torchvision models for classification or segmentation: ViT, Swin, MaxViT and convolutional ones."""

    def load(self, argument: str, spec: ModelSpec, size: tuple[int, int] | None) -> LoadedModel:
        """Load the torchvision model `argument`; `size` becomes the `image_size` of a ViT."""
        import torchvision

        known = torchvision.models.list_models()
        if argument not in known:
            raise SourceError(
                f"torchvision has no model {argument!r}{did_you_mean(argument, known)}",
                fix="All names: `torchvision.models.list_models()`.",
            )
        _weights.refuse_kwargs(spec, _REFUSED)
        weights = _weights.find_weights(spec)
        default = torchvision.models.get_model_weights(argument).DEFAULT
        preprocess = read_preprocess(argument, default, size)
        segments = _is_segmentation(default)
        given = dict(spec.kwargs) if spec.num_classes is None else {**spec.kwargs, "num_classes": spec.num_classes}
        fitted = None
        if isinstance(weights, Path):
            module, fitted = _load_checkpoint(argument, given, size, weights, spec.weights_key, segments=segments)
            if size is None and fitted.use.size is not None:
                preprocess = read_preprocess(argument, default, fitted.use.size)
        else:
            module = _build(argument, given, size, segments=segments)
        if weights == "pretrained":
            _load_pretrained(argument, module, default)
        if getattr(module, "aux_classifier", None) is not None:
            # It only helps training, and its scores would be a second output.
            module.register_module("aux_classifier", None)
        categories = tuple(default.meta.get("categories", ()))
        classes = given.get("num_classes", fitted.use.classes if fitted else None)
        same_classes = classes in (None, len(categories))
        own_labels = fitted.labels_for(classes or len(categories)) if fitted else None
        return _weights.make_loaded_model(
            module,
            weights=weights if isinstance(weights, str) else "file",
            preprocess=preprocess,
            labels=own_labels or (categories if categories and same_classes else None),
            task=TaskSpec(kind="segmentation") if segments else None,
            processor=make_processor(default, preprocess),
            checkpoint=fitted.use if fitted else None,
        )


def _load_checkpoint(
    name: str, given: Mapping[str, Any], size: tuple[int, int] | None, path: Path, key: str | None, *, segments: bool
) -> tuple[nn.Module, Fitted]:
    """Build the model for the classes and the image size of a checkpoint. Resample its positions to `size`."""

    def build(img_size: tuple[int, int] | None = size, **changes: Any) -> nn.Module:
        return _build(name, {**given, **changes}, img_size, segments=segments)

    def adapt(module: nn.Module, fitted: Fitted) -> dict[str, Any]:
        have, want = (state.get(_POSITIONS) for state in (fitted.state, module.state_dict()))
        if have is None or want is None or have.ndim != 3 or have.shape[1] == want.shape[1]:
            return {}
        patch: Any = module.patch_size
        return {"img_size": _image.read_trained_size(path, have.shape[1] - _CLASS_TOKENS, (patch, patch))}

    module, fitted = _weights.build_and_load(build, path, key, adapt, read_classes="num_classes" not in given)
    if size is None or fitted.use.size is None:
        return module, fitted
    from torchvision.models.vision_transformer import interpolate_embeddings

    vit: Any = module
    state = interpolate_embeddings(size[0], vit.patch_size, vit.state_dict())
    module = build(num_classes=vit.num_classes)
    module.load_state_dict(state)
    return module, dataclasses.replace(fitted, use=replace(fitted.use, resampled=True))


def _is_segmentation(default: Any) -> bool:
    return type(default.transforms()).__name__ == "SemanticSegmentation"


def _build(name: str, kwargs: dict[str, Any], size: tuple[int, int] | None, *, segments: bool) -> nn.Module:
    vit = re.match(r"vit_[a-z]+_(\d+)$", name)
    if size and vit:
        _image.check_patch(name, size, int(vit[1]))
        if size[0] != size[1]:
            raise SourceError(
                f"torchvision:{name} takes square images only", fix=f"Use --image-size {size[0]}x{size[0]}."
            )
        kwargs["image_size"] = size[0]
    if segments:
        kwargs["weights_backbone"] = None  # the default would download pretrained weights
        if not name.startswith("lraspp"):
            kwargs.setdefault("aux_loss", True)  # the pretrained weights have an auxiliary classifier
    return _create(name, kwargs)


def _create(name: str, kwargs: Mapping[str, Any]) -> nn.Module:
    import torchvision

    try:
        with _weights.fixed_seed():
            module: nn.Module = torchvision.models.get_model(name, weights=None, **kwargs)
    except (TypeError, AssertionError, ValueError) as error:
        raise SourceError(
            f"torchvision:{name} cannot be built with {dict(kwargs)}: {' '.join(str(error).split())[:300]}",
            fix="Correct --image-size or the kwargs of the recipe.",
        ) from None
    return module


def _load_pretrained(name: str, module: nn.Module, default: Any) -> None:
    if not may_download(default.url):
        raise _weights.missing_weights(f"torchvision:{name}", NOT_CACHED)
    with _socket_timeout():
        try:
            # get_model(weights=...) would unpickle without weights_only.
            state = default.get_state_dict(progress=False, check_hash=True, map_location="cpu", weights_only=True)
            module.load_state_dict(state)
        except Exception as error:  # URLs, sockets, hashes and checkpoints have errors of their own
            raise _weights.missing_weights(f"torchvision:{name}", error) from error


@contextmanager
def _socket_timeout() -> Iterator[None]:
    """Set a timeout for new sockets: torch.hub has none, and would wait for ever in a network that drops packets."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def read_preprocess(name: str, default: Any, size: tuple[int, int] | None) -> Preprocess:
    """Translate the transform of torchvision's weights, for images of `size`.

    Raises:
        SourceError: it is neither for classification nor for segmentation.
    """
    transforms = default.transforms()
    if _is_segmentation(default):  # torchvision's take images of any size; an artifact takes one, and pads
        side = transforms.resize_size[0]
        return Preprocess(
            size=size or (side, side),
            mean=tuple(transforms.mean),
            std=tuple(transforms.std),
            interpolation=transforms.interpolation.value,
            resize="letterbox",
            shortest_edge=side,
            padding="end",
        )
    crop = getattr(transforms, "crop_size", None)
    if not crop:
        raise SourceError(
            f"torchvision:{name} does neither classification nor segmentation: its preprocessing is unknown",
            fix="Write a factory that builds it, and give python:FILE:FACTORY.",
        )
    return Preprocess(
        size=size or (crop[0], crop[-1]),
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
        interpolation=transforms.interpolation.value,
        crop_pct=crop[0] / transforms.resize_size[0],
        fill=(0, 0, 0),
    )


def make_processor(default: Any, preprocess: Preprocess) -> _image.TransformProcessor:
    """Return the transform of torchvision's weights, for images of another size if `preprocess` has one."""
    transform = default.transforms()
    name = f"{type(transform).__name__} of torchvision"
    if _is_segmentation(default):

        def resize_to(image: Image, size: tuple[int, int]) -> Any:
            sized = copy.copy(transform)
            sized.resize_size = list(size)
            return sized(image)

        return _image.TransformProcessor(name, transform, resize_to)
    if transform.crop_size != [preprocess.size[0]] or preprocess.size[0] != preprocess.size[1]:
        transform.crop_size, transform.resize_size = list(preprocess.size), [min(size_before_crop(preprocess))]
    return _image.TransformProcessor(name, transform)
