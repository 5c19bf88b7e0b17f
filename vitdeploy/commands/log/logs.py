"""All destinations that one command logs to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from vitdeploy.artifact import EVIDENCE, MANIFEST, Artifact
from vitdeploy.artifact.layout import REPORT
from vitdeploy.commands.log.destination import Destination, parse_destination
from vitdeploy.commands.log.entry import Entry
from vitdeploy.commands.log.jsonl import JsonLines
from vitdeploy.commands.log.mlflow_server import MLflow
from vitdeploy.errors import VitdeployError
from vitdeploy.escaping import escape_strings
from vitdeploy.progress import Progress, Silent

LoggedFile = tuple[Path, str]
"""A file, and the folder in the log that it is copied to; empty for the top."""


class LogPlace(Protocol):
    """One destination. What goes wrong is a `VitdeployError`."""

    shown: str

    def check(self) -> None:
        """Check, before any work, that entries can be written."""

    def answers(self) -> bool:
        """Return True if another entry may be written after one was refused."""

    def list_digests(self, sweep: str) -> dict[str, str]:
        """Return the trials of a sweep that are there: id -> digest."""

    def write(self, entry: Entry, files: tuple[LoggedFile, ...]) -> str:
        """Write an entry, and return a few words about where it is."""


@dataclass(frozen=True)
class Logs:
    """The destinations of one command.

    Attributes:
        places: the destinations.
        progress: gets a line for each entry, and a warning for each that could not be written.
        whole: copy the files of the artifact too, and not only its evidence.
    """

    places: tuple[LogPlace, ...] = ()
    progress: Progress = field(default_factory=Silent)
    whole: bool = False

    def write(self, entry: Entry, files: tuple[LoggedFile, ...]) -> None:
        """Write an entry to all places. A place that fails costs a warning, never the result."""
        for place in self.places:
            self.write_to(place, entry, files)

    def write_to(self, place: LogPlace, entry: Entry, files: tuple[LoggedFile, ...]) -> bool:
        """Write an entry to one place, and return True if it is there."""
        try:
            where = place.write(escape_strings(entry), files)
        except VitdeployError as error:
            self.progress.warn(f"{entry.kind} {entry.name} is not logged, its results stay: {error}")
            return False
        if where and entry.kind != "trial":
            self.progress.relay(f"logged {entry.kind} {entry.name} to {place.shown}: {where}")
        return True

    def list_files(self, artifact: Artifact) -> tuple[LoggedFile, ...]:
        """Return the evidence of an artifact, and with `whole` its files."""
        names = [MANIFEST, *EVIDENCE, REPORT]
        candidates = [(artifact.beside(name), artifact.file(name)) for name in names]
        plain = [next((path for path in paths if is_plain(path)), None) for paths in candidates]
        evidence = tuple((path, "") for path in plain if path is not None)
        if not self.whole:
            return evidence
        listed = [Path(entry.path) for entry in artifact.manifest.files]
        return (*evidence, *((artifact.path / path, (Path("artifact") / path.parent).as_posix()) for path in listed))


NO_LOGS = Logs()


def is_plain(path: Path) -> bool:
    """Return True for a file that is no link: an artifact may come from anyone, and a link may lead anywhere."""
    return path.is_file() and not path.is_symlink()


def open_logs(destinations: Sequence[str], progress: Progress, *, whole: bool = False) -> Logs:
    """Open the destinations of `--log`, and check each of them.

    Args:
        destinations: `jsonl:FILE` or `mlflow:URI[#EXPERIMENT]`.
        progress: gets what is logged, and warnings.
        whole: see `Logs`.

    Raises:
        UsageError: one has another form, or cannot be written.
        RemoteError: a server does not answer, or refuses.
    """
    places = tuple(_open(destination) for destination in dict.fromkeys(map(parse_destination, destinations)))
    for place in places:
        place.check()
    return Logs(places, progress, whole)


def _open(destination: Destination) -> LogPlace:
    return JsonLines(Path(destination.place)) if destination.scheme == "jsonl" else MLflow(destination)
