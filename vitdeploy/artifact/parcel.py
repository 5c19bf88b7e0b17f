"""Folders that travel between machines in memory, file by file with their sha256."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from vitdeploy.artifact.temporary import atomic_file
from vitdeploy.errors import RemoteError


@dataclass(frozen=True)
class Parcel:
    """The files of a folder: relative path -> contents, and relative path -> sha256."""

    files: Mapping[str, bytes]
    digests: Mapping[str, str]

    def merge(self, newer: Parcel) -> Parcel:
        """Return the files of both. Newer ones replace older ones of the same path."""
        return Parcel({**self.files, **newer.files}, {**self.digests, **newer.digests})

    def unpack(self, folder: Path) -> None:
        """Write the files into a new folder.

        Raises:
            RemoteError: a file is not the one that was packed, or its path leaves the folder.
            OSError: a file cannot be written.
        """
        for name, contents in self.files.items():
            place = folder / self._check(name)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(contents)

    def replace_in(self, folder: Path, *, last: str) -> None:
        """Replace files of a folder, each completely or not at all, `last` after all others.

        Raises:
            RemoteError: see `unpack`. Nothing is replaced.
            OSError: a file cannot be written.
        """
        places = {name: folder / self._check(name) for name in self.files}
        for name in sorted(places, key=lambda name: name == last):
            places[name].parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(places[name]) as temporary:
                temporary.write_bytes(self.files[name])

    def _check(self, name: str) -> PurePosixPath:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or _digest(self.files[name]) != self.digests.get(name):
            raise RemoteError(f"{name} arrived damaged", fix="Run the command again.")
        return path


def pack(folder: Path, known: Mapping[str, str] | None = None) -> Parcel:
    """Return the files of a folder, without those whose sha256 is known.

    Args:
        folder: it has no links.
        known: relative path -> sha256 of the files that the receiver has.
    """
    files, digests = {}, {}
    for parent, _, names in os.walk(folder):
        for name in sorted(names):
            place = Path(parent, name)
            relative, contents = place.relative_to(folder).as_posix(), place.read_bytes()
            digest = _digest(contents)
            if (known or {}).get(relative) != digest:
                files[relative], digests[relative] = contents, digest
    return Parcel(files, digests)


def _digest(contents: bytes) -> str:
    return hashlib.sha256(contents).hexdigest()
