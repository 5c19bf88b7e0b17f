"""The commands with `--host`: prepare here, run vitdeploy on the host, fetch the result and check it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from vitdeploy import artifact as artifacts
from vitdeploy import targets
from vitdeploy.artifact import MANIFEST, Artifact, file_digest
from vitdeploy.artifact.layout import FLIPS, GRAPH, SAMPLES, variant_graph
from vitdeploy.artifact.temporary import scratch_folder
from vitdeploy.commands.evaluate.evaluate import save_reference
from vitdeploy.commands.export import export
from vitdeploy.commands.export_order import Elsewhere
from vitdeploy.data.opening import comes_with_package
from vitdeploy.data.shard_files import find_shards
from vitdeploy.errors import DataError, RemoteError, TargetUnavailable
from vitdeploy.evidence import Audit, Bench, Eval
from vitdeploy.frozen import replace
from vitdeploy.pipeline.graph_cache import GraphCache
from vitdeploy.pipeline.summary import Exported
from vitdeploy.plain_files import expand_home
from vitdeploy.progress import Progress
from vitdeploy.recipe import Recipe
from vitdeploy.remote.messages import ClockSettings, Job, JobEnd, JobFile, Probe
from vitdeploy.remote.near.client import Device, ReportedError, client_name, job_file, parse_answer
from vitdeploy.remote.near.hosts import RemoteHost, find
from vitdeploy.remote.near.ssh import HostUnreachable, Link

__all__ = ["bench_on", "compile_on", "evaluate_on", "export_for", "find", "opponent_folder"]

_INTERRUPTED = 130
_OUT_OF_MEMORY = "; the system does that when memory runs out"
_FREE_MEMORY = "Free memory on the device or add swap, then run the command again."
Files = list[tuple[Path, JobFile]]
Flag = str | float | bool | Sequence[str] | None
"""The value of an option; a sequence repeats the option for each value."""


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
    with _device(host, progress) as (_, probe):
        _require(probe, recipe.target.kind, host, recipe.target.device)
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
    with _device(host, progress) as (device, probe):
        _require(probe, bundle.manifest.target.kind, host, bundle.manifest.target.device)
        files = _files_of(bundle, "bundle")
        words = ["compile", "bundle", "-o", "artifact", *_to_words(flags)]
        job, end = _run(device, words, files, source, host.clocks)
        replaces = bundle.digest if in_place else None
        with artifacts.atomic_folder(out or source, force=force or in_place, replaces=replaces) as folder:
            with _kept_there("compile"):
                device.fetch(job, "artifact", folder, known=[path for path, _ in files])
            _check_compiled(artifacts.load(folder), bundle, host)
        device.take(job)
    exported = parse_answer(Exported, end.result, host.name)
    notes = (*exported.notes, *end.notes, f"compiled on {_describe(host, probe)}")
    return replace(exported, artifact=str(out or source), seconds=_seconds_since(started), notes=notes, host=host.name)


def bench_on(
    host: RemoteHost,
    timed: Sequence[Artifact],
    progress: Progress,
    *,
    flags: Mapping[str, Flag] | None = None,
    opposing: Sequence[Artifact] = (),
) -> Bench:
    """Measure latency on the host and store it beside the artifacts here, as a bench here does.

    The host has no PyTorch, so there is no speed-up over it. `flags` are passed on to `bench` on the host, and the
    artifacts in `opposing` are sent as `opponent_folder(0)`, ….

    Raises:
        RemoteError: as `compile_on`.
    """
    names = [f"artifact{number}" for number in range(len(timed))]
    files = [file for artifact, name in zip(timed, names, strict=True) for file in _files_of(artifact, name)]
    for number, artifact in enumerate(opposing):
        files += _files_of(artifact, opponent_folder(number))
    with _device(host, progress) as (device, _):
        job, end = _run(device, ["bench", *names, *_to_words(flags)], files, timed[0].path, host.clocks)
        measured = [(timed[0], parse_answer(Bench, end.result, host.name))]
        others = dict(zip(names[1:], timed[1:], strict=True))
        measured += _fetch_benches(device, job, others, [path for path, _ in files], progress)
        for artifact, bench in measured:
            _check_subject(bench, artifact, host)
        device.take(job)
    # A note says that a power mode or clock was not set as asked, which makes the timing doubtful as well.
    stored = []
    for artifact, bench in measured:
        doubts = tuple(f"{host.name}: {doubt}" for doubt in (*bench.doubts, *end.notes))
        valid = bench.valid and not end.notes
        stored.append(artifact.write_evidence(replace(bench, valid=valid, doubts=doubts)))
    return stored[0]


def opponent_folder(number: int) -> str:
    """Return the name on the host of an artifact that is timed against."""
    return f"opponent{number}"


def evaluate_on(
    host: RemoteHost,
    artifact: Artifact,
    data: str | None,
    progress: Progress,
    *,
    limit: int | None = None,
    at_threshold: float | None = None,
) -> Eval:
    """Measure accuracy on the host, and store it beside the artifact here.

    The reference runs here, on the same samples.

    Raises:
        RemoteError: as `compile_on`.
        SourceError: the reference cannot be rebuilt here.
    """
    flags: dict[str, Flag] = {"limit": limit, "at_threshold": at_threshold}
    words = ["eval", "artifact", "--reference", "reference.npz", *_to_words(flags)]
    with _device(host, progress) as (device, _), scratch_folder("reference") as folder:
        reference = folder / "reference.npz"
        save_reference(artifact, data, reference, progress, limit=limit)
        spec = data or artifact.manifest.recipe.data.evaluation or ""
        remote_spec, data_files = _data_files(spec)
        files = [*_files_of(artifact, "artifact"), job_file(reference, "reference.npz"), *data_files]
        job, end = _run(device, [*words, "--data", remote_spec], files, artifact.path, ClockSettings())
        evaluation = parse_answer(Eval, end.result, host.name)
        _check_subject(evaluation, artifact, host)
        raw = _fetch_samples(device, job, [path for path, _ in files], evaluation, host)
        device.take(job)
    return artifact.write_evidence(replace(evaluation, data=spec), raw)


@contextmanager
def _device(host: RemoteHost, progress: Progress) -> Iterator[tuple[Device, Probe]]:
    with Link(host, progress) as link:
        device = Device(link, progress)
        with progress.step(f"Connect to {host.name}"):
            probe = device.probe()
        yield device, probe


def _require(probe: Probe, kind: str, host: RemoteHost, device: str | None = None) -> None:
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


def _run(device: Device, words: Sequence[str], files: Files, about: Path, clocks: ClockSettings) -> tuple[str, JobEnd]:
    """Send the files, start the job and follow it. Return its name and its end; raise if it failed."""
    device.send(files)
    job = Job(words=tuple(words), files=tuple(file for _, file in files), client=client_name(about), care=clocks)
    name = device.start(job)
    with _kept_there(words[0]):
        end = device.follow(name)
    if end.state == "done" and end.code == 0 and end.result is not None:
        return name, end
    device.take(name)  # so that the same command starts anew
    if end.state == "lost":
        with suppress(RemoteError):
            device.probe()  # restores the clocks that the lost job left changed
        if end.rebooted:
            raise RemoteError(f"{device.name} was restarted during the job", fix="Run the command again.")
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
        raise RemoteError(error.message, fix=fix) from None


def _to_words(flags: Mapping[str, Flag] | None) -> list[str]:
    """Write options as words, without those that are None or False.

    `--option=value` is one word, so a value that begins with a dash is not read as an option.
    """
    words = []
    for name, value in (flags or {}).items():
        option = f"--{name.replace('_', '-')}"
        if isinstance(value, bool) or value is None:
            words += [option] if value else []
        else:
            values = value if isinstance(value, (list, tuple)) else [value]
            words += [f"{option}={item}" for item in values]
    return words


def _files_of(artifact: Artifact, folder: str) -> Files:
    names = [MANIFEST, *(entry.path for entry in artifact.manifest.files)]
    return [job_file(artifact.file(name), f"{folder}/{name}") for name in names]


def _data_files(spec: str) -> tuple[str, Files]:
    """Return the host's name for DATA, and the files to send. Data that ships with vitdeploy needs no files."""
    path = expand_home(spec)
    if path.is_file():
        name = f"data{path.suffix}"
        return name, [job_file(path, name)]
    if path.is_dir():
        return "data", [job_file(file, f"data/{file.relative_to(path).as_posix()}") for file in _visible_files(path)]
    if comes_with_package(spec):
        return spec, []
    if shards := find_shards(spec):
        # Numbered, as a pattern may name files of one name in several folders, and in an order of its own.
        names = [f"data/{number:05}-{shard.name}" for number, shard in enumerate(shards)]
        return "data", [job_file(shard, name) for shard, name in zip(shards, names, strict=True)]
    raise DataError(f"{spec} cannot be sent: it is neither a file nor a folder", fix="Give a folder or an .npz.")


def _visible_files(folder: Path) -> Iterator[Path]:
    """List the files that a dataset in `folder` may read, also where a class is a symbolic link to another folder."""
    for entry in sorted(folder.iterdir()):
        if not entry.name.startswith("."):
            below = sorted(entry.rglob("*")) if entry.is_dir() else [entry]
            yield from (file for file in below if file.is_file() and not file.name.startswith("."))


def _check_compiled(compiled: Artifact, bundle: Artifact, host: RemoteHost) -> None:
    """Check that the artifact was made from the bundle that was sent."""
    sent, received = bundle.manifest, compiled.manifest
    digests = {entry.path: entry.sha256 for entry in received.files}
    graphs = {e.path: e.sha256 for e in sent.files if e.path.startswith("graph.") and e.path != GRAPH}
    same = all(digests.get(path) == sha256 for path, sha256 in graphs.items())
    # The device may have selected another variant, whose graph is then the one that was compiled.
    files = {variant.name: variant.files for variant in sent.variants}
    name = variant_graph(files.get(received.variant, "none")) if sent.variants else GRAPH
    selected = next((entry.sha256 for entry in sent.files if entry.path == name), None)
    same &= digests.get(GRAPH) == selected
    if received.stage != "artifact" or received.model.digest != sent.model.digest or not same:
        raise RemoteError(f"{host.name} sent back an artifact of another model", fix="Run the command again.")
    if compiled.read_evidence(Audit)[0] is None:
        raise RemoteError(f"{host.name} sent back an artifact without an audit", fix="Run the command again.")


def _fetch_samples(
    device: Device, job: str, known: Sequence[Path], evaluation: Eval, host: RemoteHost
) -> dict[str, bytes]:
    """Fetch the outcomes of the samples and the pictures of flips, which the evaluation names."""
    files = {SAMPLES: evaluation.samples} | ({FLIPS: evaluation.thumbnails} if evaluation.thumbnails else {})
    with scratch_folder("reference") as folder:
        device.fetch(job, "artifact", folder, known=known)
        for name, digest in files.items():
            if not (folder / name).is_file() or file_digest(folder / name) != digest:
                raise RemoteError(
                    f"{host.name} sent back an evaluation without its samples", fix=f"Update vitdeploy on {host.name}."
                )
        return {name: (folder / name).read_bytes() for name in files}


def _fetch_benches(
    device: Device, job: str, others: Mapping[str, Artifact], known: Sequence[Path], progress: Progress
) -> list[tuple[Artifact, Bench]]:
    """Fetch the benches that were stored beside further artifacts there; one that is missing gives a warning.

    Args:
        device: the device, after the job.
        job: its name.
        others: name of the folder there -> the artifact here.
        known: the files that were sent.
        progress: gets the warnings.
    """
    benches = []
    with scratch_folder("bench") as folder:
        for name, artifact in others.items():
            (folder / name).mkdir()
            device.fetch(job, name, folder / name, known=known)
            bench, reason = artifacts.load(folder / name).read_evidence(Bench)
            if bench is None:
                progress.warn(f"not stored beside {artifact.path}: {reason}")
            else:
                benches.append((artifact, bench))
    return benches


def _check_subject(evidence: Bench | Eval, artifact: Artifact, host: RemoteHost) -> None:
    if evidence.manifest != artifact.digest:
        raise RemoteError(f"{host.name} measured another artifact than the one sent", fix="Run the command again.")


def _seconds_since(started: float) -> float:
    return round(time.monotonic() - started, 1)


def _describe(host: RemoteHost, probe: Probe) -> str:
    return f"{host.name} ({probe.condition.module or probe.doctor.host.cpu})"
