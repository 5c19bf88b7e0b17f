"""The parts of a trial as a node of a cluster runs them: in a folder of its own, with the machine's lock.

A node gets a trial as data, and returns its folder file by file. The files that the recipe names have to be on the node
too.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from vitdeploy import environment, machine_lock, sources
from vitdeploy.artifact.parcel import Parcel, pack
from vitdeploy.artifact.temporary import scratch_folder
from vitdeploy.cluster import fetch, this_node
from vitdeploy.commands.evaluate.parts import SamplePlaces
from vitdeploy.commands.sweep.definition import TrialSpec
from vitdeploy.commands.sweep.failures import explain, raise_if_disk_is_full
from vitdeploy.commands.sweep.hosts import SweepHost
from vitdeploy.commands.sweep.later import conclude_trial, finish_trial, load_trial, time_trial
from vitdeploy.commands.sweep.naming import Naming
from vitdeploy.commands.sweep.postponed import PartAnswers, answer_place
from vitdeploy.commands.sweep.references import References
from vitdeploy.commands.sweep.trial import ARTIFACT, RECORD, REFERENCES, TRIALS, Ended, Tools, fail_trial, run_trial
from vitdeploy.errors import DataError, HostUnreachable, MeasureError, VitdeployError
from vitdeploy.evidence import TrialRecord
from vitdeploy.pipeline.graph_cache import GraphCache
from vitdeploy.progress import Silent


@dataclass(frozen=True)
class Assignment:
    """A trial, and what a node needs beside it.

    Attributes:
        trial: its description.
        machine: the kind of machine that it is named after.
        names: id -> name of the nodes.
        cached: use the cache of exported graphs on the node.
        references: name of a file of the reference's answers -> where it is in the object store.
        host: the host that compiles, evaluates and times it; None: nodes do.
        most_samples: an evaluation of more samples is left to `answer_part`.
    """

    trial: TrialSpec
    machine: str
    names: Mapping[str, str]
    cached: bool
    references: Mapping[str, Any] = field(default_factory=dict)
    host: SweepHost | None = None
    most_samples: int | None = None


@dataclass(frozen=True)
class PartDelivery:
    """The answers to a part of the data.

    Attributes:
        answers: the answers; None if it failed.
        failure: the reason why, and what to do about it.
        seconds: the time that it took.
        warnings: of the libraries and engines.
    """

    answers: PartAnswers | None
    failure: tuple[str, str]
    seconds: float
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Delivery:
    """The results of a node: the record, the files of the trial, new answers of the reference, and warnings."""

    ended: Ended
    files: Parcel
    references: Mapping[str, bytes]
    warnings: tuple[str, ...]


class _Warnings(Silent):
    """Keeps warnings for the machine that the user sits at."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def warn(self, message: str) -> None:
        """Keep the message."""
        self.lines.append(message)


def prepare(assignment: Assignment) -> Delivery:
    """Export and evaluate a trial, or only export it for a host, beside others. A large evaluation is postponed.

    Raises:
        ArtifactError: the disk of the node is full.
    """
    trial, host, most = assignment.trial, assignment.host, assignment.most_samples
    with machine_lock.shared():
        return _run(assignment, lambda tools, sweep: run_trial(trial, sweep, tools, None, host, most))


def answer_part(assignment: Assignment, prepared: Parcel, place: SamplePlaces, count: int) -> PartDelivery:
    """Answer a part of the data of a trial that was exported, beside other work.

    Args:
        assignment: the trial.
        prepared: its folder.
        place: the part.
        count: the number of samples of the whole evaluation.

    Raises:
        ArtifactError: the disk of the node is full.
    """
    trial, failure, answers = assignment.trial, ("", ""), None
    with machine_lock.shared(), _opened(assignment) as (tools, sweep, warnings):
        started, folder = time.monotonic(), sweep / TRIALS / trial.name
        try:
            _check_place(assignment, tools.naming, tools.node)
            prepared.unpack(folder)
            artifact = load_trial(trial, sweep)
            file = References(sweep / REFERENCES, tools.naming, warnings, tools.fetch).find_known(artifact)
            answers = answer_place(artifact, file, place, count, warnings, reference_only=bool(trial.hosts))
        except Exception as error:  # noqa: BLE001  the other trials go on, whatever happened to this one
            raise_if_disk_is_full(error, sweep)
            reason, fix = explain(error)
            failure = reason.replace(str(folder / ARTIFACT), ARTIFACT), fix
        seconds = time.monotonic() - started
    return PartDelivery(answers, failure, seconds, tuple(warnings.lines))


def join_parts(assignment: Assignment, prepared: Parcel, answers: Sequence[PartAnswers], answered_s: float) -> Delivery:
    """Join the answers to all parts of the data to the evaluation of a trial: see `conclude_trial`.

    Raises:
        ArtifactError: the disk of the node is full.
    """
    trial = assignment.trial

    def work(tools: Tools, sweep: Path) -> Ended:
        prepared.unpack(sweep / TRIALS / trial.name)
        return Ended(conclude_trial(trial, sweep, tools, answers, answered_s))

    with machine_lock.shared():
        return _run(assignment, work, step="eval", known=prepared.digests)


def run_alone(assignment: Assignment, seconds: float) -> Delivery:
    """Run a whole trial, whose export measures time too, while nothing else runs on the machine.

    Raises:
        ArtifactError: the disk of the node is full.
    """
    with machine_lock.alone():
        return _run(assignment, lambda tools, sweep: run_trial(assignment.trial, sweep, tools, seconds))


def measure(assignment: Assignment, seconds: float, prepared: Parcel) -> Delivery:
    """Time a trial while nothing else runs on the machine. Only files that it changed are returned.

    Args:
        assignment: the trial.
        seconds: the time to measure.
        prepared: its folder.

    Raises:
        ArtifactError: the disk of the node is full.
    """
    trial = assignment.trial

    def work(tools: Tools, sweep: Path) -> Ended:
        prepared.unpack(sweep / TRIALS / trial.name)
        return Ended(time_trial(trial, sweep, tools, seconds))

    with machine_lock.alone():
        return _run(assignment, work, step="bench", known=prepared.digests)


def pass_to_host(assignment: Assignment, seconds: float, prepared: Parcel, settings: Mapping[str, str]) -> Delivery:
    """Let a host finish a trial that was exported for it, or time it again. This node does little but wait.

    Args:
        assignment: the trial, with its host.
        seconds: the time to measure.
        prepared: its folder.
        settings: environment variables of the command that ssh and its agent are found by.

    Raises:
        ArtifactError: the disk of the node is full.
        HostUnreachable: the host does not answer any more.
    """
    trial, host = assignment.trial, assignment.host
    assert host is not None

    def work(tools: Tools, sweep: Path) -> Ended:
        prepared.unpack(sweep / TRIALS / trial.name)
        record = TrialRecord.model_validate_json((sweep / TRIALS / trial.name / RECORD).read_bytes())
        return Ended((finish_trial if record.status == "bundle" else time_trial)(trial, sweep, tools, seconds, host))

    with _environment(settings):
        return _run(assignment, work, known=prepared.digests, checked=False)


@contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for the block. Ray gives the process other work afterwards."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _run(
    assignment: Assignment,
    work: Callable[[Tools, Path], Ended],
    *,
    step: str = "export",
    known: Mapping[str, str] | None = None,
    checked: bool = True,
) -> Delivery:
    trial = assignment.trial
    with _opened(assignment) as (tools, sweep, warnings):
        references = sweep / REFERENCES
        try:
            if checked:
                _check_place(assignment, tools.naming, tools.node)
        except (DataError, MeasureError) as error:
            ended = Ended(fail_trial(trial, sweep, step, error))
        else:
            ended = work(tools, sweep)
        new = {file.name: file.read_bytes() for file in references.iterdir() if file.name not in assignment.references}
        files = pack(sweep / TRIALS / trial.name, known)
    return Delivery(ended, files, new, tuple(warnings.lines))


@contextmanager
def _opened(assignment: Assignment) -> Iterator[tuple[Tools, Path, _Warnings]]:
    """Make what a part needs: its tools, a folder like that of a sweep, and a listener that keeps warnings."""
    warnings, here = _Warnings(), this_node()
    node = assignment.names.get(here, here)
    tools = Tools(
        progress=warnings,
        naming=_naming(assignment.machine),
        cache=GraphCache() if assignment.cached else None,
        node=node,
        fetch=lambda name: fetch(assignment.references[name]) if name in assignment.references else None,
    )
    with _folder(node) as sweep:
        (sweep / REFERENCES).mkdir()
        yield tools, sweep, warnings


@contextmanager
def _folder(node: str) -> Iterator[Path]:
    """Make a temporary folder, and remove those of killed parts. An error of a user names the node it is on."""
    with scratch_folder("sweep") as folder:
        try:
            yield folder
        except HostUnreachable:
            raise  # it is about the host, not about this node
        except VitdeployError as error:
            raise type(error)(f"on {node}: {error.message}", fix=error.fix) from error


@cache
def _naming(machine: str) -> Naming:
    """Return the names of this process, which serves one run of a sweep: each file is hashed once."""
    return Naming(machine)


def _check_place(assignment: Assignment, naming: Naming, node: str) -> None:
    """Check that the node is of the kind that the trial is named after, and has the same files.

    Raises:
        MeasureError: it is another kind of machine, or has other cores than it reported.
        DataError: a file or folder that the recipe names is another one here, or is missing.
    """
    here, trial = environment.host().machine, assignment.trial
    if here != assignment.machine:
        raise MeasureError(
            f"{node} is now a machine of kind {here}, not {assignment.machine}", fix="Start Ray there again."
        )
    _, setting = naming.name(trial.recipe, sources.short_name(trial.recipe.model.spec))
    if setting != trial.setting:
        raise DataError(
            f"a file or folder that the recipe names is missing on {node}, or is another one there",
            fix="Use a folder that all nodes share, or copy it with its times: rsync -a.",
        )
