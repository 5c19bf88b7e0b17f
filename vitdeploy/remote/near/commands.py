"""What `--host` does for each command: prepare here, run vitdeploy there, bring the result back and check it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from vitdeploy import artifact as artifacts
from vitdeploy import targets
from vitdeploy.artifact import MANIFEST, Artifact
from vitdeploy.commands.evaluate.evaluate import save_reference
from vitdeploy.commands.export import Elsewhere, export
from vitdeploy.data.opening import comes_with_package
from vitdeploy.errors import DataError, RemoteError, TargetUnavailable
from vitdeploy.evidence import Audit, Bench, Eval
from vitdeploy.frozen import replace
from vitdeploy.pipeline.finish import Exported
from vitdeploy.pipeline.graph_cache import GraphCache
from vitdeploy.progress import Progress
from vitdeploy.recipe import Recipe
from vitdeploy.remote.messages import Care, Ended, Job, Placed, Probe
from vitdeploy.remote.near.client import Device, client_name, placed
from vitdeploy.remote.near.hosts import Host, find
from vitdeploy.remote.near.ssh import Link

__all__ = ["bench_on", "compile_on", "evaluate_on", "export_for", "find"]

_INTERRUPTED = 130
Files = list[tuple[Path, Placed]]
Flag = str | float | bool | Sequence[str] | None
"""The value of an option; several are the option again and again."""


def export_for(
    host: Host,
    recipe: Recipe,
    out: Path,
    progress: Progress,
    *,
    force: bool = False,
    verify: bool = False,
    cache: GraphCache | None = None,
    dumps: Path | None = None,
) -> Exported:
    """Export here, compile there. When the host fails, the bundle stays and can be compiled later.

    Raises:
        TargetUnavailable: the target is not on that host; said before the minutes of exporting.
    """
    started = time.monotonic()
    artifacts.refuse_existing(out, force=force)
    with _device(host, progress) as (_, probe):
        _require(probe, recipe.target.kind, host)
    there = Elsewhere(host.name, probe.doctor.host)
    bundle = export(recipe, out, progress, force=force, verify=verify, elsewhere=there, cache=cache, dumps=dumps)
    try:
        compiled = compile_on(host, bundle.artifact, None, progress)
    except RemoteError as error:
        raise RemoteError(
            error.message, fix=f"{error.fix} The bundle is whole: vitdeploy compile {out} --host {host.name}"
        ) from None
    notes = tuple(dict.fromkeys((*bundle.summary.notes, *compiled.notes)))
    return replace(compiled, seconds=_since(started), notes=notes)


def compile_on(
    host: Host,
    bundle: Artifact,
    out: Path | None,
    progress: Progress,
    *,
    force: bool = False,
    flags: Mapping[str, Flag] | None = None,
) -> Exported:
    """Compile a bundle on the host; the artifact comes back in the bundle's place unless `out` names another.

    `flags` are those of `compile` that decide what is done there.

    Raises:
        RemoteError: the host cannot be reached, or it failed there; nothing here has changed.
    """
    started = time.monotonic()
    source = bundle.path
    in_place = out is None or out.absolute() == source.absolute()
    if not in_place:
        artifacts.refuse_existing(out or source, force=force)
    with _device(host, progress) as (device, probe):
        _require(probe, bundle.manifest.target.kind, host)
        files = _files_of(bundle, "bundle")
        words = ["compile", "bundle", "-o", "artifact", *_words(flags)]
        job, ended = _run(device, words, files, source, host.care)
        with artifacts.staged(out or source, force=force or in_place) as folder:
            device.fetch(job, "artifact", folder, known=[path for path, _ in files])
            _check_compiled(artifacts.load(folder), bundle, host)
        device.take(job)
    exported = Exported.model_validate(ended.result)
    about = (*exported.notes, *ended.notes, f"compiled on {_named(host, probe)}")
    return replace(exported, artifact=str(out or source), seconds=_since(started), notes=about, host=host.name)


def bench_on(
    host: Host, timed: Sequence[Artifact], progress: Progress, *, flags: Mapping[str, Flag] | None = None
) -> Bench:
    """Latency on the host, stored beside the first artifact here. Without PyTorch there is no speed-up, and it says so.

    `flags` are those of `bench` that decide what is done there.

    Raises:
        RemoteError: as `compile_on`.
    """
    names = [f"artifact{number}" for number in range(len(timed))]
    files = [file for artifact, name in zip(timed, names, strict=True) for file in _files_of(artifact, name)]
    with _device(host, progress) as (device, _):
        job, ended = _run(device, ["bench", *names, *_words(flags)], files, timed[0].path, host.care)
        found = Bench.model_validate(ended.result)
        _check_about(found, timed[0], host)
        device.take(job)
    # A clock that was to be locked and is not is a doubt as well.
    doubts = tuple(f"{host.name}: {doubt}" for doubt in (*found.doubts, *ended.notes))
    return timed[0].write_evidence(replace(found, valid=found.valid and not ended.notes, doubts=doubts))


def evaluate_on(
    host: Host, artifact: Artifact, data: str | None, progress: Progress, *, limit: int | None = None
) -> Eval:
    """Accuracy on the host against the reference, which answers the same samples here; stored beside the artifact here.

    Raises:
        RemoteError: as `compile_on`.
        SourceError: the reference cannot be rebuilt here.
    """
    words = ["eval", "artifact", "--reference", "reference.npz", *_words({"limit": limit})]
    with _device(host, progress) as (device, _), tempfile.TemporaryDirectory() as folder:
        reference = Path(folder) / "reference.npz"
        save_reference(artifact, data, reference, progress, limit=limit)
        spec = data or artifact.manifest.recipe.data.evaluation or ""
        there, labelled = _data(spec)
        files = [*_files_of(artifact, "artifact"), placed(reference, "reference.npz"), *labelled]
        job, ended = _run(device, [*words, "--data", there], files, artifact.path, Care())
        found = Eval.model_validate(ended.result)
        _check_about(found, artifact, host)
        device.take(job)
    return artifact.write_evidence(replace(found, data=spec))


@contextmanager
def _device(host: Host, progress: Progress) -> Iterator[tuple[Device, Probe]]:
    with Link(host, progress) as link:
        device = Device(link, progress)
        with progress.step(f"Look at {host.name}"):
            probe = device.probe()
        yield device, probe


def _require(probe: Probe, kind: str, host: Host) -> None:
    target = probe.doctor.targets.get(kind)
    if target is None or not target.available:
        why, fix = (target.why, target.fix) if target else ("it does not know this target", "Update vitdeploy there.")
        there = f"There: {targets.kind_of(kind).install_hint or fix}"
        raise TargetUnavailable(f'{host.name} cannot compile for {kind}: it says "{why}"', fix=there)


def _run(device: Device, words: Sequence[str], files: Files, about: Path, care: Care) -> tuple[str, Ended]:
    """Send, start, follow; what failed there fails here."""
    device.send(files)
    job = Job(words=tuple(words), files=tuple(file for _, file in files), client=client_name(about), care=care)
    name = device.start(job)
    ended = device.follow(name)
    if ended.state == "done" and ended.code == 0 and ended.result is not None:
        return name, ended
    device.take(name)  # the next time it starts anew
    if ended.state == "lost":
        with suppress(RemoteError):
            device.probe()  # which sets back the clocks that the job could not
        why = "the device was restarted" if ended.rebooted else "the process was killed, as when memory runs out"
        fix = "Run the command again." if ended.rebooted else "Free memory there or add swap, then run it again."
        raise RemoteError(f"{device.name} lost the job: {why}", fix=fix)
    if ended.code == _INTERRUPTED:
        raise RemoteError(f"the job was interrupted on {device.name}", fix="Run the command again.")
    if (ended.code or 0) < 0:
        raise RemoteError(
            f"`{words[0]}` was killed on {device.name} (signal {-(ended.code or 0)}), as when memory runs out",
            fix="Free memory there or add swap, then run it again.",
        )
    told: dict[str, Any] = (ended.result or {}).get("error", {})
    raise RemoteError(
        f"{device.name}: {told.get('message', f'`vitdeploy {words[0]}` ended with exit code {ended.code}')}",
        fix=told.get("fix", "Run it there by hand."),
    )


def _words(flags: Mapping[str, Flag] | None) -> list[str]:
    """Options as words: what is None or False is left out, and what begins with a dash is no option of its own."""
    words = []
    for name, value in (flags or {}).items():
        option = f"--{name.replace('_', '-')}"
        if isinstance(value, bool) or value is None:
            words += [option] if value else []
        else:
            several = value if isinstance(value, (list, tuple)) else [value]
            words += [f"{option}={one}" for one in several]
    return words


def _files_of(artifact: Artifact, folder: str) -> Files:
    names = [MANIFEST, *(entry.path for entry in artifact.manifest.files)]
    return [placed(artifact.file(name), f"{folder}/{name}") for name in names]


def _data(spec: str) -> tuple[str, Files]:
    """What DATA is called there, and the files it is made of; what ships with vitdeploy is there already."""
    path = Path(spec).expanduser()
    if path.is_file():
        name = f"data{path.suffix}"
        return name, [placed(path, name)]
    if path.is_dir():
        return "data", [placed(file, f"data/{file.relative_to(path).as_posix()}") for file in _seen(path)]
    if comes_with_package(spec):
        return spec, []
    raise DataError(f"{spec} cannot be sent: it is neither a file nor a folder", fix="Give a folder or an .npz.")


def _seen(folder: Path) -> Iterator[Path]:
    """The files that a dataset in this folder may be made of, also where a class is a link to a folder elsewhere."""
    for entry in sorted(folder.iterdir()):
        if not entry.name.startswith("."):
            below = sorted(entry.rglob("*")) if entry.is_dir() else [entry]
            yield from (file for file in below if file.is_file() and not file.name.startswith("."))


def _check_compiled(compiled: Artifact, bundle: Artifact, host: Host) -> None:
    """What came back was made from what was sent."""
    asked, got = bundle.manifest, compiled.manifest
    graph = {entry.path: entry.sha256 for entry in asked.files if entry.path.startswith("graph.onnx")}
    returned = {entry.path: entry.sha256 for entry in got.files}
    same = all(returned.get(path) == sha256 for path, sha256 in graph.items())
    if got.stage != "artifact" or got.model.digest != asked.model.digest or not same:
        raise RemoteError(f"{host.name} sent back another model", fix="Run the command again.")
    if compiled.read_evidence(Audit)[0] is None:
        raise RemoteError(f"{host.name} sent back no audit", fix="Run the command again.")


def _check_about(found: Bench | Eval, artifact: Artifact, host: Host) -> None:
    if found.manifest != artifact.digest:
        raise RemoteError(f"{host.name} measured another artifact", fix="Run the command again.")


def _since(started: float) -> float:
    return round(time.monotonic() - started, 1)


def _named(host: Host, probe: Probe) -> str:
    return f"{host.name} ({probe.condition.module or probe.doctor.host.cpu})"
