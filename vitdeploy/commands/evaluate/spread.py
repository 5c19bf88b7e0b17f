"""An evaluation in parts on the nodes of a Ray cluster, with the result of a serial one.

Each node opens both models and the data, and answers the samples at some places of the data's fixed order. The parts
are joined in that order.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from vitdeploy import artifact as artifacts
from vitdeploy import environment, machine_lock, sources
from vitdeploy.artifact import Artifact
from vitdeploy.cluster import Cluster, NodeRequest, connect
from vitdeploy.commands.evaluate.answered import AnsweredPart, open_sides
from vitdeploy.commands.evaluate.labelled import open_labelled
from vitdeploy.commands.evaluate.parts import SamplePart, SamplePlaces, merge
from vitdeploy.commands.evaluate.units import unit_size
from vitdeploy.data.dataset import Dataset, refuse_damage
from vitdeploy.data.opening import comes_with_package
from vitdeploy.errors import MeasureError, RemoteError
from vitdeploy.plain_files import expand_home
from vitdeploy.progress import Progress, Silent

_SHARED = "Put the artifact and the data into folders that all nodes have under the same path."


def answer_on_cluster(
    address: str, artifact: Artifact, dataset: Dataset, limit: int | None, progress: Progress
) -> AnsweredPart:
    """Let the nodes of a cluster answer all samples.

    Only nodes of this machine's kind take part: another CPU rounds otherwise, and evidence names one kind.

    Raises:
        RemoteError: the cluster does not answer, or has no node of this kind.
        MeasureError: nodes have other data, or other numbers of threads.
    """
    count = min(len(dataset), limit or len(dataset))
    with connect(address, progress) as cluster:
        request = _make_request(cluster)
        places = split(count, unit_size(artifact.manifest), cluster.count_slots(request))
        with progress.step(f"Evaluate on {dataset.spec} in {len(places)} parts", count) as advance:
            shared = cluster.share(_detach(artifact))
            setting = (_anchor(dataset.spec), dataset.digest, count)
            answers: dict[int, AnsweredPart] = {}
            calls = ((shared, place, *setting) for place in places)
            for number, answered in cluster.run(answer_there, calls, request):
                answers[number] = answered
                advance((places[number].stop or count) - places[number].start)
            ordered = [answers[number] for number in range(len(places))]
            place = find_rest(places, ordered, limit, len(dataset))
            if place is not None:
                ordered[-1:] = [each for _, each in cluster.run(answer_there, [(shared, place, *setting)], request)]
    return join(ordered, dataset)


def split(count: int, unit: int, parts: int) -> list[SamplePlaces]:
    """Split places into parts of whole units, as equal as possible."""
    units = -(-count // unit)
    parts = max(1, min(parts, units))
    starts = [unit * (number * units // parts) for number in range(parts)]
    return [SamplePlaces(start, stop) for start, stop in zip(starts, [*starts[1:], count], strict=True)]


def find_rest(
    places: Sequence[SamplePlaces], answers: Sequence[AnsweredPart], limit: int | None, available: int
) -> SamplePlaces | None:
    """Return the place to answer instead of the last one, if damaged images leave fewer samples than the limit.

    A serial evaluation reads on until it has answered as many. None if nothing is to be done.
    """
    parts = [each.part for each in answers]
    if limit is None or limit >= available or all(part is not None and not part.skipped for part in parts):
        return None
    before = sum(len(part) for part in parts[:-1] if part is not None)
    return SamplePlaces(places[-1].start, None, limit - before)


def join(answers: Sequence[AnsweredPart], dataset: Dataset) -> AnsweredPart:
    """Return the answers to all parts as one.

    Raises:
        DataError: too many images of the parts together are damaged.
        MeasureError: nodes ran with different numbers of threads.
    """
    threads = {each.threads for each in answers if each.part is not None}
    if len(threads) > 1:
        listed = ", ".join(sorted(map(str, threads)))
        raise MeasureError(f"nodes ran the artifact with different threads: {listed}", fix="Give nodes equal cores.")
    parts: list[SamplePart] = [each.part for each in answers if each.part is not None]
    skipped = tuple(message for each in answers for message in each.skipped)
    whole = replace(merge(parts), skipped=skipped)
    for number in range(len(whole.skipped)):  # the message is that of a serial evaluation
        refuse_damage(dataset.spec, whole.skipped[: number + 1], len(dataset))
    first = next((each for each in answers if each.part is not None), answers[0])
    return replace(first, part=whole, other_pixels=sum(each.other_pixels for each in answers), skipped=skipped)


def answer_there(artifact: Artifact, place: SamplePlaces, data: str, digest: str, count: int) -> AnsweredPart:
    """Answer a part of the data, on a node.

    Args:
        artifact: the artifact, at a path that this node has too.
        place: the part.
        data: DATA, with an absolute path.
        digest: of the data.
        count: the number of samples of the whole evaluation.

    Raises:
        RemoteError: the artifact is not on this node.
        MeasureError: this node has other data or another artifact.
    """
    where = environment.host().machine
    if not artifact.path.is_dir():
        raise RemoteError(f"a node ({where}) has no folder {artifact.path}", fix=_SHARED)
    here = replace(artifacts.load(artifact.path), model=artifact.model)
    task, dataset = open_labelled(here, data)
    if here.digest != artifact.digest or dataset.digest != digest:
        what = "artifact" if here.digest != artifact.digest else "data"
        raise MeasureError(f"a node ({where}) has another {what} at the same path", fix=_SHARED)
    with machine_lock.shared(), ExitStack() as stack:  # not beside a measurement on the same machine
        sides = open_sides(stack, here, task, dataset, count, Silent())
        return sides.answer(task, dataset, here.manifest, place, lambda _: None)


def _make_request(cluster: Cluster) -> NodeRequest:
    """Return a request for whole nodes of this machine's kind, as both models use all cores."""
    machine = environment.host().machine
    nodes = [node for node in cluster.alive() if node.host.machine == machine]
    if not nodes:
        raise RemoteError(
            f"no node of the cluster is a machine like this one ({machine})",
            fix="Run the command on a machine of the kind that is to be evaluated on.",
        )
    return NodeRequest(cpus=min(node.cpus for node in nodes), nodes=tuple(node.id for node in nodes))


def _detach(artifact: Artifact) -> Artifact:
    """Return an artifact with absolute paths: nodes have other working directories."""
    model = artifact.model
    if model is not None:
        model = model.model_copy(update={"spec": sources.anchor(model.spec, Path.cwd())})
    return replace(artifact, path=artifact.path.absolute(), evidence_folder=None, model=model)


def _anchor(spec: str) -> str:
    return spec if comes_with_package(spec) else str(Path(expand_home(spec)).absolute())
