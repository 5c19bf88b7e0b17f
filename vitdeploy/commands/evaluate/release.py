"""Two artifacts with different weights on the same samples: a retrained model against the one before."""

from __future__ import annotations

import fnmatch
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace as change
from pathlib import Path
from typing import Any

import numpy as np

from vitdeploy.artifact import Artifact
from vitdeploy.artifact.layout import RELEASE_SAMPLES
from vitdeploy.commands.evaluate.labelled import open_labelled
from vitdeploy.commands.evaluate.sides import RunningSide
from vitdeploy.commands.evaluate.units import batch_size
from vitdeploy.data.class_names import ClassNames, are_made_up
from vitdeploy.data.dataset import Dataset, NamedBatch, named_batches
from vitdeploy.data.text_file import parse_text, read_text
from vitdeploy.errors import DataError, MeasureError, UsageError
from vitdeploy.evidence import Release
from vitdeploy.measure.accuracy import pair_outcomes
from vitdeploy.measure.samples import Outcomes, find_distinct, pack, select
from vitdeploy.progress import Progress
from vitdeploy.runtime.artifact_session import open_session
from vitdeploy.runtime.provenance import describe_provenance
from vitdeploy.session import Array
from vitdeploy.tasks import Task, Values, class_name
from vitdeploy.verdict import compare_releases, explain_calibrated

_SHOWN = 20
_TURN_IMAGES = 32  # one side answers them, then the other: see `sides.turns`
_RELABEL = "Export both with the same names of classes (--labels FILE)."
_GROUPS = (
    'Write JSON or YAML: {"night": ["night/*"], "vehicles": ["car", "bus"]}, with patterns of images or class names.'
)


def compare_with_release(
    previous: Artifact, artifact: Artifact, data: str | None, progress: Progress, *, groups: Path | None = None
) -> Release:
    """Let both artifacts answer the same samples, and store the comparison beside the second.

    Args:
        previous: the artifact before.
        artifact: this artifact.
        data: DATA of the command line; None is the recipe's.
        progress: gets the steps and warnings.
        groups: a file that names groups of images or classes; None compares class by class.

    Raises:
        UsageError: the two have different tasks.
        MeasureError: their classes are not the same.
        DataError: the data does not fit, or the file of groups does not.
    """
    before, now = previous.manifest, artifact.manifest
    if before.recipe.task != now.recipe.task:
        raise UsageError(
            f"{previous.path} and {artifact.path} have different tasks or options of them",
            fix="Compare two of one task.",
        )
    task, dataset = open_labelled(artifact, data)
    _, previous_dataset = open_labelled(previous, data or now.recipe.data.evaluation)
    places = _match_classes(task, previous, artifact)
    patterns = None if groups is None else read_groups(groups)
    with ExitStack() as stack:
        sides = [stack.enter_context(open_session(each, None, progress)) for each in (previous, artifact)]
        running = (
            RunningSide(sides[0], task, before, before.recipe.target.input),
            RunningSide(sides[1], task, now, now.recipe.target.input),
        )
        outcomes, names = _answer(
            running, task, (previous_dataset, dataset), (batch_size(before), batch_size(now)), places, progress
        )
        threads = sides[1].threads
    with progress.step("Compare the two"):
        indices = find_distinct(outcomes)
        distinct, names = pair_outcomes(task, select(outcomes, indices)), [names[i] for i in indices]
        members = {} if patterns is None else _find_members(patterns, names, task, distinct, now.labels)
        distinct = change(distinct, groups={str(number): chosen for number, chosen in enumerate(members.values())})
        raw = pack(distinct)
        draft = Release(
            baseline=previous.digest,
            baseline_name=str(previous.path),
            task=task.name,
            n=len(names),
            data=dataset.spec,
            data_digest=dataset.digest,
            metrics={},
            user_groups=patterns is not None,
            group_names=tuple(members),
            unusable=_explain_unusable(previous, artifact, (previous_dataset, dataset), distinct),
            worse=tuple(_describe_lost(task, distinct, names, now.labels)),
            size_bytes=(before.deployed_bytes, now.deployed_bytes),
            samples=hashlib.sha256(raw).hexdigest(),
            provenance=describe_provenance(now, threads),
        )
        release = compare_releases(draft, task, distinct, now.labels)
    return artifact.write_evidence(release, {RELEASE_SAMPLES: raw})


def _explain_unusable(
    previous: Artifact, artifact: Artifact, datasets: tuple[Dataset, Dataset], outcomes: Outcomes
) -> str:
    """Return why the samples prove nothing: the earlier weights are random, or calibration used these images.

    The samples are known by the pixels that this artifact sees. The earlier one may see others of the same images.
    """
    if previous.random_weights:
        return f"{previous.path} has random weights: accuracy means nothing"
    same_pixels = previous.manifest.preprocess == artifact.manifest.preprocess
    for each, dataset in zip((previous, artifact), datasets, strict=True):
        if each is artifact or same_pixels:
            reason = explain_calibrated(each.manifest, dataset.digest, outcomes)
            if reason is not None:
                return f"{each.path}: {reason}"
    return ""


def read_groups(path: Path) -> dict[str, list[str]]:
    """Read a file of groups: name -> patterns of image names, or names of classes.

    Raises:
        DataError: it cannot be read, or has another form.
    """
    content = parse_text(path, read_text(path, "groups", absent="Check the path.", fix=_GROUPS), fix=_GROUPS)
    if not isinstance(content, Mapping) or not content or not all(map(_is_group, content.values())):
        raise DataError(f"{path} is not a map of groups", fix=_GROUPS)
    return {str(name): [str(entry) for entry in entries] for name, entries in content.items()}


def _is_group(entries: Any) -> bool:
    return isinstance(entries, list) and bool(entries) and all(isinstance(entry, (str, int)) for entry in entries)


def _match_classes(task: Task, previous: Artifact, artifact: Artifact) -> Array | None:
    """Return for each class of the earlier artifact that of this one; None if they are the same, or there are none.

    Raises:
        MeasureError: the classes differ.
    """
    if not task.named_classes:
        return None
    before, now = previous.manifest, artifact.manifest
    counts = [task.count_classes({o.name: o.shape for o in manifest.outputs}) for manifest in (before, now)]
    labels = [None if are_made_up(manifest.labels) else manifest.labels for manifest in (before, now)]
    if (labels[0] is None) != (labels[1] is None):
        which = previous.path if labels[0] is None else artifact.path
        raise MeasureError(f"{which} has no labels, and the other artifact has", fix=_RELABEL)
    if counts[0] != counts[1]:
        raise MeasureError(f"the two have {counts[0]} and {counts[1]} classes", fix=_RELABEL)
    if labels[0] is None or labels[1] is None or labels[0] == labels[1]:
        return None
    known = ClassNames(labels[1])
    places = [known.find(name) for name in labels[0]]
    first: dict[int, str] = {}
    for name, place in zip(labels[0], places, strict=True):
        if place is None:
            message = f"{previous.path} has the class {name!r}, which {artifact.path} does not have"
            raise MeasureError(message, fix=_RELABEL)
        if place in first:
            both = f"{first[place]!r} and {name!r}"
            message = f"{previous.path} has the classes {both}, which are both {labels[1][place]!r} of {artifact.path}"
            raise MeasureError(message, fix=_RELABEL)
        first[place] = name
    order = np.array(places)
    if (order == np.arange(len(order))).all():
        return None
    if task.name != "classification":
        raise MeasureError(
            f"the classes of {previous.path} and {artifact.path} are in different orders",
            fix="Export both in one order.",
        )
    return order


def _answer(
    sides: tuple[RunningSide, RunningSide],
    task: Task,
    datasets: tuple[Dataset, Dataset],
    sizes: tuple[int, int],
    places: Array | None,
    progress: Progress,
) -> tuple[Outcomes, list[str]]:
    """Let both sides answer every sample, each on its own preprocessing. Return the outcomes and the names."""
    agreement: list[Array] = []
    digests: list[int] = []
    names: list[str] = []
    size = math.lcm(*sizes)
    turn = size * -(-_TURN_IMAGES // size)
    with progress.step(f"Evaluate both on {datasets[1].spec}", len(datasets[1])) as advance:
        streams = [named_batches(dataset, turn) for dataset in datasets]
        for before, now in zip(*streams, strict=True):
            if before.names != now.names:
                raise MeasureError("the two do not read the same images", fix="Replace the damaged images.")
            (first, finite), (second, usable) = (
                _answer_turn(side, batch, own) for side, batch, own in zip(sides, (before, now), sizes, strict=True)
            )
            if places is not None:
                first = [places[int(answer)] for answer in first]
            agreement.append(task.compare_answers(first, second, (finite, usable)))
            digests += now.digests()
            names += now.names
            advance(len(now.names))
    outcomes = Outcomes(
        digest=np.array(digests, np.uint64),
        reference=_renumber(sides[0].values(), places),
        deployed=sides[1].values(),
        agreement=np.concatenate(agreement),
        finite=np.concatenate(sides[1].finite),
    )
    return outcomes, names


def _answer_turn(side: RunningSide, batch: NamedBatch, size: int) -> tuple[Sequence[Array], Array]:
    """Let one side answer a turn in batches of its own size. Return the answers, and which of them are finite."""
    spans = [slice(start, start + size) for start in range(0, len(batch.labels), size)]
    parts = [
        side.answer(
            batch.images[span], batch.labels[span], size, {name: value[span] for name, value in batch.further.items()}
        )
        for span in spans
    ]
    return [answer for part in parts for answer in part.answers], np.concatenate([part.finite for part in parts])


def _renumber(values: Values, places: Array | None) -> Values:
    """Return the statistics of the earlier artifact with the classes of this one."""
    if places is None:
        return values
    return {**values, "answer": places[values["answer"]], "label": places[values["label"]]}


def _find_members(
    patterns: Mapping[str, list[str]],
    names: Sequence[str],
    task: Task,
    outcomes: Outcomes,
    labels: tuple[str, ...] | None,
) -> dict[str, Array]:
    """Return the samples of each group: those whose name fits a pattern, or whose class is named.

    Raises:
        DataError: a group has no samples.
    """
    classes = task.find_groups(outcomes.deployed)
    members = {}
    for group, entries in patterns.items():
        chosen = np.array([any(fnmatch.fnmatch(name, entry) for entry in entries) for name in names])
        if classes is not None:
            named = [c for c in np.unique(classes) if class_name(int(c), labels) in entries]
            chosen |= np.isin(classes, named)
        if not chosen.any():
            raise DataError(f"no sample is in the group {group!r}: {', '.join(entries)[:200]}", fix=_GROUPS)
        members[group] = chosen
    return members


def _describe_lost(
    task: Task, outcomes: Outcomes, names: Sequence[str], labels: tuple[str, ...] | None
) -> Iterator[str]:
    """Yield the first samples that only the earlier artifact gets right, with both answers."""
    metric = next(iter(task.units), "")
    before, now = outcomes.reference, outcomes.deployed
    if metric not in task.binary or "answer" not in now:
        return
    for index in np.flatnonzero(before[metric] > now[metric])[:_SHOWN]:
        answers = (class_name(int(side["answer"][index]), labels) for side in (before, now))
        yield f"{names[index]}: {' became '.join(map(repr, answers))}"
