"""The artifacts that are meant by the folders that a user names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vitdeploy import artifact as artifacts
from vitdeploy.artifact import MANIFEST, Artifact
from vitdeploy.commands.given import Given
from vitdeploy.commands.sweep.store import MARK, SweepFolder
from vitdeploy.commands.sweep.trial import ARTIFACT, RECORD, TRIALS
from vitdeploy.errors import UsageError


@dataclass(frozen=True)
class Folders:
    """Loaded artifacts, and remarks about trials that have none."""

    artifacts: tuple[Artifact, ...]
    notes: tuple[str, ...]


def load_folders(folders: Sequence[Given]) -> Folders:
    """Load artifacts, those of trials, and all of a sweep.

    Raises:
        ArtifactError: a folder is damaged, or is none of these.
        UsageError: an artifact is given twice, or a sweep has none.
    """
    loaded: list[Artifact] = []
    notes: list[str] = []
    for folder in folders:
        if isinstance(folder, Artifact):
            loaded.append(folder)
            continue
        path = Path(folder)
        if holds_several(path):
            trials, failures = _list_trials(path)
            loaded += map(artifacts.load, trials)
            notes += failures
        elif (path / RECORD).is_file() and not (path / MANIFEST).exists():
            loaded.append(artifacts.load(path / ARTIFACT))
        else:
            loaded.append(artifacts.load(path))
    _refuse_same(loaded)
    return Folders(tuple(loaded), tuple(notes))


def holds_several(path: Path) -> bool:
    """Return True for the folder of a sweep."""
    return (path / MARK).is_file() and not (path / MANIFEST).exists()


def _list_trials(path: Path) -> tuple[list[Path], list[str]]:
    """Return the artifacts of a sweep's trials, and a remark about each trial that failed."""
    sweep = SweepFolder(path)
    records = sweep.read_records()
    trials = [sweep.artifact(name) for name, record in records.items() if record.status in ("done", "bundle")]
    failures = [
        f"{path / TRIALS / name} failed at {record.step}: {record.reason}"
        for name, record in records.items()
        if record.status == "failed"
    ]
    if not trials:
        raise UsageError(f"no trial of the sweep {path} has an artifact", fix="Run vitdeploy sweep again.")
    return trials, failures


def _refuse_same(loaded: Sequence[Artifact]) -> None:
    """Refuse an artifact that is given twice, or copied with its evidence: it would be two points for one measurement.

    Raises:
        UsageError: there is one.
    """
    places: dict[Path, Artifact] = {}
    contents: dict[tuple[str, str], Artifact] = {}
    for artifact in loaded:
        if artifact.path.resolve() in places:
            raise UsageError(f"{artifact.path} is given twice", fix="Give it once.")
        places[artifact.path.resolve()] = artifact
        same = contents.setdefault((artifact.digest, artifact.evidence_digest()), artifact)
        if same is not artifact:
            raise UsageError(
                f"{artifact.path} is the same artifact as {same.path}, with the same evidence", fix="Give one of them."
            )
