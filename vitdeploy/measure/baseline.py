"""What an artifact measured, kept in one small file, so that later artifacts can be held against it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from vitdeploy.artifact import atomic_file
from vitdeploy.errors import ArtifactError, MeasureError
from vitdeploy.evidence import Audit, Bench, Eval, Fact, Interval, Metric

SCHEMA = 1


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


def make(
    audit: Audit,
    bench: Bench | None,
    evaluation: Eval | None,
    *,
    machine: str,
    model_digest: str,
    recipe_digest: str,
) -> Baseline:
    """The baseline of an artifact; what was not measured stays empty.

    Raises:
        MeasureError: the latencies are doubtful: everything later would be held against a wrong figure.
    """
    if bench is not None and not bench.valid:
        message = f"a doubtful measurement makes no baseline: {'; '.join(bench.doubts)}"
        raise MeasureError(message, fix="Run `vitdeploy bench` again while the machine is quiet.")
    return Baseline(
        machine=machine,
        target=audit.target,
        precision=audit.precision,
        model_digest=model_digest,
        recipe_digest=recipe_digest,
        speedup=bench.runs[-1].speedup if bench and bench.runs else None,
        metrics=evaluation.metrics if evaluation else {},
        data_digest=evaluation.data_digest if evaluation else "",
        sites=audit.attention.sites if audit.attention.evidence == "compiled" else None,
        fused=audit.attention.fused if audit.attention.evidence == "compiled" else None,
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
