"""Inputs of a transformers model beside pixel values."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from vitdeploy.errors import SourceError
from vitdeploy.recipe import Preprocess
from vitdeploy.sources._bind import bind_module, read_parameters

if TYPE_CHECKING:
    from torch import nn

_PIXELS = ("pixel_values", "pixel_values_videos")
"""The parameter that takes images or clips, as families name it."""
_SETTINGS = re.compile(r"(output|return|use|interpolate|labels|.*loss|.*labels|past|cache)(_.*)?$")
"""Parameters that choose what is computed: no inputs of the model."""
_FACTORY = "write a factory that returns its vision part, and give python:FILE:FACTORY"


def find_pixels(module: nn.Module) -> str | None:
    """Return the parameter of a model that takes images or clips; None if it takes none."""
    names = read_parameters(module)
    return next((name for name in _PIXELS if name in names), None)


def bind_images(model: str, module: nn.Module, raw: Mapping[str, Any], open_names: Collection[str] = ()) -> nn.Module:
    """Return a module that takes pixel values and the open inputs: the model itself, or with its other inputs fixed.

    Raises:
        SourceError: it takes no pixel values, or needs more than those.
    """
    from vitdeploy.sources._bound import Bound

    names, pixels = list(read_parameters(module)), find_pixels(module)
    if pixels is None:
        shown = _listed([name for name in names if not _SETTINGS.match(name)])
        raise SourceError(
            f"{model} ({type(module).__name__}) takes {shown}, and no {_PIXELS[0]}",
            fix=f"If it sees images, {_FACTORY}.",
        )
    bound = bind_module(f"{model} ({type(module).__name__})", module, raw, pixels, open_names, pixels)
    return Bound(module, {}, pixels) if bound is module and names[0] != pixels else bound


def explain_failure(
    model: str, module: nn.Module, error: Exception, preprocess: Preprocess, *, sized: bool
) -> SourceError:
    """Return the error of a model that fails on an image or a clip.

    Args:
        model: the model in messages.
        module: the model as transformers has it.
        error: what it raised.
        preprocess: of the image or clip.
        sized: the user gave its size.
    """
    size, sample = preprocess.size, preprocess.sample_word
    what = f"a clip of {preprocess.frames} frames" if preprocess.frames else "an image"
    names = [name for name in read_parameters(module) if name not in _PIXELS and not _SETTINGS.match(name)]
    text = " ".join(str(error).split())[:200]
    named = [name for name in names if re.search(rf"\b{re.escape(name)}\b", text)]
    if named:
        flags = " ".join(f"--bind {name}=VALUE" for name in named)
        return SourceError(
            f"{model} needs {_listed(named)} beside the {sample}: {text}",
            fix=f"Give {flags}, or {_FACTORY}.",
        )
    if sized:
        return SourceError(
            f"{model} does not take {sample}s of {size[0]}x{size[1]}: {text}",
            fix="Leave out --image-size.",
        )
    others = f" It also takes {_listed(names)}, which --bind NAME=VALUE fixes." if names else ""
    return SourceError(
        f"{model} fails on {what} of {size[0]}x{size[1]}: {type(error).__name__}: {text}",
        fix=f"Give another --image-size, or {_FACTORY}.{others}",
    )


def _listed(names: list[str]) -> str:
    return " and ".join(names) if len(names) < 3 else f"{', '.join(names[:-1])} and {names[-1]}"
