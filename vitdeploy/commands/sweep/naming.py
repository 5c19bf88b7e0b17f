"""Names of trials: the digest of everything that decides one. A trial with the same name need not run again."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vitdeploy import environment
from vitdeploy.artifact import file_digest
from vitdeploy.commands.sweep.referred import find_modules, list_parts
from vitdeploy.data.shard_files import find_shards
from vitdeploy.errors import VitdeployError
from vitdeploy.plain_files import expand_home
from vitdeploy.recipe import Recipe

_MAX_HASHED_BYTES = 4 << 30  # of one file; a few seconds. Of larger ones name, size and time decide
_DIGITS = 12


class Naming:
    """Names trials of one kind of machine with the libraries that are here. Each file is hashed once."""

    def __init__(self, machine: str | None = None) -> None:
        """Use the digest of a kind of machine, by default that of this machine."""
        self.machine = machine or environment.host().machine
        self._here = [self.machine, environment.library_versions()]
        self._digests: dict[str, str] = {}

    def name(self, recipe: Recipe, short_name: str, host: Sequence[object] = ()) -> tuple[str, str]:
        """Return the name of a trial, and the digest of its setting without the machine and the libraries.

        Args:
            recipe: the recipe. Its limits and the seconds of its bench do not count: they decide no result.
            short_name: the name of the model for people.
            host: the kind of a host, and the versions there; empty for this machine.
        """
        raw = recipe.model_dump(mode="json")
        raw.pop("gate")
        raw["bench"].pop("seconds")
        setting = _digest_json([raw, self._digest_files(raw)])
        decided = _digest_json([setting, *self._here, *host])
        label = f"{short_name}-{recipe.target.kind}-{recipe.precision.kind or 'default'}"
        readable = re.sub(r"[^A-Za-z0-9._]+", "-", label).strip("-.")[:80]
        return f"{readable}-{decided[:_DIGITS]}", setting

    def inputs_digest(self, *values: object) -> str:
        """Return the digest of values and of the files that they name."""
        return _digest_json([list(values), self._digest_files(list(values))])

    def _digest_files(self, value: object) -> dict[str, str]:
        """Return the digests of the files, folders and modules that the texts in a value name."""
        paths = {path: self._digest(path) for path in sorted(set(_list_paths(value)))}
        return paths | {module: self._digest(str(file)) for module, file in sorted(find_modules(value))}

    def _digest(self, path: str) -> str:
        if path not in self._digests:
            self._digests[path] = digest_path(Path(path))
        return self._digests[path]


def digest_path(path: Path) -> str:
    """Return a digest of a file's contents, or of the names, sizes and times of all files in a folder.

    The files that it refers to count too, and those whose names begin with its own: weights beside a graph.
    """
    if path.is_dir():
        return hashlib.sha256("\n".join(_list_states(path)).encode(errors="surrogateescape")).hexdigest()
    beside = {p for p in path.parent.glob(f"{_escape(path.name)}*") if p.is_file()}
    files = sorted({*beside, *list_parts(path)})
    return hashlib.sha256("\n".join(_digest_file(file) for file in files).encode()).hexdigest()


def _escape(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)


def _digest_file(path: Path) -> str:
    facts = path.stat()
    large = facts.st_size > _MAX_HASHED_BYTES
    try:
        contents = facts.st_mtime_ns if large else file_digest(path)
    except OSError:  # it may not be read; the trial that needs it says so, and has another name once it may
        contents = "unreadable"
    return f"{path.name} {facts.st_size} {contents}"


def _list_states(folder: Path) -> Iterator[str]:
    entered = set()  # a link may lead to a folder around it
    for parent, folders, names in os.walk(folder, followlinks=True):
        here = os.path.realpath(parent)
        if here in entered:
            folders.clear()
            continue
        entered.add(here)
        folders.sort()
        for name in sorted(names):
            path = Path(parent) / name
            try:
                facts = path.stat()
            except OSError:
                continue  # a link to nothing; who reads the data says so
            yield f"{path.relative_to(folder).as_posix()} {facts.st_size} {facts.st_mtime_ns}"


def _list_paths(value: Any) -> Iterator[str]:
    """Yield the files and folders that the texts in a value name: whole, or as a part between colons."""
    if isinstance(value, str):
        for part in {value, *value.split(":")}:
            path = expand_home(part)
            if path.is_absolute() and os.path.exists(path):  # noqa: PTH110  Path.exists raises for a long text
                yield str(path)
            elif path.is_absolute():
                yield from _list_shards(part)
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _list_paths(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _list_paths(inner)


def _list_shards(pattern: str) -> list[str]:
    """Return the shards that a pattern names; none if it is no pattern. Opening the data says what is wrong with it."""
    try:
        return [str(shard) for shard in find_shards(pattern) or ()]
    except (VitdeployError, OSError, ValueError):
        return []


def _digest_json(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
