"""The model that a checkpoint is of, found in the lists of timm and torchvision by the shapes of its tensors.

timm alone has a thousand models, and building all of them takes minutes. So the numbers in the shapes (width, depth,
patch size, MLP width) are compared with the numbers in each model's entry function first, and the words in the keys
with those in its source. The best few are built, on the meta device, and compared tensor by tensor.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import TYPE_CHECKING

from vitdeploy.errors import SourceError
from vitdeploy.sources._architectures import (
    OWN_WORDS,
    Architecture,
    Shape,
    find_in_transformers,
    list_architectures,
    share_of_words,
)

if TYPE_CHECKING:
    from torch import Tensor

    from vitdeploy.sources._weights import Misfit

_SEARCH_SECONDS = 4.0
_MOST_NAMES = 3
_VARIANTS = 8
"""The number of candidates compared after the first that fits: some models differ in their preprocessing only."""
_MOST_OTHER_SHAPES = 2  # the classifier and the position embedding


_NO_HEAD = {
    "timm": "Give --num-classes 0 for an embedding.",
    "hf": 'Name its class, such as ViTModel, under "architectures" in config.json.',
    "torchvision": "Give weights with a classifier, or a factory that builds the model: python:FILE:FACTORY.",
    "python": "Return a model without one from the factory.",
}
"""Advice about a checkpoint without a classifier, by the source of the model."""
_OTHER_ARGUMENTS = (
    "If the model was built with other arguments, name them in a recipe: "
    'model: {{spec: "{given}", kwargs: {{NAME: VALUE}}}}.'
)


@dataclass(frozen=True)
class Nearest:
    """A sentence about the model that a checkpoint is of, and what to do about it.

    Attributes:
        reason: the sentence.
        fix: what to do.
        fits: the model has the keys of the checkpoint; otherwise it may as well be the given one, built differently.
    """

    reason: str
    fix: str
    fits: bool = True


@dataclass(frozen=True)
class _Fit:
    """An architecture with the keys and shapes of a checkpoint, which may be without a classifier."""

    architecture: Architecture
    has_head: bool
    same_positions: bool


def explain(misfit: Misfit, given: str) -> SourceError:
    """Return the error for a checkpoint that does not fit the MODEL `given`, with the model that it is of."""
    if misfit.lacks_head:
        return SourceError(f"{misfit.message}: it has no classifier", fix=_NO_HEAD[given.partition(":")[0]])
    nearest = None if misfit.other_head else find_nearest(misfit.state, given)
    if nearest is not None and nearest.fits:
        return SourceError(f"{misfit.message}: {nearest.reason}", fix=nearest.fix)
    message = misfit.message if nearest is None else f"{misfit.message}: {nearest.reason}"
    fix = misfit.fix if nearest is None else nearest.fix
    return SourceError(message, fix=f"{fix} {_OTHER_ARGUMENTS.format(given=given)}")


def find_nearest(state: Mapping[str, Tensor], given: str) -> Nearest | None:
    """Return the model that a state dict is of; None if that is `given`, or if no library has such a model.

    Args:
        state: the state dict, without the prefixes of wrappers.
        given: the MODEL that it does not fit, such as `timm:vit_tiny_patch16_224`.
    """
    shapes: dict[str, Shape] = {key: tuple(value.shape) for key, value in state.items()}
    model_type = None if given.startswith("hf:") else find_in_transformers(shapes)
    if model_type is not None:
        return Nearest(
            reason=f"by its keys it is a model of transformers, of type {model_type!r}",
            fix="Give hf:FOLDER with the config.json that it was saved with.",
        )
    fits, closest = _compare(shapes, _rank(shapes, given))
    if any(fit.architecture.spec == given for fit in fits):
        return None
    if fits:
        return _describe(fits)
    if closest is None or closest.spec == given:
        return None
    return Nearest(
        reason=f"from {closest.library}'s list by shapes the nearest is {closest.spec}, with other keys",
        fix="Give hf:FOLDER if transformers saved it, or a factory that builds its model: python:FILE:FACTORY.",
        fits=False,
    )


def _describe(fits: Sequence[_Fit]) -> Nearest:
    best = [fit for fit in fits if fit.same_positions] or fits
    specs = [fit.architecture.spec for fit in best[:_MOST_NAMES]]
    first = best[0]
    libraries = " and ".join(dict.fromkeys(f"{fit.architecture.library}'s" for fit in best[:_MOST_NAMES]))
    head = "" if first.has_head else " without its classifier"
    option = "" if first.has_head or first.architecture.library != "timm" else " --num-classes 0"
    choice = " They differ in preprocessing: choose the one that was trained." if len(specs) > 1 else ""
    return Nearest(
        reason=f"from {libraries} list by shapes it is {' or '.join(specs)}{head}",
        fix=f"Give {specs[0]}{option}.{choice}",
    )


def _rank(shapes: Mapping[str, Shape], given: str) -> list[Architecture]:
    """Return all architectures, first those whose code has the words and the numbers of the checkpoint."""
    numbers = _read_numbers(shapes)
    architectures = list(list_architectures())
    shares = [share_of_words(shapes, each.words) for each in architectures]
    if max(shares, default=0.0) < OWN_WORDS:
        shares = [0.0] * len(shares)

    def key(pair: tuple[Architecture, float]) -> tuple[float, int, int, float]:
        each, share = pair
        others = len(each.numbers - numbers) - len(each.numbers & numbers)
        return -share, others, each.options, -SequenceMatcher(None, given, each.spec).ratio()

    return [each for each, _ in sorted(zip(architectures, shares, strict=True), key=key)]


def _read_numbers(shapes: Mapping[str, Shape]) -> set[int]:
    """Return the sizes of all axes, and the number of layers in each list of layers."""
    counts: dict[tuple[str, ...], int] = {}
    for key in shapes:
        parts = key.split(".")
        for place, part in enumerate(parts):
            if part.isdecimal():
                layers = tuple(parts[:place])
                counts[layers] = max(counts.get(layers, 0), int(part) + 1)
    return {size for shape in shapes.values() for size in shape} | set(counts.values())


def _compare(shapes: Mapping[str, Shape], candidates: Sequence[Architecture]) -> tuple[list[_Fit], Architecture | None]:
    """Build candidates for some seconds. Return those that fit, and the closest by shapes under any names."""
    deadline = time.monotonic() + _SEARCH_SECONDS
    fits: list[_Fit] = []
    closest, least = None, _MOST_OTHER_SHAPES + 1
    left = len(candidates)
    for architecture in candidates:
        expected = architecture.list_shapes()
        fit = _match(shapes, architecture, expected) if expected else None
        if fit is not None:
            left = left if fits else _VARIANTS + 1
            fits.append(fit)
        difference = _count_other_shapes(shapes, expected)
        if difference < least:
            closest, least = architecture, difference
        left -= 1
        if left == 0 or time.monotonic() > deadline:
            break
    return fits, closest


def _match(shapes: Mapping[str, Shape], architecture: Architecture, expected: Mapping[str, Shape]) -> _Fit | None:
    """Compare keys and shapes. The classifier may have another size or be missing, positions may have another size."""
    head = architecture.find_head(list(expected))
    has_head = not head or not head.isdisjoint(shapes)
    if set(shapes) != (set(expected) if has_head else set(expected) - head):
        return None
    different = {key for key, shape in shapes.items() if shape != expected[key]} - head
    if not all("pos_emb" in key for key in different):
        return None
    return _Fit(architecture, has_head=has_head, same_positions=not different)


def _count_other_shapes(shapes: Mapping[str, Shape], expected: Mapping[str, Shape]) -> int:
    """Return how many weights of one have a shape that the other lacks, under any names."""
    have, want = (Counter(_list_weights(each.values())) for each in (shapes, expected))
    return max((have - want).total(), (want - have).total())


def _list_weights(shapes: Iterable[Shape]) -> Iterator[Shape]:
    """Yield the shapes of weights, those of q, k and v apart. Biases follow their weights."""
    for shape in shapes:
        if len(shape) == 2 and shape[0] == 3 * shape[1]:
            yield from [(shape[1], shape[1])] * 3
        elif len(shape) > 1:
            yield shape
