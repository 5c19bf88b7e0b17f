"""The folder of a sweep.

sweep.json        marks the folder, with the last file that was swept into it
trials/NAME/      trial.json, and the artifact with its evidence
references/       the answers of the FP32 reference, for all trials of a model
results.csv, results.jsonl, sweep.html
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from vitdeploy.artifact import atomic_file, locks, refuse_enclosed
from vitdeploy.artifact.temporary import PARTIAL, find_hidden, remove_abandoned
from vitdeploy.commands.sweep.trial import ARTIFACT, RECORD, REFERENCES, TRIALS
from vitdeploy.errors import ArtifactError, UsageError
from vitdeploy.evidence import SweepRow, TrialRecord
from vitdeploy.plain_files import read_plain
from vitdeploy.version import __version__

MARK, CSV, JSONL, PAGE = "sweep.json", "results.csv", "results.jsonl", "sweep.html"
_MAX_BYTES = 16 << 20
_ID = re.compile("[0-9a-f]{32}")
_COLUMNS = (
    "name", "status", "model", "target", "device", "precision", "valid", "front", "group", "metric", "unit",
    "reference", "deployed", "drop", "agreement", "samples", "latency_ms", "basis", "p50_ms", "p90_ms", "p99_ms",
    "throughput_ips", "speedup", "reference_p50_ms", "size_bytes", "memory_bytes", "fused", "sites", "verdict",
    "seconds", "bench_seconds", "machine", "timing", "artifact", "step", "reason",
)  # fmt: skip
_INTERVALS = ("drop_ci95", "latency_ci95", "p50_ci95", "speedup_ci95")


@dataclass(frozen=True)
class SweepFolder:
    """The folder that the trials of a sweep are stored in."""

    path: Path

    def check(self) -> None:
        """Refuse, before any work, a folder with something else in it.

        Raises:
            UsageError: it is not a folder of a sweep, or is inside of an artifact.
        """
        refuse_enclosed(self.path)
        if not os.path.lexists(self.path):
            return
        if not self.path.is_dir():
            raise UsageError(f"{self.path} is not a folder", fix="Choose another folder with -o.")
        started = set(find_hidden(self.path, MARK, PARTIAL))  # a process that was killed while it wrote the mark
        if not (self.path / MARK).is_file() and any(path not in started for path in self.path.iterdir()):
            raise UsageError(f"{self.path} exists and is not a sweep", fix="Choose another folder with -o.")

    @contextmanager
    def locked(self, file: Path) -> Iterator[None]:
        """Make the folder, and hold it for this process. What killed processes have left in it is removed.

        Raises:
            UsageError: another process runs a sweep in it.
            ArtifactError: it cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if not (self.path / MARK).is_file():  # first of all: without it the next run would refuse the folder
                self._write_mark(file)
            for name in (TRIALS, REFERENCES):
                (self.path / name).mkdir(exist_ok=True)
            handle = os.open(self.path / REFERENCES, os.O_RDONLY)
        except OSError as error:
            raise _unwritable(self.path, error) from None
        try:
            if locks.try_lock(handle) == "busy":
                raise UsageError(
                    f"another process runs a sweep in {self.path}", fix="Wait until it ends, or give another -o."
                )
            self._write_mark(file)
            with locks.locked(self.path / TRIALS):
                remove_abandoned(self.path / TRIALS)
            yield
        finally:
            os.close(handle)

    def _write_mark(self, file: Path) -> None:
        name = self.read_id() or uuid.uuid4().hex
        mark = {"schema": 1, "id": name, "vitdeploy": __version__, "file": str(file.absolute())}
        self.write({MARK: json.dumps(mark, indent=1) + "\n"})

    def read_id(self) -> str:
        """Return the id of the sweep, by which logs know it; empty before it has one."""
        try:
            mark = json.loads(read_plain(self.path / MARK, _MAX_BYTES))
        except (OSError, ValueError):
            return ""
        value = mark.get("id") if isinstance(mark, dict) else None
        return value if isinstance(value, str) and _ID.fullmatch(value) else ""

    def read_records(self) -> dict[str, TrialRecord]:
        """Return the records of all trials in the folder, by name. One that cannot be read counts as missing."""
        records = {}
        for file in sorted((self.path / TRIALS).glob(f"[!.]*/{RECORD}")):
            try:
                record = TrialRecord.model_validate_json(read_plain(file, _MAX_BYTES))
            except (OSError, ValidationError):
                continue
            if record.name == file.parent.name and (record.status == "failed" or self.artifact(record.name).is_dir()):
                records[record.name] = record
        return records

    def artifact(self, name: str) -> Path:
        """Return the folder of a trial's artifact."""
        return self.path / TRIALS / name / ARTIFACT

    def write(self, files: dict[str, str]) -> None:
        """Write files, each completely or not at all.

        Raises:
            ArtifactError: one cannot be written.
        """
        for name, text in files.items():
            try:
                with atomic_file(self.path / name) as temporary:
                    temporary.write_text(text, encoding="utf-8", newline="")
            except OSError as error:
                raise _unwritable(self.path / name, error) from None

    def write_tables(self, rows: Sequence[SweepRow]) -> None:
        """Write all trials as CSV and as JSON Lines."""
        lines = "".join(f"{row.model_dump_json()}\n" for row in rows)
        self.write({CSV: write_csv(rows), JSONL: lines})


def write_csv(rows: Sequence[SweepRow]) -> str:
    """Return a table with a line for each trial: its axes, then its figures. Intervals have two columns."""
    axes = list(dict.fromkeys(axis for row in rows for axis in row.axes))
    ends = [f"{name.removesuffix('_ci95')}_{end}" for name in _INTERVALS for end in ("low", "high")]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*(f"axis.{axis}" for axis in axes), *_COLUMNS, *ends, "doubts"])
    for row in rows:
        figures = [getattr(row, name) for name in _COLUMNS]
        intervals = [end for name in _INTERVALS for end in getattr(row, name) or (None, None)]
        cells = [*(row.axes.get(axis, "") for axis in axes), *figures, *intervals, "; ".join(row.doubts)]
        writer.writerow(["" if cell is None else cell for cell in cells])
    return text.getvalue()


def _unwritable(path: Path, error: OSError) -> ArtifactError:
    return ArtifactError(f"{path} cannot be written: {error.strerror}", fix="Choose another folder with -o.")
