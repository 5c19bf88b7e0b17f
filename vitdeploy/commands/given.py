"""Arguments that the command line and the Python API share: artifacts, folders for evidence, the model given again."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from vitdeploy import artifact as artifacts
from vitdeploy import sources
from vitdeploy.artifact import Artifact
from vitdeploy.errors import UsageError
from vitdeploy.frozen import replace
from vitdeploy.plugins import did_you_mean
from vitdeploy.recipe import ModelSpec

Given = Artifact | Path | str
"""An artifact, or its folder."""


def open_artifacts(
    given: Sequence[Given], evidence: Path | str | None, model: str | None, *, trust_code: bool
) -> list[Artifact]:
    """Return artifacts for the Python API. The folder for evidence and the model belong to the first.

    Raises:
        UsageError: none is given.
        VitdeployError: see `load_artifact` and `give_model`.
    """
    if not given:
        raise UsageError("no artifact is given", fix="Give at least one artifact or its folder.")
    first = open_artifact(given[0], evidence, model, trust_code=trust_code)
    return [first, *(load_artifact(other) for other in given[1:])]


def open_artifact(
    given: Given, evidence: Path | str | None = None, model: str | None = None, *, trust_code: bool = False
) -> Artifact:
    """Return one artifact: see `open_artifacts`."""
    loaded = load_artifact(given, None if evidence is None else Path(evidence))
    return give_model(loaded, model, trust_code=trust_code)


def require_range(**limits: tuple[float | None, ...]) -> None:
    """Check numbers by their names: the value, the least and, if there is one, the largest that it can be.

    Raises:
        UsageError: one is out of its range.
    """
    for name, (value, least, *largest) in limits.items():
        assert least is not None
        if value is None or (least <= value and all(top is None or value <= top for top in largest)):
            continue
        bounds = f"from {least:g} to {largest[0]:g}" if largest else f"{least:g} or more"
        raise UsageError(f"{name} is {value:g}, but must be {bounds}", fix="Give another number.")


def require_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Check that a value is one of the choices.

    Raises:
        UsageError: it is none of them.
    """
    if value not in choices:
        hint = did_you_mean(value, list(choices))
        raise UsageError(f"{name} {value!r} is not one of {', '.join(choices)}{hint}", fix="Choose one of them.")


def load_artifact(given: Given, evidence: Path | None = None) -> Artifact:
    """Return an artifact whose evidence is in the folder `evidence`; None leaves its evidence where it is.

    Raises:
        ArtifactError: the folder is damaged, or is not an artifact.
        UsageError: `evidence` is another artifact.
    """
    artifact = given if isinstance(given, Artifact) else artifacts.load(Path(given))
    if evidence is None or evidence.resolve() == artifact.path.resolve():
        return artifact
    if (evidence / artifacts.MANIFEST).exists():
        raise UsageError(
            f"--evidence {evidence} is an artifact, and {artifact.path} is another one", fix="Give a folder of its own."
        )
    if evidence.exists() and not evidence.is_dir():
        raise UsageError(f"--evidence {evidence} is a file", fix="Give a folder.")
    return dataclasses.replace(artifact, evidence_folder=evidence)


def give_model(artifact: Artifact, model: str | None, *, trust_code: bool) -> Artifact:
    """Return an artifact with the model that the user gives again, or trusts; else the artifact itself.

    Raises:
        SourceError: the manifest has arguments for the model that the user gives, and they name a file or an address.
    """
    if model is None and not trust_code:
        return artifact
    spec = artifact.manifest.recipe.model
    if model is not None:
        if not trust_code:
            sources.refuse_paths(spec)
        spec = replace(spec, spec=model)
    return give_own_model(artifact, spec)


def give_own_model(artifact: Artifact, spec: ModelSpec) -> Artifact:
    """Return an artifact with a model that the user's own file names, so that its code may run."""
    return dataclasses.replace(artifact, model=spec)
