"""The answers of the FP32 reference to the data, computed once for all trials of a model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vitdeploy import environment
from vitdeploy.artifact import Artifact
from vitdeploy.commands.evaluate.evaluate import save_reference
from vitdeploy.commands.sweep.naming import Naming
from vitdeploy.progress import Progress

_DIGITS = 16


@dataclass(frozen=True)
class References:
    """A folder of saved answers, each file named by all that decides them."""

    folder: Path
    naming: Naming
    progress: Progress

    def find(self, artifact: Artifact) -> Path:
        """Return the file with the reference's answers for an artifact. The first trial of a model makes it.

        Raises:
            VitdeployError: see `save_reference`.
        """
        manifest = artifact.manifest
        recipe = manifest.recipe
        key = self.naming.inputs_digest(
            manifest.model.digest,
            recipe.model.model_dump(mode="json"),
            manifest.preprocess.model_dump(mode="json"),
            recipe.task.model_dump(mode="json"),
            recipe.data.evaluation,
            environment.library_versions(),
        )
        file = self.folder / f"{key[:_DIGITS]}.npz"
        if not file.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            save_reference(artifact, None, file, self.progress)
        return file
