"""The log of a sweep: each trial once, as soon as it has ended, however often the sweep is resumed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from vitdeploy.artifact import EVIDENCE, MANIFEST
from vitdeploy.commands.log.describe import describe_sweep, describe_trial
from vitdeploy.commands.log.entry import Entry, State, now
from vitdeploy.commands.log.logs import LoggedFile, LogPlace, Logs, is_plain
from vitdeploy.environment import library_versions
from vitdeploy.errors import VitdeployError
from vitdeploy.evidence import SweepRow
from vitdeploy.recipe import Recipe

_TABLES = ("results.csv", "results.jsonl", "sweep.html")


@dataclass
class _Trials:
    """The trials of a destination.

    Attributes:
        digests: id of a trial -> digest of the entry that the destination has.
        rows: name -> row at the last attempt to write it. An equal row is not described again.
    """

    digests: dict[str, str]
    rows: dict[str, SweepRow] = field(default_factory=dict)


@dataclass
class SweepLog:
    """The log of one run of a sweep.

    Attributes:
        logs: the destinations.
        sweep: the id of the sweep, which stays in its folder.
        folder: the folder of the sweep.
        file: the sweep file.
        recipes: name of a trial -> its recipe. Others, of another machine, were logged there.
        host_versions: name of a trial that a host finishes -> the versions of vitdeploy and its libraries there.
    """

    logs: Logs
    sweep: str
    folder: Path
    file: Path
    recipes: Mapping[str, Recipe]
    host_versions: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    started: str = field(default_factory=now)
    _versions: dict[str, str] = field(default_factory=library_versions)
    _trials: dict[int, _Trials] = field(default_factory=dict)
    """number of a destination -> trials that it has; destinations that do not work are not in it"""
    _rows: Sequence[SweepRow] = ()

    @contextmanager
    def opened(self) -> Iterator[SweepLog]:
        """Write the sweep as running, and at the end how it ended, with all trials that are not logged yet."""
        status: State = "failed"
        try:
            for number, place in enumerate(self.logs.places):
                self._begin(number, place)
            yield self
            status = "finished"
        except KeyboardInterrupt:
            status = "interrupted"
            raise
        finally:
            self._end(status)

    def update(self, rows: Sequence[SweepRow]) -> None:
        """Log the trials that have ended, or have other figures than before."""
        self._rows = [row for row in rows if row.name in self.recipes]
        for number, place in enumerate(self.logs.places):
            if number in self._trials:
                self._write_trials(number, place)

    def _begin(self, number: int, place: LogPlace) -> bool:
        try:
            digests = place.list_digests(self.sweep)
        except VitdeployError as error:
            self.logs.progress.warn(f"trials are not logged for now: {error}")
            return False
        if self.logs.write_to(place, self._describe("running"), ()):
            self._trials[number] = _Trials(digests)
        return number in self._trials

    def _write_trials(self, number: int, place: LogPlace) -> None:
        """Write the trials that have changed. One that is refused stops no other, if the destination still answers."""
        trials = self._trials[number]
        for row in self._rows:
            if row.status == "pending" or trials.rows.get(row.name) == row:
                continue
            trials.rows[row.name] = row
            there = self.host_versions.get(row.name, {})
            entry = describe_trial(row, self.recipes[row.name], self.sweep, self.folder, self._versions, there)
            if trials.digests.get(entry.id) == entry.digest:
                continue
            if self.logs.write_to(place, entry, self._list_files(row)):
                trials.digests[entry.id] = entry.digest
            elif not place.answers():
                del self._trials[number]  # one warning is enough; the end of the sweep tries again
                return

    def _end(self, status: State) -> None:
        """Write what is missing, and the sweep itself. A trial or destination that failed gets one more attempt."""
        for number, place in enumerate(self.logs.places):
            if number in self._trials:
                self._trials[number].rows.clear()
            elif (status != "finished" and not place.answers()) or not self._begin(number, place):
                continue
            self._write_trials(number, place)
            if number in self._trials:
                tables = [self.folder / name for name in _TABLES]
                self.logs.write_to(place, self._describe(status), tuple((p, "") for p in tables if is_plain(p)))

    def _describe(self, status: State) -> Entry:
        return describe_sweep(self.sweep, self.folder, self.file, self._rows, self.started, status)

    def _list_files(self, row: SweepRow) -> tuple[LoggedFile, ...]:
        """Return the evidence of a trial, and its record."""
        if not row.artifact:
            return ()
        artifact = self.folder / row.artifact
        if self.logs.whole:
            return tuple(
                (path, (Path("artifact") / path.relative_to(artifact).parent).as_posix())
                for path in sorted(artifact.rglob("*"))
                if is_plain(path)
            )
        paths = [artifact.parent / "trial.json", *(artifact / name for name in (MANIFEST, *EVIDENCE))]
        return tuple((path, "") for path in paths if is_plain(path))
