"""The commands with `--host`: prepare here, run vitdeploy on the host, fetch the result and check it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from vitdeploy import artifact as artifacts
from vitdeploy import targets
from vitdeploy.artifact import Artifact
from vitdeploy.artifact.temporary import scratch_folder
from vitdeploy.commands.evaluate.evaluate import save_reference
from vitdeploy.commands.export import export
from vitdeploy.commands.export_order import Elsewhere
from vitdeploy.errors import HostUnreachable, RemoteError, TargetUnavailable
from vitdeploy.evidence import Bench, Eval
from vitdeploy.frozen import replace
from vitdeploy.pipeline.graph_cache import GraphCache
from vitdeploy.pipeline.summary import Exported
from vitdeploy.progress import Progress
from vitdeploy.recipe import Recipe
from vitdeploy.remote.messages import ClockSettings, Job, JobEnd, Probe
from vitdeploy.remote.near.client import Device, ReportedError, client_name, job_file, parse_answer
from vitdeploy.remote.near.hosts import RemoteHost, find
from vitdeploy.remote.near.results import (
    check_compiled,
    check_subject,
    fetch_benches,
    fetch_samples,
    forgotten_if_refused,
)
from vitdeploy.remote.near.sending import Files, Flag, data_files, files_of, opponent_folder, to_words
from vitdeploy.remote.near.ssh import Link
from vitdeploy.version import __version__

__all__ = [
    "Caller",
    "Flag",
    "bench_on",
    "compile_on",
    "connected",
    "evaluate_on",
    "export_for",
    "find",
    "opponent_folder",
    "require",
]

_INTERRUPTED = 130
_OUT_OF_MEMORY = "; the system does that when memory runs out"
_FREE_MEMORY = "Free memory on the device or add swap, then run the command again."


@dataclass(frozen=True)
class Caller:
    """The caller of a host.

    Attributes:
        folder: the host knows the job by it: the same command for the same folder gets the result of a job that still
            runs. None: the folder of the artifact.
        check: gets what the host reports at each connection, and may refuse it.
        patient: try for minutes to connect, because the host has answered before.
    """

    folder: Path | None = None
    check: Callable[[Probe], None] = lambda _: None
    patient: bool = False


COMMAND = Caller()
"""A command of a user, who is told at once that a host does not answer."""


def export_for(
    host: RemoteHost,
    recipe: Recipe,
    out: Path,
    progress: Progress,
    *,
    force: bool = False,
    verify: bool = False,
    cache: GraphCache | None = None,
    dumps: Path | None = None,
) -> Exported:
    """Export here, compile on the host. If the host fails, the bundle stays and can be compiled later.

    Raises:
        TargetUnavailable: the target is not on that host; checked before the export, which takes minutes.
        RemoteError: the host cannot be reached, or it failed; the fix says how to compile the bundle later.
    """
    started = time.monotonic()
    artifacts.refuse_existing(out, force=force)
    with connected(host, progress) as (_, probe):
        require(probe, recipe.target.kind, host, recipe.target.device)
    elsewhere = Elsewhere(host.name, probe.doctor.host)
    bundle = export(recipe, out, progress, force=force, verify=verify, elsewhere=elsewhere, cache=cache, dumps=dumps)
    try:
        compiled = compile_on(host, bundle.artifact, None, progress)
    except RemoteError as error:
        raise RemoteError(
            error.message,
            fix=f"{error.fix} The export itself is complete. To compile it later: "
            f"vitdeploy compile {out} --host {host.name}",
        ) from None
    notes = tuple(dict.fromkeys((*bundle.summary.notes, *compiled.notes)))
    return replace(compiled, seconds=_seconds_since(started), notes=notes)


def compile_on(
    host: RemoteHost,
    bundle: Artifact,
    out: Path | None,
    progress: Progress,
    *,
    force: bool = False,
    flags: Mapping[str, Flag] | None = None,
    caller: Caller = COMMAND,
) -> Exported:
    """Compile a bundle on the host. The artifact replaces the bundle here, or becomes the folder `out`.

    `flags` are passed on to `compile` on the host.

    Raises:
        RemoteError: the host cannot be reached, or it failed; nothing here has changed.
        TargetUnavailable: the target is not on that host.
    """
    started = time.monotonic()
    source = bundle.path
    in_place = out is None or out.absolute() == source.absolute()
    if not in_place:
        artifacts.refuse_existing(out or source, force=force)
    with connected(host, progress, caller) as (device, probe):
        require(probe, bundle.manifest.target.kind, host, bundle.manifest.target.device)
        files = files_of(bundle, "bundle")
        words = ["compile", "bundle", "-o", "artifact", *to_words(flags)]
        job, end = _run(device, probe, words, files, caller.folder or source, host.clocks)
        with forgotten_if_refused(device, job):
            exported = parse_answer(Exported, end.result, host.name)
        replaces = bundle.digest if in_place else None
        with artifacts.atomic_folder(out or source, force=force or in_place, replaces=replaces) as folder:
            with _kept_there("compile"):
                device.fetch(job, "artifact", folder, known=[path for path, _ in files])
            with forgotten_if_refused(device, job):
                check_compiled(artifacts.load(folder), bundle, host)
        device.take(job)
    notes = (*exported.notes, *end.notes, f"compiled on {_describe(host, probe)}")
    return replace(exported, artifact=str(out or source), seconds=_seconds_since(started), notes=notes, host=host.name)


def bench_on(
    host: RemoteHost,
    timed: Sequence[Artifact],
    progress: Progress,
    *,
    flags: Mapping[str, Flag] | None = None,
    opposing: Sequence[Artifact] = (),
    caller: Caller = COMMAND,
) -> Bench:
    """Measure latency on the host and store it beside the artifacts here, as a bench here does.

    The host has no PyTorch, so there is no speed-up over it. `flags` are passed on to `bench` on the host, and the
    artifacts in `opposing` are sent as `opponent_folder(0)`, ….

    Raises:
        RemoteError: as `compile_on`.
    """
    names = [f"artifact{number}" for number in range(len(timed))]
    files = [file for artifact, name in zip(timed, names, strict=True) for file in files_of(artifact, name)]
    for number, artifact in enumerate(opposing):
        files += files_of(artifact, opponent_folder(number))
    with connected(host, progress, caller) as (device, probe):
        words = ["bench", *names, *to_words(flags)]
        job, end = _run(device, probe, words, files, caller.folder or timed[0].path, host.clocks)
        with forgotten_if_refused(device, job):
            measured = [(timed[0], parse_answer(Bench, end.result, host.name))]
        others = dict(zip(names[1:], timed[1:], strict=True))
        measured += fetch_benches(device, job, others, [path for path, _ in files], progress)
        with forgotten_if_refused(device, job):
            for artifact, bench in measured:
                check_subject(bench, artifact, host)
        # A note says that a power mode or clock was not set as asked, which makes the timing doubtful as well.
        stored = []
        for artifact, bench in measured:
            doubts = tuple(f"{host.name}: {doubt}" for doubt in (*bench.doubts, *end.notes))
            valid = bench.valid and not end.notes
            stored.append(artifact.write_evidence(replace(bench, valid=valid, doubts=doubts)))
        device.take(job)
    return stored[0]


def evaluate_on(
    host: RemoteHost,
    artifact: Artifact,
    data: str | None,
    progress: Progress,
    *,
    limit: int | None = None,
    at_threshold: float | None = None,
    reference: Path | None = None,
    caller: Caller = COMMAND,
) -> Eval:
    """Measure accuracy on the host, and store it beside the artifact here.

    The reference runs here, on the same samples, unless `reference` is a file with its answers.

    Raises:
        RemoteError: as `compile_on`.
        SourceError: the reference cannot be rebuilt here.
    """
    flags: dict[str, Flag] = {"limit": limit, "at_threshold": at_threshold}
    words = ["eval", "artifact", "--reference", "reference.npz", *to_words(flags)]
    with connected(host, progress, caller) as (device, probe), scratch_folder("reference") as folder:
        if reference is None:
            reference = folder / "reference.npz"
            save_reference(artifact, data, reference, progress, limit=limit)
        spec = data or artifact.manifest.recipe.data.evaluation or ""
        remote_spec, sent = data_files(spec)
        files = [*files_of(artifact, "artifact"), job_file(reference, "reference.npz"), *sent]
        words += ["--data", remote_spec]
        job, end = _run(device, probe, words, files, caller.folder or artifact.path, ClockSettings())
        with forgotten_if_refused(device, job):
            evaluation = parse_answer(Eval, end.result, host.name)
            check_subject(evaluation, artifact, host)
        raw = fetch_samples(device, job, [path for path, _ in files], evaluation, host)
        stored = artifact.write_evidence(replace(evaluation, data=spec), raw)
        device.take(job)
    return stored


@contextmanager
def connected(host: RemoteHost, progress: Progress, caller: Caller = COMMAND) -> Iterator[tuple[Device, Probe]]:
    """Connect to a host for the block, and ask for its state."""
    with Link(host, progress, patient=caller.patient) as link:
        device = Device(link, progress)
        with progress.step(f"Connect to {host.name}"):
            probe = device.probe()
        caller.check(probe)
        yield device, probe


def require(probe: Probe, kind: str, host: RemoteHost, device: str | None = None) -> None:
    """Check that a host can compile for a target.

    Raises:
        TargetUnavailable: it cannot; the reason is what it reports itself.
    """
    target = probe.doctor.devices.get(kind, {}).get((device or "").lower()) or probe.doctor.targets.get(kind)
    if target is None:
        raise TargetUnavailable(
            f"the vitdeploy on {host.name} does not know the target {kind}", fix=f"Update vitdeploy on {host.name}."
        )
    if not target.available and target is not probe.doctor.targets.get(kind):
        to_install = target.fix.startswith("pip ")
        raise TargetUnavailable(
            f'{host.name} cannot run {kind} on {device}; it reports: "{target.why}"',
            fix=f"On {host.name}: {target.fix}" if to_install else "Choose another host or another --device.",
        )
    if not target.available:
        on_a_jetson = probe.doctor.host.jetpack is not None  # its own words are about itself
        hint = target.fix if on_a_jetson else targets.kind_of(kind).install_hint or target.fix
        raise TargetUnavailable(
            f'{host.name} cannot compile for {kind}; it reports: "{target.why}"',
            fix=f"On {host.name}: {hint}",
        )


def _run(
    device: Device, probe: Probe, words: Sequence[str], files: Files, folder: Path, clocks: ClockSettings
) -> tuple[str, JobEnd]:
    """Send the files, start the job and follow it. Return its name and its end; raise if it failed."""
    device.send(files)
    job = Job(
        words=tuple(words),
        files=tuple(file for _, file in files),
        client=client_name(folder),
        care=clocks,
        versions={"near": __version__, **dict(sorted(probe.doctor.libraries.items()))},
        attempt=uuid.uuid4().hex,
    )
    with device.cancelling(job):
        name = device.start(job)
        with _kept_there(words[0]):
            end = device.follow(name)
    if end.state == "done" and end.code == 0 and end.result is not None:
        return name, end
    device.take(name)  # so that the same command starts anew
    if end.state == "lost":
        free_gib = None
        with suppress(RemoteError):
            free_gib = device.probe().condition.disk_free_gib  # it also restores the clocks that the job left changed
        if end.rebooted:
            raise RemoteError(f"{device.name} was restarted during the job", fix="Run the command again.")
        if free_gib == 0:
            raise RemoteError(
                f"the disk of {device.name} is full, so the job could not write how it ended",
                fix=f"Free some space: vitdeploy hosts {device.name} --clean.",
            )
        raise RemoteError(f"the job was killed on {device.name}{_OUT_OF_MEMORY}", fix=_FREE_MEMORY)
    if end.code == _INTERRUPTED:
        raise RemoteError(f"the job was interrupted on {device.name}", fix="Run the command again.")
    if end.code is not None and end.code < 0:
        raise RemoteError(
            f"`{words[0]}` was killed on {device.name} by signal {-end.code}{_OUT_OF_MEMORY}", fix=_FREE_MEMORY
        )
    ended = {"message": f"`vitdeploy {words[0]}` ended with exit code {end.code}"}
    error = parse_answer(ReportedError, (end.result or {}).get("error", ended), device.name)
    raise RemoteError(f"{device.name}: {error.message}", fix=error.fix)


@contextmanager
def _kept_there(command: str) -> Iterator[None]:
    """Add to the error of a lost host that its job goes on, and how to get the result."""
    try:
        yield
    except HostUnreachable as error:
        fix = f"{error.fix.rstrip('.')}. The job goes on there; the same `vitdeploy {command}` fetches its result."
        raise HostUnreachable(error.message, fix=fix) from None


def _seconds_since(started: float) -> float:
    return round(time.monotonic() - started, 1)


def _describe(host: RemoteHost, probe: Probe) -> str:
    return f"{host.name} ({probe.condition.module or probe.doctor.host.cpu})"
