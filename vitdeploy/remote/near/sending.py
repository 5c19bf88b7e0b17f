"""The command of a job on a host as words, and the files of artifacts and data that it gets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from vitdeploy.artifact import MANIFEST, Artifact
from vitdeploy.data.opening import comes_with_package
from vitdeploy.data.shard_files import find_shards
from vitdeploy.errors import DataError
from vitdeploy.plain_files import expand_home
from vitdeploy.remote.messages import JobFile
from vitdeploy.remote.near.client import job_file

Files = list[tuple[Path, JobFile]]
"""Files here, each with its name on the host."""
Flag = str | float | bool | Sequence[str] | None
"""The value of an option; a sequence repeats the option for each value."""


def to_words(flags: Mapping[str, Flag] | None) -> list[str]:
    """Write options as words, without those that are None or False.

    `--option=value` is one word, so a value that begins with a dash is not read as an option.
    """
    words = []
    for name, value in (flags or {}).items():
        option = f"--{name.replace('_', '-')}"
        if isinstance(value, bool) or value is None:
            words += [option] if value else []
        else:
            values = value if isinstance(value, (list, tuple)) else [value]
            words += [f"{option}={item}" for item in values]
    return words


def opponent_folder(number: int) -> str:
    """Return the name on the host of an artifact that is timed against."""
    return f"opponent{number}"


def files_of(artifact: Artifact, folder: str) -> Files:
    """Return the files of an artifact, for a folder of this name on the host."""
    names = [MANIFEST, *(entry.path for entry in artifact.manifest.files)]
    return [job_file(artifact.file(name), f"{folder}/{name}") for name in names]


def data_files(spec: str) -> tuple[str, Files]:
    """Return the host's name for DATA, and the files to send. Data that ships with vitdeploy needs no files."""
    path = expand_home(spec)
    if path.is_file():
        name = f"data{path.suffix}"
        return name, [job_file(path, name)]
    if path.is_dir():
        return "data", [job_file(file, f"data/{file.relative_to(path).as_posix()}") for file in _visible_files(path)]
    if comes_with_package(spec):
        return spec, []
    if shards := find_shards(spec):
        # Numbered, as a pattern may name files of one name in several folders, and in an order of its own.
        names = [f"data/{number:05}-{shard.name}" for number, shard in enumerate(shards)]
        return "data", [job_file(shard, name) for shard, name in zip(shards, names, strict=True)]
    raise DataError(f"{spec} cannot be sent: it is neither a file nor a folder", fix="Give a folder or an .npz.")


def _visible_files(folder: Path) -> Iterator[Path]:
    """List the files that a dataset in `folder` may read, also where a class is a symbolic link to another folder."""
    for entry in sorted(folder.iterdir()):
        if not entry.name.startswith("."):
            below = sorted(entry.rglob("*")) if entry.is_dir() else [entry]
            yield from (file for file in below if file.is_file() and not file.name.startswith("."))
