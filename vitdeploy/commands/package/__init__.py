"""`vitdeploy package`: what a server or a pipeline loads, made of an artifact. One file for each choice of `--for`."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from vitdeploy import plugins
from vitdeploy.artifact import Artifact, atomic_folder, file_digest, refuse_inside
from vitdeploy.errors import ArtifactError, UsageError
from vitdeploy.evidence import FileEntry
from vitdeploy.frozen import Frozen


class Packaged(BaseModel):
    """The folder that was written.

    Attributes:
        package: the folder.
        serves: the choice of `--for`.
        artifact: the folder of the artifact.
        files: all files in the package.
        notes: what to know before using it.
        next: the command to run next; empty if there is none.
    """

    model_config = ConfigDict(frozen=True)
    package: str
    serves: str
    artifact: str
    files: tuple[FileEntry, ...]
    notes: tuple[str, ...] = ()
    next: str = ""


class Packager(Frozen, ABC):
    """A writer of packages for one server or pipeline. Its fields are its options."""

    @abstractmethod
    def write(self, artifact: Artifact, folder: Path) -> tuple[str, ...]:
        """Write all files of the package into an empty folder, and return notes for the user.

        Raises:
            UsageError: what loads the package cannot run this artifact as it was exported.
        """

    def suggest(self, package: Path) -> str:  # noqa: ARG002
        """Return a command that uses the package; empty if there is none."""
        return ""


def package(artifact: Artifact, serves: str, out: Path, options: Mapping[str, object] | None = None) -> Packaged:
    """Write a package of an artifact into a new folder, which appears complete or not at all.

    Args:
        artifact: the loaded artifact.
        serves: the choice of `--for`.
        out: the folder, which must not exist.
        options: the fields of the packager that are not left at their defaults.

    Raises:
        UsageError: `out` exists or is inside the artifact, an option is for other packages, or what loads the package
            cannot run this artifact.
        ArtifactError: the folder cannot be written, or the artifact was changed meanwhile.
    """
    packager = _make_packager(serves, options or {})
    if out.exists() or out.is_symlink():
        raise UsageError(f"{out} exists", fix="Choose another folder with -o, or remove this one.")
    refuse_inside(out, artifact.path)
    with atomic_folder(out) as folder:
        notes = packager.write(artifact, folder)
        files = tuple(_describe(folder, path) for path in sorted(folder.rglob("*")) if path.is_file())
    return Packaged(
        package=str(out),
        serves=serves,
        artifact=str(artifact.path),
        files=files,
        notes=notes,
        next=packager.suggest(out),
    )


def _make_packager(serves: str, options: Mapping[str, object]) -> Packager:
    kind = plugins.find(sys.modules[__name__], serves, Packager)  # type: ignore[type-abstract]
    for option in options.keys() - kind.model_fields.keys():
        raise UsageError(f"--{option} does nothing for {serves}", fix=f"Leave out --{option}.")
    return kind.model_validate(options)


def copy_file(artifact: Artifact, name: str, target: Path) -> None:
    """Copy a file of an artifact, and check that the copy is what its manifest lists.

    Raises:
        ArtifactError: the file has gone or was changed since the artifact was loaded.
    """
    import shutil

    expected = next(entry.sha256 for entry in artifact.manifest.files if entry.path == name)
    try:
        shutil.copyfile(artifact.file(name), target)
    except FileNotFoundError:
        raise ArtifactError(f"{artifact.path / name} has gone", fix="Run the command again.") from None
    if file_digest(target) != expected:
        raise ArtifactError(f"{artifact.path / name} was changed", fix="Do not use it: somebody has changed it.")


def _describe(folder: Path, path: Path) -> FileEntry:
    return FileEntry(path=path.relative_to(folder).as_posix(), bytes=path.stat().st_size, sha256=file_digest(path))
