"""Shards that a user names: one file, a folder of them, or a pattern."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import product
from math import prod
from pathlib import Path

from vitdeploy.data._folder import SPLITS, SUFFIXES
from vitdeploy.data.image_files import is_pattern, match_glob, natural_key
from vitdeploy.errors import DataError
from vitdeploy.plain_files import expand_home

TAR, PARQUET = ".tar", ".parquet"
SHARD_FORMS = "shards: FILE.tar or FILE.parquet, a folder of them, or a pattern such as val-{000..049}.tar"

_COMPRESSED = re.compile(r"\.(tgz|tbz2?|txz|tzst|tar\.[a-z0-9]+)$", re.IGNORECASE)
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"([0-9]{1,12})\.\.([0-9]{1,12})")
_MAX_SHARDS = 100_000
_FIRST_WORD = re.compile(r"[A-Za-z]+")
_UNPACK = "Unpack it, so that each image can be read by its place: gunzip -k FILE.tar.gz, or unzstd FILE.tar.zst."


def find_shards(spec: str) -> list[Path] | None:
    """Return the shards that DATA names, in natural order; those of a pattern with braces in its order.

    A folder counts as shards if they are directly in it, and it has neither images nor sub-folders.

    Returns:
        The files, all `.tar` or all `.parquet`; None if DATA names something else.

    Raises:
        DataError: a shard is missing or compressed, a pattern matches none, or shards of different kinds are mixed.
    """
    path = expand_home(spec)
    if path.is_dir():
        shards = _list_folder(path)
    elif path.is_file():
        _refuse_compressed(path)
        shards = [path] if _is_shard(path) else []
    elif (_is_shard(path) or _is_compressed(path)) and (_BRACES.search(spec) is not None or is_pattern(path)):
        shards = _match(spec)
    else:
        return None
    if len({shard.suffix.lower() for shard in shards}) > 1:
        raise DataError(f"{spec} has both .tar and .parquet files", fix="Give shards of one kind.")
    return shards or None


def _is_shard(path: Path) -> bool:
    return path.suffix.lower() in (TAR, PARQUET)


def _is_compressed(path: Path) -> bool:
    return _COMPRESSED.search(path.name) is not None


def _refuse_compressed(path: Path) -> None:
    if _is_compressed(path):
        raise DataError(f"{path} is a compressed tar", fix=_UNPACK)


def _list_folder(folder: Path) -> list[Path]:
    """Return the shards in a folder; an empty list if it holds images or sub-folders.

    Raises:
        DataError: they belong to several parts of a data set, or all are compressed.
    """
    visible = [path for path in folder.iterdir() if not path.name.startswith(".")]
    if any(path.is_dir() or path.suffix.lower() in SUFFIXES for path in visible):
        return []
    shards = sorted((path for path in visible if _is_shard(path)), key=natural_key)
    if not shards and visible and all(map(_is_compressed, visible)):
        _refuse_compressed(min(visible))
    _refuse_splits(folder, shards)
    return shards


def _refuse_splits(folder: Path, shards: Sequence[Path]) -> None:
    """Refuse shards of several parts of a data set, such as train-00000.parquet and test-00000.parquet."""
    words = [match.group() for shard in shards if (match := _FIRST_WORD.match(shard.name))]
    parts = sorted(set(words))
    if len(parts) > 1 and {part.casefold() for part in parts} <= SPLITS:
        raise DataError(
            f"{folder} has shards of {', '.join(parts)}, which are parts of a data set",
            fix=f"Give one of them as a pattern: '{folder / parts[-1]}-*{shards[0].suffix}'.",
        )


def _match(pattern: str) -> list[Path]:
    """Return the files that a pattern with braces or wildcards names. Without wildcards, all of them must exist."""
    paths = [expand_home(name) for name in _expand_braces(pattern)]
    for path in paths:
        _refuse_compressed(path)
    shards: list[Path] = []
    missing: list[Path] = []
    for path in paths:
        if path.is_file():
            shards.append(path)
        elif is_pattern(path):
            shards += sorted((file for file in match_glob(path) if file.is_file()), key=natural_key)
        else:
            missing.append(path)
    if not shards:
        raise DataError(f"no file matches {pattern}", fix="Check the folder and the numbers in the braces.")
    if missing:
        raise DataError(
            f"there is no {missing[0]}, one of {len(paths):,} files that {pattern} names",
            fix="Copy it there, or correct the numbers in the braces.",
        )
    return list(dict.fromkeys(shards))


def _expand_braces(pattern: str) -> list[str]:
    """Return the names that a pattern stands for: `{000..049}` counts with its zeros, `{a,b}` lists.

    Raises:
        DataError: braces hold something else, or they stand for too many names.
    """
    parts = _BRACES.split(pattern)
    choices = [_list_choices(pattern, part) if number % 2 else [part] for number, part in enumerate(parts)]
    if prod(map(len, choices)) > _MAX_SHARDS:
        raise DataError(f"{pattern} stands for more than {_MAX_SHARDS:,} files", fix="Give fewer, or a folder.")
    return ["".join(chosen) for chosen in product(*choices)]


def _list_choices(pattern: str, inside: str) -> Sequence[str]:
    numbers = _RANGE.fullmatch(inside)
    if numbers is not None:
        first, last = numbers.groups()
        if int(last) < int(first) or int(last) - int(first) >= _MAX_SHARDS:
            raise DataError(f"{{{inside}}} in {pattern} is no range of file numbers", fix="Write {000..049}.")
        width = max(len(first), len(last)) if "0" in (first[0], last[0]) and len(first) > 1 else 0
        return [f"{number:0{width}}" for number in range(int(first), int(last) + 1)]
    if "," in inside:
        return inside.split(",")
    raise DataError(f"{{{inside}}} in {pattern} is no pattern", fix="Write {000..049} for numbers, or {a,b} for names.")
