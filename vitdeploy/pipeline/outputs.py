"""The outputs of a model that an artifact gives: those that its task reads, unless the user chooses others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vitdeploy.artifact import Manifest
from vitdeploy.errors import DataError
from vitdeploy.graph.kept_outputs import select_names
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


def describe_outputs(manifest: Manifest) -> list[str]:
    """Return a note about the outputs that are left out, if there are any."""
    dropped = manifest.model.dropped_outputs
    if not dropped:
        return []
    kept = [output.name for output in manifest.outputs]
    those = "output is" if len(kept) == 1 else "outputs are"
    return [f"the {those} {_list(kept)}; left out: {_list(dropped)} (--all-outputs keeps them)"]


def note_unread(task: Task, examples: Examples) -> list[str]:
    """Return a note if the task cannot read the outputs that the user has chosen."""
    if not examples.dropped:
        return []
    try:
        task.read_answers(find_batched(examples.outputs[0], len(examples.pixels[0])))
    except DataError as error:
        return [f"eval and predict cannot read these outputs as {task.name}: {error}. --task raw compares any outputs"]
    return []


def _list(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_MOST_LISTED])
    return shown if len(names) <= _MOST_LISTED else f"{shown} and {len(names) - _MOST_LISTED} more"
