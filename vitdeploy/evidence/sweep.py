"""A sweep: the trials of a matrix, each with its figures or the reason why there are none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from vitdeploy.evidence.fact import Fact

TrialState = Literal["done", "bundle", "failed", "pending"]
"""Measured; exported only, because the target is compiled elsewhere; failed with a reason; not tried yet."""
Basis = Literal["speed-up", "p50", ""]
"""The source of a latency that is compared: the speed-up over FP32, or the p50 as it was timed."""


class WorkPeriod(Fact):
    """The time and the place of one part of a trial.

    Attributes:
        began: seconds since 1970 in UTC, by the clock of the machine.
        ended: the same.
        node: the name of the node of a cluster, or of the machine.
        boot: digest of what names the machine until it starts again. Nodes with the same one are on one machine. For a
            host over SSH it is the digest of its name.
    """

    began: float
    ended: float
    node: str
    boot: str


class TrialRecord(Fact):
    """One trial of a sweep, as `trial.json` stores it.

    Attributes:
        name: the name of its folder. The digest at its end is that of everything that decides the trial.
        setting: the digest of the recipe and of the files that it names, without the machine and the libraries.
        axes: axis -> value, in words.
        model: the spec of the model.
        target: the target.
        device: the device of the target.
        precision: the precision of the artifact; before there is one, that of the recipe.
        status: see `TrialState`.
        step: the step that failed.
        reason: why it failed, or why it is pending.
        fix: what to do about it.
        repeats: the trial that failed before for the same reason, so that this one was not tried.
        seconds: the time that the trial took.
        bench_seconds: the time that its bench was given.
        machine: digest of the machine that ran it.
        random_weights: its accuracy means nothing.
        doubts: reasons to distrust its figures. A trial with a doubt is not valid.
        model_digest: of the weights.
        model_code: digest of what the model computes without its weights; empty for an ONNX file.
        input_shape: the shape of one image or clip of the model.
        outputs: the names of the outputs.
        data_digest: of the data that it was evaluated on.
        samples: the number of samples that count. Accuracies on other numbers of samples are not compared.
        metric: the name of the first metric.
        unit: of the metric and its drop.
        better: the direction of the metric.
        reference: the metric of the FP32 reference.
        deployed: the metric of the artifact.
        drop: above 0 is worse.
        drop_ci95: its 95 % interval.
        agreement: of the two answers to a sample, from 0 to 1.
        timing: the conditions of the bench in words. Latencies under other conditions are not compared.
        reference_p50_ms: of the FP32 reference in the same bench.
        reference_version: the library that ran the reference, with its version, such as "torch 2.8.0"; empty without a
            reference, and in records of a vitdeploy that did not store it.
        engine: name and version of the engine that was timed; empty in the same records.
        size_bytes: of the files that the engine opens.
        memory_bytes: the peak of a process that opens the artifact and runs it once.
        fused: the number of attention sites that the compiler fused.
        sites: the number of attention sites.
        limits: the limits that `verdict` is about.
        verdict: of the gate; empty without limits.
        failing: the checks that are not passed, in words.
        exported: when and where it was exported, and evaluated unless that was done in parts on a cluster.
        timed: when and where its latency was measured. No other trial was in work on that machine then.
    """

    name: str
    setting: str
    axes: Mapping[str, str] = {}
    model: str
    target: str
    device: str = ""
    precision: str = ""
    status: TrialState
    step: str = ""
    reason: str = ""
    fix: str = ""
    repeats: str = ""
    seconds: float = 0.0
    bench_seconds: float = 0.0
    machine: str = ""
    random_weights: bool = False
    doubts: tuple[str, ...] = ()
    model_digest: str = ""
    model_code: str = ""
    input_shape: tuple[int, ...] = ()
    outputs: tuple[str, ...] = ()
    data_digest: str = ""
    samples: int = 0
    metric: str = ""
    unit: str = ""
    better: Literal["higher", "lower"] = "higher"
    reference: float | None = None
    deployed: float | None = None
    drop: float | None = None
    drop_ci95: tuple[float, float] | None = None
    agreement: float | None = None
    timing: str = ""
    p50_ms: float | None = None
    p50_ci95: tuple[float, float] | None = None
    p90_ms: float | None = None
    p99_ms: float | None = None
    throughput_ips: float | None = None
    speedup: float | None = None
    speedup_ci95: tuple[float, float] | None = None
    reference_p50_ms: float | None = None
    reference_version: str = ""
    engine: str = ""
    size_bytes: int | None = None
    memory_bytes: int | None = None
    fused: int | None = None
    sites: int | None = None
    limits: Mapping[str, float | str] = {}
    verdict: Literal["pass", "fail", "invalid", ""] = ""
    failing: tuple[str, ...] = ()
    exported: WorkPeriod | None = None
    timed: WorkPeriod | None = None

    @property
    def valid(self) -> bool:
        """True if it was measured and nothing about its figures is in doubt."""
        return self.status == "done" and not self.doubts


class SweepRow(TrialRecord):
    """A trial beside the others of its sweep.

    Attributes:
        latency_ms: the latency that is compared with other trials; see `basis`.
        latency_ci95: its 95 % interval.
        basis: "speed-up": the median p50 of the FP32 reference over the trials of this model, input shape, outputs and
            `reference_version`, divided by the speed-up.
        group: the number of the group of trials that may be compared with this one; 0 for none.
        front: no trial of its group is both faster and more accurate, and it is valid.
        reused: it was finished before this run.
        artifact: the folder of the artifact, below the sweep's folder; empty without one.
    """

    latency_ms: float | None = None
    latency_ci95: tuple[float, float] | None = None
    basis: Basis = ""
    group: int = 0
    front: bool = False
    reused: bool = False
    artifact: str = ""


class SweepFailure(Fact):
    """A reason that one or more trials failed for, with what to do about it."""

    step: str
    reason: str
    fix: str
    trials: tuple[str, ...]


class SweepEstimate(Fact):
    """The work that is left: the number of trials, the time, and what the time was estimated from."""

    trials: int
    seconds: float | None
    basis: str


class Picked(Fact):
    """The trial that `--pick` chose, the place it was copied to, and remarks about the choice."""

    expression: str
    trial: str
    value: float
    metric: str
    path: str
    notes: tuple[str, ...] = ()


class Sweep(Fact):
    """The result of `vitdeploy sweep`: all trials in the order of the matrix.

    Attributes:
        sweep: the folder.
        file: the sweep file.
        counts: status -> number of trials of the matrix; those of other machines do not count.
        excluded: combinations that the file excludes.
        trials: all trials; last, finished ones with the same settings from other machines.
        failures: reasons, each once.
        estimate: the work that is left.
        notes: remarks about what may be compared.
        picked: the trial that `--pick` chose.
        page: the HTML page; None without the extra `report`.
        csv: the file with a row for each trial.
        jsonl: the same as JSON Lines.
        seconds: the time that this run took.
    """

    sweep: str
    file: str
    dry_run: bool = False
    counts: Mapping[str, int]
    excluded: int = 0
    trials: tuple[SweepRow, ...]
    failures: tuple[SweepFailure, ...] = ()
    estimate: SweepEstimate
    notes: tuple[str, ...] = ()
    picked: Picked | None = None
    page: str | None = None
    csv: str | None = None
    jsonl: str | None = None
    seconds: float = 0.0
