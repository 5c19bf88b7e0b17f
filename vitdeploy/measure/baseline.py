"""The baseline: one small file with an artifact's measurements, to which later artifacts are compared."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from vitdeploy.artifact import atomic_file
from vitdeploy.errors import ArtifactError, MeasureError
from vitdeploy.evidence import Audit, Bench, Eval, Fact, Interval, Metric
from vitdeploy.frozen import describe_unread
from vitdeploy.plain_files import read_plain
from vitdeploy.recipe import Frozen, Recipe

_LARGEST = 64 << 20
SCHEMA = 1
_ADDED_KEYS = (
    "antialias",
    "enlarge",
    "size_divisor",
    "size_rounding",
    "crop_rounding",
    "padding",
    "channel_order",
    "mask",
)


class Timing(Fact):
    """The conditions of a speed-up. Two speed-ups can be compared only if these are equal."""

    reference: str
    batch: int
    threads: int | None
    scenario: str
    streams: str = ""


class Baseline(Fact):
    """The measurements of one artifact, as `gate --save-baseline` stores them."""

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
    """The keys of the recipe that decide speed and accuracy; see `decisive_keys`."""
    timing: Timing | None = None
    size_bytes: int | None = None
    peak_bytes: int | None = None
    audited_on: str = ""
    """The hardware that fusion was read on; empty if the engine fuses alike on all."""


def decisive_keys(recipe: Recipe) -> dict[str, str]:
    """Return the recipe keys that decide speed and accuracy, flattened: `target.batch` -> `1`.

    Two artifacts can be compared only if these are equal. Limits, data paths and the measuring time are not among them.
    The model is not either: it is compared by its weights.
    """
    model = recipe.model
    keys: dict[str, object] = {
        "model.image_size": model.model_dump(mode="json")["image_size"],
        **{f"model.{key}": value for key, value in model.overrides.items()},
        "task": recipe.task.kind,
    }
    parts = {"preprocess": recipe.preprocess, "target": recipe.target, "precision": recipe.precision}
    for name, part in parts.items():
        values = part.model_dump(mode="json", exclude=_find_new_defaults(part)) if part else {}
        keys |= {f"{name}.{key}": value for key, value in values.items()}
    fewer = recipe.tokens.model_dump(mode="json", exclude_defaults=True)  # older baselines have no such keys
    keys |= {f"tokens.{key}": value for key, value in fewer.items()}
    return {key: json.dumps(value, sort_keys=True) for key, value in keys.items() if value is not None}


def _find_new_defaults(part: Frozen) -> set[str]:
    """Return keys that a recipe did not have at first, and that have their default: older baselines lack them."""
    fields = type(part).model_fields
    return {key for key in _ADDED_KEYS if key in fields and getattr(part, key) == fields[key].default}


def describe_timing(bench: Bench) -> Timing | None:
    """Return how the artifact was timed; None if no reference was timed beside it."""
    reference, run = bench.reference, bench.own
    if reference is None or run is None:
        return None
    return Timing(
        reference=reference.name,
        batch=run.batch,
        threads=run.threads,
        scenario=bench.scenario,
        streams=run.effective.get("streams", ""),
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
    audited_on: str = "",
) -> Baseline:
    """Make the baseline of an artifact. Fields without evidence stay empty.

    Raises:
        MeasureError: the latencies are doubtful, and later artifacts would be compared to a wrong figure.
    """
    if bench is not None and not bench.valid:
        message = f"the latencies are in doubt, so no baseline is made of them: {'; '.join(bench.doubts)}"
        raise MeasureError(message, fix="Run `vitdeploy bench` again while the machine is quiet.")
    run = bench.own if bench is not None else None
    return Baseline(
        machine=machine,
        target=audit.target,
        precision=audit.precision,
        model_digest=model_digest,
        recipe_digest=recipe_digest,
        speedup=run.speedup if run else None,
        metrics=evaluation.metrics if evaluation else {},
        data_digest=evaluation.data_digest if evaluation else "",
        sites=audit.attention.sites if audit.attention.evidence == "compiled" else None,
        fused=audit.attention.fused if audit.attention.evidence == "compiled" else None,
        recipe=recipe or {},
        timing=describe_timing(bench) if bench else None,
        size_bytes=size_bytes,
        peak_bytes=run.startup.peak_bytes if run and run.startup else None,
        audited_on=audited_on,
    )


def write(path: Path, baseline: Baseline) -> None:
    """Write a baseline to a file, atomically.

    Raises:
        ArtifactError: the file cannot be written.
    """
    try:
        with atomic_file(path) as temporary:
            temporary.write_text(baseline.model_dump_json(indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        message = f"{path} cannot be written: {error.strerror}"
        raise ArtifactError(message, fix="Save the baseline to another file.") from None


def read(path: Path) -> Baseline:
    """Read a baseline from a file.

    Raises:
        ArtifactError: there is no such file, or it is not a baseline of this schema.
    """
    fix = "Make one with `vitdeploy gate DIR --save-baseline FILE`."
    try:
        baseline = Baseline.model_validate_json(read_plain(path, _LARGEST))
    except (OSError, ValidationError) as error:
        raise ArtifactError(f"{path} is not a baseline: {describe_unread(error)}", fix=fix) from None
    if baseline.schema_version != SCHEMA:
        message = f"{path} has baseline schema {baseline.schema_version}, this vitdeploy reads schema {SCHEMA}"
        raise ArtifactError(message, fix="Update vitdeploy." if baseline.schema_version > SCHEMA else fix)
    return baseline


def parse_stored(raw: Mapping[str, object]) -> Baseline:
    """Parse the baseline that a verdict stores.

    Raises:
        MeasureError: it is not a baseline.
    """
    try:
        return Baseline.model_validate(raw)
    except ValidationError as error:
        message = f"the baseline in gate.json is not one: {describe_unread(error)}"
        raise MeasureError(message, fix="Run vitdeploy gate again.") from None
