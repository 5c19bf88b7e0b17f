"""Engines of a compile that was killed, so that the next one continues with the variants that are not built yet.

    builds/KEY/              the files of one engine, and record.json
    builds/KEY.attempts      the number of builds that began and did not end: this process, or ones that were killed
    builds/KEY.located.json  the place at which this engine is off, which took two further builds to find

The key of an engine is a digest of everything that decides it. A store that cannot be written only costs time.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from platformdirs import user_cache_path
from pydantic import BaseModel, ConfigDict, ValidationError

from vitdeploy import environment
from vitdeploy.artifact import Artifact, atomic_file, atomic_folder, file_digest
from vitdeploy.artifact.layout import WEIGHTS, variant_graph, variant_sites
from vitdeploy.errors import ArtifactError
from vitdeploy.evidence import Audit, Located
from vitdeploy.targets import Compiled, Target
from vitdeploy.version import __version__

_RECORD = "record.json"
_LOCATED = ".located.json"
_KEPT_DAYS = 7
_MOST_ATTEMPTS = 2
"""A build that was killed once may have met a power cut. Killed twice, it probably takes too much memory."""


class _Record(BaseModel):
    """A finished build: see `Compiled`; `files` are their sha256 by name."""

    model_config = ConfigDict(frozen=True)
    runs: str
    backend: str
    audit: Audit | None
    files: dict[str, str]


class BuildStore:
    """A folder of engines that were built by compiles that have not ended."""

    def __init__(self, folder: Path | None = None) -> None:
        """Use `folder`, by default below the user's cache folder. What is older than a week is removed."""
        self._folder = folder or user_cache_path("vitdeploy") / "builds"
        self._used: set[str] = set()
        with suppress(OSError):
            for path in self._folder.iterdir():
                if path.stat().st_mtime < time.time() - _KEPT_DAYS * 86400:
                    _remove(path)

    def fetch(self, key: str, folder: Path, names: tuple[tuple[str, ...], tuple[str, ...]]) -> Compiled | None:
        """Put a stored engine into `folder`; return None, and put nothing there, if there is none or it is damaged.

        Args:
            key: of the engine.
            folder: for its files.
            names: of the inputs and the outputs.
        """
        self._used.add(key)
        place = self._folder / key
        try:
            record = _Record.model_validate_json((place / _RECORD).read_bytes())
            if any(
                Path(name).name != name or file_digest(place / name) != digest for name, digest in record.files.items()
            ):
                return None
            _link_all(record.files, place, folder)
        except (OSError, ValidationError):
            return None
        return Compiled(folder, record.runs, record.backend, record.audit, *names)

    def keep(self, key: str, compiled: Compiled) -> None:
        """Store an engine, which is alone in its folder."""
        names = [path.name for path in compiled.folder.iterdir()]
        with suppress(OSError, ArtifactError):
            files = {name: file_digest(compiled.folder / name) for name in sorted(names)}
            record = _Record(runs=compiled.runs, backend=compiled.backend, audit=compiled.audit, files=files)
            with atomic_folder(self._folder / key, durable=False) as place:
                for name in files:
                    _link(compiled.folder / name, place / name)
                (place / _RECORD).write_text(record.model_dump_json(), encoding="utf-8")

    def fetch_located(self, key: str) -> Located | None:
        """Return the place at which an engine is off; None if it was not located."""
        self._used.add(key)
        with suppress(OSError, ValidationError):
            return Located.model_validate_json((self._folder / f"{key}{_LOCATED}").read_bytes())
        return None

    def keep_located(self, key: str, located: Located) -> None:
        """Store the place at which an engine is off."""
        with suppress(OSError), atomic_file(self._folder / f"{key}{_LOCATED}") as path:
            path.write_text(located.model_dump_json(), encoding="utf-8")

    @contextmanager
    def attempt(self, key: str) -> Iterator[bool]:
        """Record that a build begins, and that it ended, however it did. Yield False if it was killed too often."""
        self._used.add(key)
        path = self._folder / f"{key}.attempts"
        begun = 0
        with suppress(OSError, ValueError):
            begun = int(path.read_text())
        if begun >= _MOST_ATTEMPTS:
            path.unlink(missing_ok=True)  # the next compile may try again, with more memory
            yield False
            return
        with suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            path.write_text(str(begun + 1))
        try:
            yield True
        finally:  # unless the process is killed
            self._end_attempt(path)

    def _end_attempt(self, path: Path) -> None:
        with suppress(OSError):
            path.unlink(missing_ok=True)

    def discard_used(self) -> None:
        """Remove the engines of the compile that ends."""
        for key in self._used:
            _remove(self._folder / key)
            _remove(self._folder / f"{key}.attempts")
            _remove(self._folder / f"{key}{_LOCATED}")


def build_key(bundle: Artifact, variant: str, target: Target) -> str:
    """Return the digest of everything that decides the engine of a variant on this machine."""
    names = (variant_graph(variant), variant_sites(variant), WEIGHTS)
    recipe = bundle.manifest.recipe
    facts = {
        "files": _list_digests(bundle, names),
        "target": [target.name, target.model_dump(mode="json")],
        "shapes": [str(recipe.target.batch), str(recipe.model.size_range)],
        "engine": target.installed_engine(),
        "machine": environment.host().machine,
        "vitdeploy": __version__,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _list_digests(bundle: Artifact, names: Iterable[str]) -> list[list[str]]:
    digests = {entry.path: entry.sha256 for entry in bundle.manifest.files}
    return [[name, digests.get(name, "")] for name in names]


def _link_all(names: Iterable[str], source: Path, target: Path) -> None:
    """Link files into another folder. If that fails, none stays: what writes into a link changes the stored file too.

    Raises:
        OSError: a file is not there, or the disk of `target` is full.
    """
    linked: list[Path] = []
    try:
        for name in names:
            linked.append(target / name)
            _link(source / name, target / name)
    except OSError:
        for path in linked:
            path.unlink(missing_ok=True)
        raise


def _link(source: Path, target: Path) -> None:
    """Link a file to another name; copy it if the names are on different disks."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()
