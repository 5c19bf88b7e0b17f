"""Locate wrong numbers of an engine on the device: the first block that is off, then the first group in it.

Neither onnx nor torch is needed. The device's compiler builds the graph with the ends of blocks as further outputs, and
the values are compared with those that the bundle brings. The block that is off is built once more, with the ends of
the groups in it as outputs: the fewer are read, the more fusion is left, and a fault of a fusion may need it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vitdeploy.errors import VitdeployError
from vitdeploy.evidence import Comparison, Located
from vitdeploy.frozen import replace
from vitdeploy.graph.parity import Example
from vitdeploy.graph.sqnr import MOST_DB, decibels
from vitdeploy.measure.deviation import Place, find_fault, find_steepest, measure_deviations
from vitdeploy.measure.divergence import Step
from vitdeploy.pipeline.block_values import BlockValues, StoredPart, StoredSpot
from vitdeploy.pipeline.read_inside import Reader
from vitdeploy.progress import Progress
from vitdeploy.targets import Bundle, Compiled, Target

_FUSION = "reading values inside an engine changes what is fused"


def locate(
    target: Target,
    bundle: Bundle,
    compiled: Compiled,
    values: BlockValues,
    example: Example,
    work: Path,
    progress: Progress,
) -> Located:
    """Find the first block at which the engine of a bundle computes other numbers, and the first group in it.

    Args:
        target: builds and runs here.
        bundle: the graph that the engine was built from.
        compiled: the engine.
        values: stored in the bundle, see `load_block_values`.
        example: the first of the stored examples: the values are of it.
        work: a folder for further engines, which exists until this returns.
        progress: gets the steps.

    Raises:
        VitdeployError: the engine with block ends as outputs does not build or run.
    """
    reader = Reader(target, bundle, compiled, values, example, work)
    ends = [part.end for part in values.parts]
    with progress.step("Build it with the ends of all blocks as outputs"):
        outside = reader.read(ends)
    chain = [outside.place(end, (n - 1,) if n else ()) for n, end in enumerate(ends)]
    rows = _add_up(chain, [outside.compare(part.name, part.end) for part in values.parts])
    fault = find_fault(chain, reader.floor)
    number = find_steepest(chain, reader.floor) if fault is None else fault
    located = Located(
        block=None, number=None, group=None, why="none of the ends of blocks can be read in this engine", blocks=rows,
        groups=(), notes=outside.notes, how=outside.how, evidence=outside.evidence, images=len(example.image),
    )  # fmt: skip
    if number is None:
        return located
    part = values.parts[number]
    with progress.step(f"Build it with the layers of {part.name} as outputs"):
        inside = _look_inside(part, _start_of(part, values), reader, is_off=fault is not None)
    if fault is not None:
        located = replace(located, block=part.name, number=part.block, group=inside.group)
    return replace(
        located, why=_explain(rows[number], inside, is_off=fault is not None), groups=inside.rows,
        notes=tuple(dict.fromkeys((*outside.notes, *inside.notes))),
    )  # fmt: skip


@dataclass(frozen=True)
class _Inside:
    """The comparisons in a part, the name of the first group that is off, and notes."""

    rows: tuple[Comparison, ...]
    group: str | None
    notes: tuple[str, ...]


def _look_inside(part: StoredPart, start: StoredSpot | None, reader: Reader, *, is_off: bool) -> _Inside:
    spots = part.spots if start is None else (start, *part.spots)
    try:
        readings = reader.read(spots)
    except VitdeployError as error:  # the block is known, and that is worth more than an error
        return _Inside((), None, (f"the layers of {part.name} cannot be read: {error.message}",))
    numbers = {spot.tensor: n for n, spot in enumerate(spots)}
    places = [readings.place(spot, tuple(numbers[r] for r in spot.reads if r in numbers)) for spot in spots]
    rows = _add_up(places, [readings.compare(spot.layer, spot) for spot in spots])
    rows, notes = (rows if start is None else rows[1:]), readings.notes
    if not is_off:
        return _Inside(rows, None, notes)
    fault = find_fault(places, reader.floor)
    if fault is None and _is_sound(places[-1], reader.floor):
        vanished = (
            f"with the layers of {part.name} as outputs its numbers are right: {_FUSION}, so the fault is in a fusion "
            "across one of them"
        )
        return _Inside(rows, None, (*notes, vanished))
    number = find_steepest(places, reader.floor) if fault is None else fault
    return _Inside(rows, None if number is None else spots[number].layer, notes)


def _is_sound(place: Place, floor: float) -> bool:
    [deviation] = measure_deviations([place], floor)
    return deviation is not None and deviation <= 1


def _start_of(part: StoredPart, values: BlockValues) -> StoredSpot | None:
    """Return the spot at which a part starts: the end of another one. None if it is the input of the model."""
    return next((other.end for other in values.parts if other.end.tensor == part.start and other is not part), None)


def _add_up(places: Sequence[Place], rows: Sequence[Comparison]) -> tuple[Comparison, ...]:
    """Fill in what each place adds to the noise of those that it is computed from."""
    filled = []
    for place, row in zip(places, rows, strict=True):
        before = [sqnr for read in place.reads if (sqnr := rows[read].sqnr_db) is not None]
        step = Step(row.sqnr_db, min(before, default=MOST_DB))
        filled.append(row if row.sqnr_db is None else replace(row, adds_db=decibels(1.0, step.added)))
    return tuple(filled)


def _explain(row: Comparison, inside: _Inside, *, is_off: bool) -> str:
    if not is_off:
        return f"no block stands out; {row.name} deviates most" + _figures(row)
    if row.nonfinite:
        return f"{row.name} gives NaN or infinity" + (
            f"; the first such group is {inside.group}" if inside.group else ""
        )
    sentence = f"{row.name} is the first that is off" + _figures(row)
    return sentence if inside.group is None else f"{sentence}; in it {inside.group} is the first"


def _figures(row: Comparison) -> str:
    if row.graph_db is None or row.expected_db is None:
        return ""
    return f": {row.graph_db:.1f} dB against its own graph, which has {row.expected_db:.1f} dB against FP32"
