"""Inputs of a transformers model beside pixel values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vitdeploy.errors import SourceError
from vitdeploy.sources._bind import bind_module, read_parameters

if TYPE_CHECKING:
    from torch import nn

_PIXELS = "pixel_values"
_SETTINGS = re.compile(r"(output|return|use|interpolate|labels|.*loss|.*labels|past|cache)(_.*)?$")
"""Parameters that choose what is computed: no inputs of the model."""
_FACTORY = "write a factory that returns its vision part, and give python:FILE:FACTORY"


def bind_images(model: str, module: nn.Module, raw: Mapping[str, Any]) -> nn.Module:
    """Return a module that takes pixel values alone: the model itself, or with its other inputs fixed.

    Raises:
        SourceError: it takes no pixel values, or needs more than those.
    """
    from vitdeploy.sources._bound import Bound

    names = list(read_parameters(module))
    if _PIXELS not in names:
        shown = _listed([name for name in names if not _SETTINGS.match(name)])
        raise SourceError(
            f"{model} ({type(module).__name__}) takes {shown}, and no {_PIXELS}", fix=f"If it sees images, {_FACTORY}."
        )
    bound = bind_module(f"{model} ({type(module).__name__})", module, raw, _PIXELS)
    return Bound(module, {}, _PIXELS) if bound is module and names[0] != _PIXELS else bound


def explain_failure(
    model: str, module: nn.Module, error: Exception, size: tuple[int, int], *, sized: bool
) -> SourceError:
    """Return the error of a model that fails on an image.

    Args:
        model: the model in messages.
        module: the model as transformers has it.
        error: what it raised.
        size: height and width of the image.
        sized: the user gave that size.
    """
    frames = getattr(getattr(module, "config", None), "num_frames", None)
    if frames is not None:
        return SourceError(
            f"{model} ({type(module).__name__}) takes clips of {frames} frames, and an artifact takes single images",
            fix="Write a factory that takes one image, such as its encoder on one frame, and give python:FILE:FACTORY.",
        )
    names = [name for name in read_parameters(module) if name != _PIXELS and not _SETTINGS.match(name)]
    text = " ".join(str(error).split())[:200]
    named = [name for name in names if re.search(rf"\b{re.escape(name)}\b", text)]
    if named:
        flags = " ".join(f"--bind {name}=VALUE" for name in named)
        return SourceError(
            f"{model} needs {_listed(named)} beside the image: {text}", fix=f"Give {flags}, or {_FACTORY}."
        )
    if sized:
        return SourceError(
            f"{model} does not take images of {size[0]}x{size[1]}: {text}", fix="Leave out --image-size."
        )
    others = f" It also takes {_listed(names)}, which --bind NAME=VALUE fixes." if names else ""
    return SourceError(
        f"{model} fails on an image of {size[0]}x{size[1]}: {type(error).__name__}: {text}",
        fix=f"Give another --image-size, or {_FACTORY}.{others}",
    )


def _listed(names: list[str]) -> str:
    return " and ".join(names) if len(names) < 3 else f"{', '.join(names[:-1])} and {names[-1]}"
