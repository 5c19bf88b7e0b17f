"""What an artifact measured, kept in one small file, so that later artifacts can be held against it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from vitdeploy.artifact import atomic_file
from vitdeploy.errors import ArtifactError, MeasureError
from vitdeploy.evidence import Audit, Bench, Eval, Fact, Interval, Metric
from vitdeploy.recipe import Recipe

SCHEMA = 1


class Timing(Fact):
    """How speed was measured: ratios taken otherwise are no ratios of the same thing."""

    reference: str
    batch: int
    threads: int | None
    scenario: str
    streams: str = ""


class Baseline(Fact):
    """What `--save-baseline` keeps of an artifact, so that later ones can be held against it."""

    schema_version: int = SCHEMA
    machine: str
    target: str
    precision: str
    model_digest: str
    recipe_digest: str
    speedup: Interval | None = None
    metrics: Mapping[str, Metric] = {}
    data_digest: str = ""
    sites: int | None = None
    fused: int | None = None
    recipe: Mapping[str, str] = {}
    """What of the recipe decides speed and accuracy, as `decisive` flattens it."""
    timing: Timing | None = None
    size_bytes: int | None = None
    peak_bytes: int | None = None


def decisive(recipe: Recipe) -> dict[str, str]:
    """The keys of a recipe that two artifacts must share to be compared, flattened: `target.batch` -> `1`.

    Limits, data paths and how long to measure are not among them; the model is compared by its weights.
    """
    found = {"model.image_size": recipe.model.image_size, "task": recipe.task.kind}
    parts = {"preprocess": recipe.preprocess, "target": recipe.target, "precision": recipe.precision}
    for name, part in parts.items():
        found |= {f"{name}.{key}": value for key, value in (part.model_dump(mode="json") if part else {}).items()}
    return {key: json.dumps(value, sort_keys=True) for key, value in found.items() if value is not None}


def timing_of(bench: Bench) -> Timing | None:
    """How the artifact was timed; None where no reference was timed beside it."""
    reference, own = bench.reference, bench.own
    if reference is None or own is None:
        return None
    return Timing(
        reference=reference.name,
        batch=own.batch,
        threads=own.threads,
        scenario=bench.scenario,
        streams=own.effective.get("streams", ""),
    )


def make(
    audit: Audit,
    bench: Bench | None,
    evaluation: Eval | None,
    *,
    machine: str,
    model_digest: str,
    recipe_digest: str,
    recipe: Mapping[str, str] | None = None,
    size_bytes: int | None = None,
) -> Baseline:
    """The baseline of an artifact; what was not measured stays empty.

    Raises:
        MeasureError: the latencies are doubtful: everything later would be held against a wrong figure.
    """
    if bench is not None and not bench.valid:
        message = f"a doubtful measurement makes no baseline: {'; '.join(bench.doubts)}"
        raise MeasureError(message, fix="Run `vitdeploy bench` again while the machine is quiet.")
    own = bench.own if bench is not None else None
    return Baseline(
        machine=machine,
        target=audit.target,
        precision=audit.precision,
        model_digest=model_digest,
        recipe_digest=recipe_digest,
        speedup=own.speedup if own else None,
        metrics=evaluation.metrics if evaluation else {},
        data_digest=evaluation.data_digest if evaluation else "",
        sites=audit.attention.sites if audit.attention.evidence == "compiled" else None,
        fused=audit.attention.fused if audit.attention.evidence == "compiled" else None,
        recipe=recipe or {},
        timing=timing_of(bench) if bench else None,
        size_bytes=size_bytes,
        peak_bytes=own.startup.peak_bytes if own and own.startup else None,
    )


def write(path: Path, baseline: Baseline) -> None:
    """Write the file of `--save-baseline`, whole or not at all.

    Raises:
        ArtifactError: it cannot be written there.
    """
    try:
        with atomic_file(path) as temporary:
            temporary.write_text(baseline.model_dump_json(indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise ArtifactError(f"{path} cannot be written: {error.strerror}", fix="Save the baseline elsewhere.") from None


def read(path: Path) -> Baseline:
    """The baseline in the file `path`.

    Raises:
        ArtifactError: no such file, not a baseline, or one of another schema.
    """
    fix = "Make one with `vitdeploy gate DIR --save-baseline FILE`."
    try:
        found = Baseline.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise ArtifactError(f"{path} is not a baseline: {str(error).splitlines()[0]}", fix=fix) from None
    if found.schema_version != SCHEMA:
        message = f"{path} has baseline schema {found.schema_version}, this vitdeploy reads {SCHEMA}"
        raise ArtifactError(message, fix="Update vitdeploy." if found.schema_version > SCHEMA else fix)
    return found
