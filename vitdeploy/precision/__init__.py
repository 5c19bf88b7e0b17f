"""Precisions, one per file. Each public file here is a choice of `--precision`, by its name.

The code that they share is in `calibrate/`. To add a precision, add a file with a class. The class names the types to
store and compute in, says what it needs, and makes a quantized graph from the calibrated float32 graph for a compiler.
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
from vitdeploy.recipe import NNCF, PrecisionSpec
from vitdeploy.targets import Target

if TYPE_CHECKING:
    from vitdeploy.graph.model import Graph
    from vitdeploy.quantize import Calibration, Quantized


def names() -> list[str]:
    """List all precisions as users write them."""
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
    """Return the precision of a recipe with its options. Options that it does not have are ignored.

    Raises:
        UsageError: there is no precision of this name.
        QuantizeError: the recipe asks for INT8 attention or NNCF, which this precision does not offer.
    """
    kind = kind_of(spec.kind or "")
    if spec.attention and "attention" not in kind.model_fields:
        raise QuantizeError(
            f"`attention: true` is not for {spec.kind}: quantized attention gains speed with int8 only",
            fix="Leave `attention` out of the recipe's precision.",
        )
    if spec.quantizer == NNCF and not kind.takes_nncf:
        raise QuantizeError(
            f"--quantizer nncf does not work with {spec.kind}, which NNCF cannot make here",
            fix=f"Leave out --quantizer, or use --precision {', '.join(n for n in names() if kind_of(n).takes_nncf)}.",
        )
    return kind.model_validate({key: value for key, value in dict(spec).items() if key in kind.model_fields})


def names_for(target: Target, *, per_linear: bool = False) -> list[str]:
    """List the precisions of a target, its default first: named by it, or naming it.

    Args:
        target: with its device.
        per_linear: only precisions that can leave single linears in float.
    """
    own = target.list_precisions()
    others = [name for name in names() if target.name in kind_of(name).targets and name not in own]
    offered = [*own, *others]
    return [name for name in offered if issubclass(kind_of(name), LinearPrecision)] if per_linear else offered


def check_offered(name: str, target: Target) -> None:
    """Refuse a precision that a target does not take, whatever units its device has.

    Raises:
        UsageError: it is refused. The message names those that the target takes.
    """
    offered = names_for(target)
    if name not in offered:
        where = f" on the device {target.device}" if target.device in target.devices else ""
        raise UsageError(f"{target.name} cannot do {name}{where}", fix=f"It can do {', '.join(offered)}.")


def check(name: str, target: Target, host: Host | None = None) -> None:
    """Refuse a precision that a target does not take, or for which its device has no units.

    Args:
        name: of the precision.
        target: with its device.
        host: the machine that it will run on, if not this one.

    Raises:
        UsageError: it is refused. The message names the precisions that the target can do.
    """
    check_offered(name, target)
    offered = names_for(target)
    reason = target.refuse_numbers(kind_of(name).numbers, host)
    if reason is not None:
        able = [other for other in offered if target.refuse_numbers(kind_of(other).numbers, host) is None]
        raise UsageError(reason, fix=f"It can do {', '.join(able)}.")


def quantize(
    graph: Graph,
    structure: Structure,
    spec: PrecisionSpec,
    dialect: Dialect,
    calibration: Calibration | None,
    progress: Progress,
) -> Quantized:
    """Make one precision of a raised and folded graph. Use `CalibratedGraph` to make several."""
    return find(spec).lower(CalibratedGraph(graph, structure, calibration, progress), dialect)
