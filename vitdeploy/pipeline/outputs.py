"""The outputs of a model that an artifact gives: those that its task reads, unless the user chooses others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from vitdeploy.artifact import Manifest
from vitdeploy.errors import DataError
from vitdeploy.graph.kept_outputs import select_names
from vitdeploy.graph.unproven import find_blind
from vitdeploy.pipeline.examples import ChooseOutputs, Examples
from vitdeploy.recipe import ALL_OUTPUTS
from vitdeploy.session import Array
from vitdeploy.tasks import Task, find_batched

_MOST_LISTED = 6
"""A note lists at most so many names of outputs."""


def output_chooser(requested: str | tuple[str, ...] | None, task: Task | None, batch: int) -> ChooseOutputs:
    """Return the function that chooses the outputs to keep.

    Args:
        requested: the recipe's `model.outputs`.
        task: the task that the model or the user names; None: nobody names one, and nothing is left out.
        batch: the number of images that the model runs on first.
    """

    def choose(outputs: Mapping[str, Array]) -> tuple[str, ...]:
        names = tuple(outputs)
        if isinstance(requested, tuple):
            return select_names(requested, names)
        if requested == ALL_OUTPUTS or task is None or len(names) == 1:
            return names
        return select_names(task.choose_outputs(find_batched(outputs, batch)), names)

    return choose


class Unseen(NamedTuple):
    """The outputs that do not depend on the image, and the reasons why parity proves nothing at all."""

    outputs: tuple[str, ...]
    doubts: tuple[str, ...]


def find_unseen(examples: Examples, task: Task | None) -> Unseen:
    """Find the outputs that do not depend on the image.

    They are doubts if all that the task reads are among them: then parity compares constants. Beside others they are
    none, such as anchors beside the answer.

    Args:
        examples: images with the reference's outputs.
        task: the task that the model or the user names; None: all outputs count.
    """
    blind, outputs = find_blind(examples.outputs), examples.outputs[0]
    read = tuple(outputs) if task is None else task.choose_outputs(find_batched(outputs, _count_images(examples)))
    return Unseen(tuple(blind), tuple(blind[name] for name in read) if blind.keys() >= set(read) else ())


def describe_outputs(manifest: Manifest) -> list[str]:
    """Return notes about the outputs that are left out, and about those that do not depend on the image."""
    notes = []
    kept, dropped = [output.name for output in manifest.outputs], manifest.model.dropped_outputs
    blind = [name for name in manifest.export.blind_outputs if not any(repr(name) in d for d in manifest.doubts)]
    if dropped:
        those = "output is" if len(kept) == 1 else "outputs are"
        notes.append(f"the {those} {_list(kept)}; left out: {_list(dropped)} (--all-outputs keeps them)")
    if blind:
        notes.append(f"the same for all example images: {_list(blind)}. Parity proves nothing for what is constant")
    return notes


def note_unread(task: Task, examples: Examples) -> list[str]:
    """Return a note if the task cannot read the outputs that the user has chosen."""
    reason = explain_unread(task, examples) if examples.dropped else ""
    note = f"eval and predict cannot read these outputs as {task.name}: {reason}. --task raw compares any outputs"
    return [note] if reason else []


def explain_unread(task: Task, examples: Examples) -> str:
    """Return why the task cannot read the outputs, and what to do; empty if it can."""
    try:
        task.read_answers(find_batched(examples.outputs[0], _count_images(examples)))
    except DataError as error:
        return str(error)
    return ""


def _count_images(examples: Examples) -> int:
    """Return the number of images in the first batch; 1 for a part that takes none."""
    return len(examples.pixels[0]) if examples.pixels else 1


def _list(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_MOST_LISTED])
    return shown if len(names) <= _MOST_LISTED else f"{shown} and {len(names) - _MOST_LISTED} more"
