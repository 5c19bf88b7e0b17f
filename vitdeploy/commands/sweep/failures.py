"""Failures of trials: their reasons in words, the trials that share one, and the one that ends a sweep: a full disk."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

from vitdeploy.artifact import DISK_FULL
from vitdeploy.commands.sweep.definition import TrialSpec
from vitdeploy.errors import ArtifactError, VitdeployError
from vitdeploy.evidence import SweepFailure, SweepRow

_FULL_BELOW_BYTES = 1 << 20
_LONGEST_REASON = 300


def explain(error: Exception) -> tuple[str, str]:
    """Return the reason of a failure, and what to do about it."""
    if isinstance(error, VitdeployError):
        return error.message, error.fix
    first = (str(error).strip().splitlines() or [""])[0][:_LONGEST_REASON]
    fix = "Run vitdeploy export with the same options and --traceback, and report the error."
    return f"unexpected {type(error).__name__}: {first}", fix


def raise_if_disk_is_full(error: Exception, folder: Path) -> None:
    """End the sweep if an error comes from a full disk: every other trial would fail too.

    Raises:
        VitdeployError: the disk is full: the error itself if it is one, else an ArtifactError.
    """
    fix = "Free some space, and run the sweep again: finished trials stay."
    if _comes_from_full_disk(error):
        if isinstance(error, VitdeployError):
            raise error
        raise ArtifactError(f"a disk is full: {error}", fix=fix) from error
    if shutil.disk_usage(folder).free < _FULL_BELOW_BYTES:
        raise ArtifactError(f"the disk of {folder} is full", fix=fix) from error


def _comes_from_full_disk(error: BaseException) -> bool:
    """Return True if an error that led to this one says so. `raise … from None` hides those from people only."""
    pending, visited = [error], set[int]()
    while pending:
        one = pending.pop()
        if isinstance(one, OSError) and one.errno in DISK_FULL:
            return True
        visited.add(id(one))
        earlier = (one.__cause__, one.__context__)
        pending += [other for other in earlier if other is not None and id(other) not in visited]
    return False


def digest_loading(trial: TrialSpec) -> str:
    """Return the digest of what decides if the model of a trial can be loaded and run.

    The batch decides the time and the memory that a model in a file needs; the task, if its outputs and labels fit.
    """
    recipe = trial.recipe
    parts = (recipe.model, recipe.preprocess, recipe.task, recipe.target.batch)
    facts = ["" if part is None else part.model_dump_json() for part in parts]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()


def group_failures(rows: Sequence[SweepRow]) -> list[SweepFailure]:
    """Return each reason once, with the trials that failed for it."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        if row.status == "failed":
            groups.setdefault((row.step, row.reason, row.fix), []).append(row.name)
    return [
        SweepFailure(step=step, reason=reason, fix=fix, trials=tuple(t)) for (step, reason, fix), t in groups.items()
    ]
