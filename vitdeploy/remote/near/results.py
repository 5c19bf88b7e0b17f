"""Results of a host: fetched, and checked to be about the artifact that was sent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from vitdeploy import artifact as artifacts
from vitdeploy.artifact import Artifact, file_digest
from vitdeploy.artifact.layout import FLIPS, GRAPH, SAMPLES, variant_graph
from vitdeploy.artifact.temporary import scratch_folder
from vitdeploy.errors import ArtifactError, RemoteError
from vitdeploy.evidence import Audit, Bench, Eval
from vitdeploy.progress import Progress
from vitdeploy.remote.near.client import Device
from vitdeploy.remote.near.hosts import RemoteHost


@contextmanager
def forgotten_if_refused(device: Device, job: str) -> Iterator[None]:
    """Let the device forget the result that the block checks and refuses: else the same command would get it again."""
    try:
        yield
    except (ArtifactError, RemoteError):
        device.take(job)
        raise


def check_compiled(compiled: Artifact, bundle: Artifact, host: RemoteHost) -> None:
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


def fetch_samples(
    device: Device, job: str, known: Sequence[Path], evaluation: Eval, host: RemoteHost
) -> dict[str, bytes]:
    """Fetch the outcomes of the samples and the pictures of flips, which the evaluation names."""
    files = {SAMPLES: evaluation.samples} | ({FLIPS: evaluation.thumbnails} if evaluation.thumbnails else {})
    with scratch_folder("reference") as folder:
        device.fetch(job, "artifact", folder, known=known)
        with forgotten_if_refused(device, job):
            for name, digest in files.items():
                if not (folder / name).is_file() or file_digest(folder / name) != digest:
                    raise RemoteError(
                        f"{host.name} sent back an evaluation without its samples",
                        fix=f"Update vitdeploy on {host.name}.",
                    )
        return {name: (folder / name).read_bytes() for name in files}


def fetch_benches(
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
            with forgotten_if_refused(device, job):
                bench, reason = artifacts.load(folder / name).read_evidence(Bench)
            if bench is None:
                progress.warn(f"not stored beside {artifact.path}: {reason}")
            else:
                benches.append((artifact, bench))
    return benches


def check_subject(evidence: Bench | Eval, artifact: Artifact, host: RemoteHost) -> None:
    """Check that evidence is about the artifact that was sent.

    Raises:
        RemoteError: it is about another one.
    """
    if evidence.manifest != artifact.digest:
        raise RemoteError(f"{host.name} measured another artifact than the one sent", fix="Run the command again.")
