"""Outputs of a model by name: those that are kept, in the model's own order."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from vitdeploy.errors import SourceError
from vitdeploy.plugins import did_you_mean

if TYPE_CHECKING:
    import onnx_ir as ir


def select_names(requested: Collection[str], known: Sequence[str]) -> tuple[str, ...]:
    """Return the requested outputs in the order in which the model gives them.

    Raises:
        SourceError: the model has no output of that name; the message has the nearest one.
    """
    for name in requested:
        if name not in known:
            raise SourceError(
                f"the model has no output {name!r}{did_you_mean(name, list(known))}",
                fix=f"It has: {', '.join(known)}.",
            )
    return tuple(name for name in known if name in requested)


def drop_other_outputs(model: ir.Model, requested: Collection[str]) -> None:
    """Remove the other outputs of a graph in place, and the nodes and weights that only they need.

    Raises:
        SourceError: see `select_names`.
    """
    import onnx_ir.passes.common as common_passes

    outputs = model.graph.outputs
    names = select_names(requested, [str(value.name) for value in outputs])
    for value in list(outputs):
        if value.name not in names:
            outputs.remove(value)
    common_passes.RemoveUnusedNodesPass()(model)
