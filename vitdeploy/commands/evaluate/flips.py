"""The samples to which the reference and the artifact give different answers, for people to look at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from vitdeploy.commands.evaluate.parts import Flipped, SamplePart
from vitdeploy.evidence import Flip
from vitdeploy.session import Array
from vitdeploy.tasks import Task, Values, class_name

SHOWN = 24
_ORDER = ("lost", "", "gained")


def describe_flips(part: SamplePart, task: Task, names: Sequence[str] | None) -> tuple[tuple[Flip, ...], list[Array]]:
    """Return the first flips, those first that only the reference gets right; and the picture of each."""
    outcomes = part.outcomes
    labels = task.find_groups(outcomes.reference)

    def describe(flipped: Flipped) -> Flip:
        i = flipped.index
        reference, deployed = flipped.answers
        return Flip(
            name=flipped.name,
            label="" if labels is None else class_name(int(labels[i]), None if names is None else tuple(names)),
            reference=reference,
            deployed=deployed,
            reference_score=_score(outcomes.reference, i),
            deployed_score=_score(outcomes.deployed, i),
            agreement=float(outcomes.agreement[i]),
            kind=_find_kind(task, outcomes.reference, outcomes.deployed, i),
        )

    pairs = [(describe(flipped), flipped.picture) for flipped in part.flips]
    shown = sorted(pairs, key=lambda pair: _ORDER.index(pair[0].kind))[:SHOWN]
    return tuple(flip for flip, _ in shown), [picture for _, picture in shown]


def _score(values: Values, index: int) -> float | None:
    return float(values["confidence"][index]) if "confidence" in values else None


def _find_kind(task: Task, reference: Values, deployed: Values, index: int) -> Literal["lost", "gained", ""]:
    metric = next(iter(task.units), "")
    if metric not in task.binary or metric not in reference:
        return ""
    before, now = reference[metric][index], deployed[metric][index]
    return "lost" if before > now else "gained" if now > before else ""
