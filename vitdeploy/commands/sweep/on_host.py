"""The part of a trial that a host does: compile the bundle, evaluate and time the artifact."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from vitdeploy.artifact import Artifact
from vitdeploy.commands.sweep.hosts import SweepHost
from vitdeploy.commands.sweep.periods import Clock
from vitdeploy.commands.sweep.record import Results
from vitdeploy.commands.sweep.references import References
from vitdeploy.errors import ArtifactError
from vitdeploy.evidence import Audit
from vitdeploy.progress import Progress


def make_host_clock(host: SweepHost) -> Clock:
    """Return a clock for what a host does. Files on their way, and the wait for its other jobs, count too."""
    return Clock(host.name, boot=hashlib.sha256(host.name.encode()).hexdigest())


def find_reference(artifact: Artifact, references: References) -> Path | None:
    """Return the file with the reference's answers to the recipe's data; None if it names none."""
    return None if artifact.manifest.recipe.data.evaluation is None else references.find(artifact)


def finish_there(
    bundle: Artifact,
    host: SweepHost,
    *,
    reference: Path | None,
    seconds: float,
    progress: Progress,
    on_step: Callable[[str], None],
) -> Results:
    """Compile a bundle on a host, evaluate it and time it there.

    Args:
        bundle: the bundle, which the artifact replaces.
        host: the host.
        reference: a file with the answers of the FP32 reference; None: there is no data.
        seconds: the time to measure latency.
        progress: gets the steps and warnings.
        on_step: called with the name of each step when it begins.

    Raises:
        HostUnreachable: the host does not answer any more.
        VitdeployError: a step failed.
    """
    on_step("compile")
    artifact = host.compile(bundle, progress)
    evaluation = None
    if reference is not None:
        on_step("eval")
        evaluation = host.evaluate(artifact, reference, progress)
    on_step("bench")
    timing = host.bench(artifact, seconds, progress)
    return Results(artifact, evaluation, read_audit(artifact), timing)


def read_audit(artifact: Artifact) -> Audit:
    """Return the audit that an export or a host has made. It is not made again, also where the engine is missing.

    Raises:
        ArtifactError: there is none.
    """
    audit, reason = artifact.read_evidence(Audit)
    if audit is None:
        raise ArtifactError(f"no audit is beside the artifact: {reason}", fix="Run the trial again.")
    return audit
