"""Entries of artifacts, of trials and of sweeps."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Literal

from vitdeploy import environment
from vitdeploy.artifact import Artifact
from vitdeploy.commands.figures import list_keys, record_artifact
from vitdeploy.commands.log.entry import Entry, State, Value, from_seconds, new_id, now
from vitdeploy.errors import VitdeployError
from vitdeploy.evidence import Audit, Bench, Check, Eval, Gate, SweepRow, TrialRecord
from vitdeploy.recipe import Recipe

_INTERVALS: Mapping[str, tuple[str, str]] = {
    "latency_p50_ms": ("p50_ms", "p50_ci95"),
    "latency_p90_ms": ("p90_ms", ""),
    "latency_p99_ms": ("p99_ms", ""),
    "throughput_ips": ("throughput_ips", ""),
    "reference_latency_p50_ms": ("reference_p50_ms", ""),
    "speedup": ("speedup", "speedup_ci95"),
    "accuracy": ("deployed", ""),
    "reference_accuracy": ("reference", ""),
    "drop": ("drop", "drop_ci95"),
    "agreement": ("agreement", ""),
    "size_bytes": ("size_bytes", ""),
    "memory_bytes": ("memory_bytes", ""),
    "attention_fused": ("fused", ""),
    "attention_sites": ("sites", ""),
}
"""metric -> the figure of a trial, and its interval. One that was not measured is left out."""
_FACTS = ("model", "target", "device", "precision", "machine", "metric", "unit", "better", "samples", "timing")
"""Facts of a trial that are parameters."""


def describe_artifact(
    kind: Literal["run", "gate"],
    artifact: Artifact,
    evaluation: Eval | None,
    audit: Audit | None,
    timing: Bench | None,
    verdict: Gate,
    started: str,
    faults: Sequence[Check] = (),
) -> Entry:
    """Return the entry of an artifact and its verdict.

    Args:
        kind: the command.
        artifact: the artifact or bundle.
        evaluation: its accuracy; None if there is none that can be used, as for `audit` and `timing`.
        audit: the audit of what was compiled.
        timing: its bench.
        verdict: of the gate.
        started: the time at which the command began.
        faults: evidence that is impossible or contradicts something.
    """
    manifest = artifact.manifest
    record = record_artifact(artifact.path.resolve().name, artifact, evaluation, audit, timing)
    return Entry(
        kind=kind,
        id=new_id(),
        name=record.name,
        started=started,
        ended=now(),
        verdict=verdict.verdict if verdict.checks else "",
        failing=tuple(f"{check.name}: {check.why}" for check in verdict.checks if check.status != "pass"),
        valid=record.valid and not faults and (evaluation is not None or timing is not None),
        doubts=(*record.doubts, *(f"{fault.name}: {fault.why}" for fault in faults)),
        limits=verdict.limits,
        parameters={**_list_facts(record), **_list_versions(manifest.versions), **list_keys(manifest.recipe)},
        metrics=_list_metrics(record),
        files=(str(artifact.path.resolve()),),
    ).sealed()


def describe_failed_run(recipe: Recipe, out: Path, error: VitdeployError, started: str) -> Entry:
    """Return the entry of a run that failed."""
    return Entry(
        kind="run",
        id=new_id(),
        name=out.resolve().name,
        started=started,
        ended=now(),
        status="failed",
        reason=error.message,
        fix=error.fix,
        parameters={
            "model": recipe.model.spec,
            "target": recipe.target.kind,
            "machine": environment.host().machine,
            **_list_versions(environment.library_versions()),
            **list_keys(recipe),
        },
    ).sealed()


def describe_trial(
    row: SweepRow,
    recipe: Recipe,
    sweep: str,
    folder: Path,
    versions: Mapping[str, str],
    host_versions: Mapping[str, str],
) -> Entry:
    """Return the entry of a trial that has ended.

    Args:
        row: the trial.
        recipe: the recipe that it tried.
        sweep: the id of the sweep.
        folder: of the sweep.
        versions: library -> version. They are part of the trial's name.
        host_versions: the same on the host that finishes the trial; empty without one.
    """
    started, ended = _find_times(row, folder / "trials" / row.name / "trial.json")
    return Entry(
        kind="trial",
        id=f"{sweep}-{row.name}",
        parent=sweep,
        name=row.name,
        started=started,
        ended=ended,
        status="failed" if row.status == "failed" else "finished",
        reason=f"at {row.step}: {row.reason}" if row.step else row.reason,
        fix=row.fix,
        verdict=row.verdict,
        failing=row.failing,
        valid=row.valid,
        doubts=row.doubts,
        limits=row.limits,
        parameters={
            **_list_facts(row),
            **({"host": row.axes.get("host", "")} if host_versions else {}),
            **_list_versions(versions),
            **{f"host.{name}": version for name, version in _list_versions(host_versions).items()},
            **list_keys(recipe),
        },
        metrics=_list_metrics(row),
        files=(str((folder / row.artifact).resolve()),) if row.artifact else (),
    ).sealed()


def describe_sweep(
    sweep: str, folder: Path, file: Path, rows: Sequence[SweepRow], started: str, status: State
) -> Entry:
    """Return the entry of a sweep.

    Args:
        sweep: its id.
        folder: its folder.
        file: the sweep file.
        rows: all trials.
        started: the time at which this run of it began.
        status: "running" until it ends.
    """
    counts = Counter(row.status for row in rows)
    return Entry(
        kind="sweep",
        id=sweep,
        name=folder.resolve().name,
        started=started,
        ended="" if status == "running" else now(),
        status=status,
        valid=bool(rows) and all(row.valid for row in rows),
        parameters={"file": file.name},
        metrics={f"trials_{name}": counts[name] for name in ("done", "bundle", "failed", "pending")}
        | {"trials_on_front": sum(row.front for row in rows)},
        files=(str(folder.resolve()),),
    ).sealed()


def _find_times(row: SweepRow, record: Path) -> tuple[str, str]:
    """Return when a trial began and ended: as it says itself, else by the time of its file."""
    periods = [period for period in (row.exported, row.timed) if period is not None]
    with suppress(ValueError, OverflowError, OSError):  # no time at all, or no such file
        if periods:
            began, ended = min(period.began for period in periods), max(period.ended for period in periods)
        else:
            ended = record.stat().st_mtime
            began = ended - row.seconds
        return from_seconds(began), from_seconds(ended)
    return now(timedelta(seconds=row.seconds)), now()


def _list_metrics(record: TrialRecord) -> dict[str, float]:
    """Return the figures that were measured. JSON has no NaN and no infinity, so such figures are left out."""
    figures: dict[str, float | None] = {}
    for name, (figure, interval) in _INTERVALS.items():
        ends = getattr(record, interval) if interval else None
        figures[name] = getattr(record, figure)
        figures |= {} if ends is None else {f"{name}.ci_low": ends[0], f"{name}.ci_high": ends[1]}
    return {name: float(value) for name, value in figures.items() if value is not None and math.isfinite(value)}


def _list_facts(record: TrialRecord) -> dict[str, Value]:
    return {name: value for name in _FACTS if (value := getattr(record, name)) not in ("", 0)}


def _list_versions(versions: Mapping[str, str]) -> dict[str, Value]:
    return {f"version.{name}": version for name, version in versions.items()}
