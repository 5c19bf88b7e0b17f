"""The class of a model that a folder or a category stands for, by its name."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

from vitdeploy.errors import DataError

_MADE_UP = re.compile(r"(?:label|class|category|id)?[\s_-]*0*([0-9]{1,9})", re.IGNORECASE)
_IMAGENET = "imagenet1k.tsv"
_SAME_ORDER = 0.95  # libraries abridge a few of ImageNet's names, each in its own way
_KNOWN = 0.9
_SHOWN = 3


def are_made_up(names: Sequence[str] | None) -> bool:
    """Return True if there are no names, or only numbers in other words: `LABEL_0`, `class 1`, `2`."""
    if not names:
        return True
    numbers = [_MADE_UP.fullmatch(name.strip()) for name in names]
    return all(match is not None and int(match[1]) == index for index, match in enumerate(numbers))


def imagenet_labels() -> tuple[str, ...]:
    """Return the 1,000 names of ImageNet-1k in the order of their indices, each with its synonyms."""
    return tuple(", ".join(synset.names) for synset in _imagenet())


class ClassNames:
    """The names of a model's classes, to find the class of a folder or category by its name.

    Names are compared as they are, then without regard to case, spaces, underscores and hyphens; each time the whole
    label and its first name go before its other names (`tench, Tinca tinca` has two). Classes of ImageNet also have
    their WordNet ids (`n01440764`) and synonyms.

    Args:
        names: the names in the order of the model's outputs. Made-up ones (see `are_made_up`) have no meaning.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        parts = [_split(name) for name in names]
        synsets = _find_synsets(parts)
        added = [(synset.wnid, *synset.names) if synset else () for synset in synsets]
        self._wnids = [synset.wnid if synset else "" for synset in synsets]
        self._levels = (
            _index(zip(names, (own[0] for own in parts), strict=True)),
            _index(parts),
            _index((_simplify(name), _simplify(own[0])) for name, own in zip(names, parts, strict=True)),
            _index(map(_simplify, own) for own in parts),
            _index(added),
            _index(map(_simplify, more) for more in added),
        )

    def find(self, name: str) -> int | None:
        """Return the index of the class with this name; None if there is none.

        Raises:
            DataError: several classes have this name.
        """
        simple = _simplify(name)
        for level, key in zip(self._levels, (name, name, simple, simple, name, simple), strict=True):
            matches = sorted(level.get(key, ()))
            if len(matches) == 1:
                return matches[0]
            if matches:
                choices = " or ".join(f"{i} ({self._wnids[i] or self.names[i]})" for i in matches[:_SHOWN])
                raise DataError(
                    f"{name!r} is the name of more than one class of the model: {choices}",
                    fix="Rename it to the WordNet id or the whole label; or name all of them by class index.",
                )
        return None

    def nearest(self, name: str) -> str:
        """Return the label that is most like `name`."""
        simple = {_simplify(part): label for label in reversed(self.names) for part in _split(label)}
        best = difflib.get_close_matches(_simplify(name), simple, n=1, cutoff=0.0)
        return simple[best[0]] if best else self.names[0]


def match(what: str, own: Sequence[str], names: Sequence[str], fix: str) -> dict[str, int]:
    """Return the class of each folder or category, by the model's names.

    Args:
        what: what has these names, for messages: `data/: folder`.
        own: the names of folders or categories.
        names: the names of the model's classes.
        fix: what to do about a name that the model does not have.

    Raises:
        DataError: one is not a name of the model, or is that of several classes, or two are of one class.
    """
    known = ClassNames(names)
    classes: dict[str, int] = {}
    for name in own:
        try:
            index = known.find(name)
        except DataError as error:
            raise DataError(f"{what} {error.message}", fix=error.fix) from None
        if index is None:
            raise DataError(
                f"{what} {name!r} is no label of the model; the nearest is {known.nearest(name)!r}",
                fix=fix,
            )
        other = next((name for name, taken in classes.items() if taken == index), None)
        if other is not None:
            raise DataError(
                f"{what} {other!r} and {name!r} are both the model's {known.names[index]!r}", fix="Put them together."
            )
        classes[name] = index
    return classes


@dataclass(frozen=True)
class _Synset:
    """A class of ImageNet: its WordNet id, and its names."""

    wnid: str
    names: tuple[str, ...]


@cache
def _imagenet() -> tuple[_Synset, ...]:
    text = (resources.files("vitdeploy") / "assets" / _IMAGENET).read_text(encoding="utf-8")
    rows = (line.split("\t") for line in text.splitlines())
    return tuple(_Synset(wnid, tuple(names)) for wnid, *names in rows)


def _find_synsets(parts: Sequence[Sequence[str]]) -> Sequence[_Synset | None]:
    """Return the class of ImageNet that each label is; None for all, if they are not ImageNet's.

    All 1,000 are known by their order, in which two are called "crane". A selection is known by unique names.
    """
    keys = [{_simplify(part) for part in own} for own in parts]
    table = _imagenet()
    if len(parts) == len(table):
        same = [bool(own & _keys(synset)) for own, synset in zip(keys, table, strict=True)]
        if sum(same) >= _SAME_ORDER * len(table):
            return table
    by_key = _synsets_by_key()
    candidates = [{synset for key in own for synset in by_key.get(key, ())} for own in keys]
    if sum(len(each) == 1 for each in candidates) < _KNOWN * len(parts):
        return [None] * len(parts)
    return [next(iter(each)) if len(each) == 1 else None for each in candidates]


@cache
def _synsets_by_key() -> Mapping[str, set[_Synset]]:
    by_key: dict[str, set[_Synset]] = {}
    for synset in _imagenet():
        for key in _keys(synset):
            by_key.setdefault(key, set()).add(synset)
    return by_key


def _keys(synset: _Synset) -> set[str]:
    return {_simplify(name) for name in (synset.wnid, *synset.names)}


def _split(label: str) -> tuple[str, ...]:
    """Return the synonyms in a label, which commas separate; the label itself if there are none."""
    parts = tuple(part for part in (part.strip() for part in label.split(",")) if part)
    return parts or (label,)


def _simplify(name: str) -> str:
    """Return a name without regard to case, spaces, underscores and hyphens. macOS decomposes accents in file names."""
    text = unicodedata.normalize("NFKC", name).casefold()
    return re.sub(r"[\s_\-]+", "", text) or text


def _index(names: Iterable[Iterable[str]]) -> dict[str, set[int]]:
    """Return the classes that have each name."""
    index: dict[str, set[int]] = {}
    for number, own in _enumerate_each(names):
        index.setdefault(own, set()).add(number)
    return index


def _enumerate_each(names: Iterable[Iterable[str]]) -> Iterator[tuple[int, str]]:
    for number, own in enumerate(names):
        for name in own:
            yield number, name
