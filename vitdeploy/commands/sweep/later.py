"""The steps of a trial after its export: evaluate, time and judge it, on a cluster, on a host, or once more."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from vitdeploy import artifact as artifacts
from vitdeploy.artifact import Artifact, atomic_file
from vitdeploy.commands.bench.bench import Plan, bench
from vitdeploy.commands.given import give_own_model
from vitdeploy.commands.sweep.definition import TrialSpec
from vitdeploy.commands.sweep.failures import raise_if_disk_is_full
from vitdeploy.commands.sweep.hosts import SweepHost
from vitdeploy.commands.sweep.on_host import find_reference, finish_there, make_host_clock, read_audit
from vitdeploy.commands.sweep.periods import Clock
from vitdeploy.commands.sweep.postponed import PartAnswers, join_places
from vitdeploy.commands.sweep.record import Results, judge_trial, record_trial
from vitdeploy.commands.sweep.references import References
from vitdeploy.commands.sweep.trial import ARTIFACT, RECORD, REFERENCES, TRIALS, Tools, describe_failure
from vitdeploy.errors import HostUnreachable
from vitdeploy.evidence import Bench, Eval, TrialRecord, WorkPeriod
from vitdeploy.frozen import replace


def lengthen_bench(
    trial: TrialSpec, sweep: Path, tools: Tools, seconds: float, host: SweepHost | None = None
) -> TrialRecord:
    """Time the artifact of a finished trial again, for longer, on its host if it has one, and store the result.

    Raises:
        VitdeployError: the artifact is damaged, or cannot be timed.
    """
    artifact, clock = load_trial(trial, sweep), Clock(tools.node) if host is None else make_host_clock(host)
    with clock.measure(tools.alone() if host is None else nullcontext()):
        if host is None:
            timing = bench([artifact], tools.progress, Plan(seconds=seconds, profile=True))
        else:
            timing = host.bench(artifact, seconds, tools.progress)
    return _store_again(trial, sweep, artifact, timing, seconds, timed=clock.period)


def time_trial(
    trial: TrialSpec, sweep: Path, tools: Tools, seconds: float, host: SweepHost | None = None
) -> TrialRecord:
    """Time a trial that was run without its bench, and store the result, or why it failed.

    Raises:
        ArtifactError: the disk is full.
        HostUnreachable: the host does not answer any more. Any other failure is part of the record.
    """
    started, file = time.monotonic(), sweep / TRIALS / trial.name / RECORD
    before = TrialRecord.model_validate_json(file.read_bytes())
    try:
        record = lengthen_bench(trial, sweep, tools, seconds, host)
    except HostUnreachable:
        raise
    except Exception as error:  # noqa: BLE001  as in `run_trial`
        raise_if_disk_is_full(error, sweep)
        return fail_step(trial, file.parent, "bench", error, time.monotonic() - started)
    record = replace(record, seconds=round(before.seconds + time.monotonic() - started, 1))
    write_record(record, file)
    return record


def conclude_trial(
    trial: TrialSpec, sweep: Path, tools: Tools, answers: Sequence[PartAnswers], answered_s: float
) -> TrialRecord:
    """Join the answers to all parts of the data, and store the evaluation of an exported trial, or why it failed.

    Args:
        trial: its description.
        sweep: the folder of the sweep.
        tools: what trials share.
        answers: to all parts, in the order of the data.
        answered_s: the seconds that nodes took for them, all together.

    Raises:
        ArtifactError: the disk is full. Any other failure is part of the record.
    """
    started, file = time.monotonic(), sweep / TRIALS / trial.name / RECORD
    record = TrialRecord.model_validate_json(file.read_bytes())
    seconds, exported = record.seconds + answered_s, record.exported
    try:
        artifact = load_trial(trial, sweep)
        references = References(sweep / REFERENCES, tools.naming, tools.progress, tools.fetch)
        evaluation = join_places(artifact, answers, references.find_known(artifact), tools.progress)
        if evaluation is not None:
            results = Results(artifact, evaluation, read_audit(artifact), None)
            record = judge_trial(record_trial(trial, results, 0.0), trial, artifact)
    except Exception as error:  # noqa: BLE001  as in `run_trial`
        raise_if_disk_is_full(error, sweep)
        return fail_step(trial, file.parent, "eval", error, answered_s + time.monotonic() - started)
    record = replace(record, seconds=round(seconds + time.monotonic() - started, 1), exported=exported)
    write_record(record, file)
    return record


def finish_trial(trial: TrialSpec, sweep: Path, tools: Tools, seconds: float, host: SweepHost) -> TrialRecord:
    """Let a host finish a trial that was exported for it, and store the results, or why they failed.

    Raises:
        ArtifactError: the disk is full.
        HostUnreachable: the host does not answer any more. Any other failure is part of the record.
    """
    started, steps, clock = time.monotonic(), ["compile"], make_host_clock(host)
    file = sweep / TRIALS / trial.name / RECORD
    before = TrialRecord.model_validate_json(file.read_bytes())
    try:
        bundle = load_trial(trial, sweep)
        reference = find_reference(bundle, References(sweep / REFERENCES, tools.naming, tools.progress, tools.fetch))
        with clock.measure(nullcontext()):
            results = finish_there(
                bundle, host, reference=reference, seconds=seconds, progress=tools.progress,
                on_step=steps.append,
            )  # fmt: skip
        record = judge_trial(record_trial(trial, results, seconds), trial, results.artifact)
    except HostUnreachable:
        raise
    except Exception as error:  # noqa: BLE001  as in `run_trial`
        raise_if_disk_is_full(error, sweep)
        record = describe_failure(trial, steps[-1], error, file.parent / ARTIFACT)
    taken = round(before.seconds + time.monotonic() - started, 1)
    record = replace(record, seconds=taken, exported=before.exported, timed=clock.period)
    write_record(record, file)
    return record


def fail_step(trial: TrialSpec, folder: Path, step: str, error: Exception, seconds: float = 0.0) -> TrialRecord:
    """Store why a step after the export of a trial failed, `seconds` after it. Artifact and evidence stay."""
    before = TrialRecord.model_validate_json((folder / RECORD).read_bytes())
    record = describe_failure(trial, step, error, folder / ARTIFACT)
    record = replace(record, exported=before.exported, seconds=round(before.seconds + seconds, 1))
    write_record(record, folder / RECORD)
    return record


def judge_again(trial: TrialSpec, sweep: Path, record: TrialRecord) -> TrialRecord:
    """Judge a finished trial by other limits, and store the verdict.

    Raises:
        VitdeployError: the artifact is damaged.
    """
    artifact = load_trial(trial, sweep)
    timing, _ = artifact.read_evidence(Bench)
    return _store_again(trial, sweep, artifact, timing, record.bench_seconds, timed=record.timed)


def load_trial(trial: TrialSpec, sweep: Path) -> Artifact:
    """Load the artifact of a finished trial. Its model is the sweep file's, so its code may run."""
    return give_own_model(artifacts.load(sweep / TRIALS / trial.name / ARTIFACT), trial.recipe.model)


def _store_again(
    trial: TrialSpec,
    sweep: Path,
    artifact: Artifact,
    timing: Bench | None,
    seconds: float,
    *,
    timed: WorkPeriod | None,
) -> TrialRecord:
    from vitdeploy.commands.inspect.inspect import inspect

    file = sweep / TRIALS / trial.name / RECORD
    before = TrialRecord.model_validate_json(file.read_bytes())
    evaluation, _ = artifact.read_evidence(Eval)
    audit = read_audit(artifact) if trial.hosts else inspect(artifact)
    record = record_trial(trial, Results(artifact, evaluation, audit, timing), seconds)
    record = judge_trial(record, trial, artifact)
    record = replace(record, seconds=before.seconds, exported=before.exported, timed=timed)
    write_record(record, file)
    return record


def write_record(record: TrialRecord, file: Path) -> None:
    """Write the record of a trial, completely or not at all."""
    with atomic_file(file) as temporary:
        temporary.write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")
