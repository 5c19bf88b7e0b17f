"""The common parts of model repositories: the name of a model, and the files of its engine."""

from __future__ import annotations

import re
from pathlib import Path

from vitdeploy.artifact import Artifact
from vitdeploy.artifact.layout import is_of_variant
from vitdeploy.commands.package import copy_file
from vitdeploy.errors import UsageError
from vitdeploy.runtime.artifact_session import read_compiled

VERSION = "1"
"""The folder of the only version of a model."""
LABELS = "labels.txt"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def require_engine(artifact: Artifact, server: str) -> str:
    """Return the name of the compiled file.

    Raises:
        UsageError: it is a bundle.
        ArtifactError: the manifest names a file that its target does not write.
    """
    if artifact.manifest.runs is None:
        raise UsageError(
            f"{artifact.path} is a bundle, and {server} serves what was compiled and compared with FP32",
            fix=f"On the device run: vitdeploy compile {artifact.path}",
        )
    return read_compiled(artifact).runs


def name_model(artifact: Artifact, name: str) -> str:
    """Return the name of the model on the server: the given one, or that of the artifact's folder.

    Raises:
        UsageError: it cannot be the name of a folder and a part of a URL.
    """
    chosen = name or artifact.path.resolve().name
    if not _NAME.fullmatch(chosen):
        raise UsageError(
            f"{chosen!r} cannot be the name of a model on a server",
            fix="Choose one of up to 100 letters, digits, '.', '_' and '-' with --name.",
        )
    return chosen


def list_engine_files(artifact: Artifact, runs: str) -> list[str]:
    """Return the compiled file and the files with its weights beside it."""
    stem = Path(runs).with_suffix("").as_posix()
    names = [entry.path for entry in artifact.manifest.files]
    beside = (f"{runs}.", f"{stem}.bin")  # weights of an ONNX file, and of OpenVINO's IR
    return [runs, *(name for name in names if name.startswith(beside) and not is_of_variant(name))]


def copy_engine(artifact: Artifact, runs: str, folder: Path, name: str) -> None:
    """Copy the compiled file as `name`, and its weights under the names by which it refers to them."""
    for file in list_engine_files(artifact, runs):
        copy_file(artifact, file, folder / (name if file == runs else file))


def list_labels(artifact: Artifact) -> list[str]:
    """Return the names of the classes, each on one line."""
    return [" ".join(label.split()) for label in artifact.manifest.labels or ()]


def count_threads(artifact: Artifact) -> int | None:
    """Return the recipe's number of threads; None: those of the machine that serves."""
    threads = artifact.manifest.recipe.target.options.get("threads")
    return threads if isinstance(threads, int) else None
