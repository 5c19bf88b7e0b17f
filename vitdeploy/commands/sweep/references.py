"""The answers of the FP32 reference to the data, computed once for all trials of a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vitdeploy import environment
from vitdeploy.artifact import Artifact, atomic_file
from vitdeploy.commands.evaluate import recorded_reference
from vitdeploy.commands.evaluate.evaluate import save_reference
from vitdeploy.commands.sweep.naming import Naming
from vitdeploy.progress import Progress

_DIGITS = 16

Fetch = Callable[[str], bytes | None]
"""Returns the contents of a file of answers that is elsewhere, by its name; None if there is none."""


def no_reference(name: str) -> bytes | None:  # noqa: ARG001  the signature of `Fetch`
    """Return None: there are no answers elsewhere."""
    return None


@dataclass(frozen=True)
class References:
    """A folder of saved answers, each file named by all that decides them."""

    folder: Path
    naming: Naming
    progress: Progress
    fetch: Fetch = no_reference

    def find(self, artifact: Artifact) -> Path:
        """Return the file with the reference's answers for an artifact. The first trial of a model makes it.

        Raises:
            VitdeployError: see `save_reference`.
        """
        file = self.find_known(artifact)
        if not file.exists():
            save_reference(artifact, None, file, self.progress)
        return file

    def find_known(self, artifact: Artifact) -> Path:
        """Return the place of the reference's answers for an artifact. They are there, if anybody has them already."""
        manifest = artifact.manifest
        recipe = manifest.recipe
        key = self.naming.inputs_digest(
            manifest.model.digest,
            manifest.model.code,
            recipe.model.model_dump(mode="json"),
            manifest.preprocess.model_dump(mode="json"),
            recipe.task.model_dump(mode="json"),
            recipe.data.evaluation,
            environment.library_versions(),
            recorded_reference.SCHEMA,
        )
        file = self.folder / f"{key[:_DIGITS]}.npz"
        if not file.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            contents = self.fetch(file.name)
            if contents is not None:
                store_reference(file, contents)
        return file


def store_reference(file: Path, contents: bytes) -> None:
    """Write a file of answers, completely or not at all."""
    with atomic_file(file) as temporary:
        temporary.write_bytes(contents)
