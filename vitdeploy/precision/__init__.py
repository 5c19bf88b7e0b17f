"""Precisions: one file each, found by its name. Every public file here is a choice of `--precision`.

What they share lies in `calibrate/`. Adding a precision is adding a file, with a class that says what it stores and
computes in, what it needs, and how it is made from the calibrated float32 graph for a compiler.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from vitdeploy import plugins
from vitdeploy.calibrate.calibrated import CalibratedGraph
from vitdeploy.calibrate.precision import LinearPrecision as LinearPrecision
from vitdeploy.calibrate.precision import Precision as Precision
from vitdeploy.environment import Host
from vitdeploy.errors import QuantizeError, UsageError
from vitdeploy.graph.dialect import Dialect
from vitdeploy.graph.structure import Structure
from vitdeploy.progress import Progress
from vitdeploy.recipe import PrecisionSpec
from vitdeploy.targets import Target

if TYPE_CHECKING:
    from vitdeploy.graph.model import Graph
    from vitdeploy.quantize import Calibration, Quantized


def names() -> list[str]:
    """Return all precisions, as users write them."""
    return plugins.names(sys.modules[__name__])


def kind_of(name: str) -> type[Precision]:
    """Return the class of a precision.

    Raises:
        UsageError: there is no precision of this name.
    """
    try:
        return plugins.find(sys.modules[__name__], name, Precision)  # type: ignore[type-abstract]
    except LookupError as error:
        raise UsageError(f"precision {error}", fix="Choose one of them.") from None


def find(spec: PrecisionSpec) -> Precision:
    """Return the precision of a recipe with its options; an option that it does not have is left out.

    Raises:
        UsageError: there is no precision of this name.
        QuantizeError: INT8 attention is asked of a precision that does not offer it.
    """
    kind = kind_of(spec.kind or "")
    if spec.attention and "attention" not in kind.model_fields:
        raise QuantizeError(
            f"`attention: true` is not for {spec.kind}: attention in one kernel gains by quantization in int8 alone",
            fix="Leave `attention` out of the recipe's precision.",
        )
    return kind.model_validate({key: value for key, value in dict(spec).items() if key in kind.model_fields})


def offered(target: Target, *, per_linear: bool = False) -> list[str]:
    """Return the precisions of a target, its default first: those that it names, and those that name it.

    Args:
        target: with its device.
        per_linear: only precisions that can leave single linears in float.
    """
    claiming = [name for name in names() if target.name in kind_of(name).targets and name not in target.precisions]
    every = [*target.precisions, *claiming]
    return [name for name in every if issubclass(kind_of(name), LinearPrecision)] if per_linear else every


def check(name: str, target: Target, host: Host | None = None) -> None:
    """Refuse a precision that a target does not take, or that its device has no units for.

    Args:
        name: of the precision.
        target: with its device.
        host: the machine that it will run on, if that is not this one.

    Raises:
        UsageError: it is refused; the message names what the target can do.
    """
    names_ = offered(target)
    if name not in names_:
        raise UsageError(f"{target.name} cannot do {name}", fix=f"It can do {', '.join(names_)}.")
    reason = target.refuse_numbers(kind_of(name).numbers, host)
    if reason is not None:
        able = [other for other in names_ if target.refuse_numbers(kind_of(other).numbers, host) is None]
        raise UsageError(reason, fix=f"It can do {', '.join(able)}.")


def quantize(
    graph: Graph,
    structure: Structure,
    spec: PrecisionSpec,
    dialect: Dialect,
    calibration: Calibration | None,
    progress: Progress,
) -> Quantized:
    """Make one precision of a raised and folded graph; `CalibratedGraph` serves to make several."""
    return find(spec).lower(CalibratedGraph(graph, structure, calibration, progress), dialect)
