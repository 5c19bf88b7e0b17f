"""Compare outputs with the reference's, each output by its own scale. The limits of every comparison are here.

**Float32.** An output may differ by a thousandth of its own largest value. Engines that reorder float32 sums stay near
1e-6 of it (OpenVINO and ONNX Runtime over a few small models: at most 2e-6), and a changed formula is far above:
another attention scale gives 1e-2 and more. The cosine of each output is judged beside it, because many small
differences can hide below one large value.

**Lower precisions.** What rounding costs depends on the model and the image, so the limit is measured for each batch of
images: the difference that `graph.onnx` itself has when ONNX Runtime computes it operator by operator, times `MARGIN`,
plus `ROUNDING` for the types that only the engine knows. bfloat16 in OpenVINO, TF32 on GPUs, and activations that are
rounded at run time are not in the graph. A batch has at least the limit of what the graph usually loses.

**Selections.** Where a model selects rows by score, engines order rows with nearly equal scores differently. Such
outputs are compared as sets: each row with the one that it belongs to. The last rows may be others, if their scores are
nearly equal to those of rows that are not selected.

**Merged tokens.** Where patches are merged by similarity, rounding decides near-ties, and a map shows that at the
places of these patches. How far it moves there was measured (`vitdeploy.graph.merge_ties`), and is not counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from vitdeploy.artifact import OutputParity, Parity
from vitdeploy.frozen import replace
from vitdeploy.graph.row_matching import Edge, match_rows
from vitdeploy.session import Array, Session, is_finite

LEAST_COSINE = 0.9999
FLOAT32_LIMIT = 1e-3
"""The largest difference in float32, relative to the output's own largest value."""
SMALLEST_SCALE = 1e-4
"""An output whose values are all smaller is judged as if they reached this: differences below 1e-7 are the rounding of
values near 1 that cancel."""
ABSOLUTE_FLOOR = FLOAT32_LIMIT * SMALLEST_SCALE
"""A difference up to this, 1e-7, is rounding in every output. Engines also flush denormal numbers, below 1.2e-38, to
zero. So an output whose values are all smaller agrees with anything: `vitdeploy.graph.unproven` names it."""
DISCRETE_LIMIT = 0.01
"""The largest share of different elements in an output of integers or booleans: rounding decides near-ties, and a class
map has some at the borders of its areas."""
MARGIN = 2.0
"""Over what the graph loses in ONNX Runtime. Engines lost 0.74 to 1.03 times as much (INT8 and INT4 in OpenVINO and
ONNX Runtime; digits, DeiT-Tiny)."""
ROUNDING: Mapping[str, float] = {"fp32": FLOAT32_LIMIT, "tf32": 4e-3, "fp16": 8e-3, "bf16": 5e-2, "int8": 5e-2}
"""The largest difference by the type that an engine rounds to, relative to the output's largest value: twice to
four times the largest that was seen. Operands that are rounded to TF32 gave 1.1e-3, all tensors in float16 2.8e-3, in
bfloat16 1.7e-2 (PyTorch; digits, DeiT-Tiny, DeiT-Small, XCiT with random weights), activations in INT8 by groups of 32
2.9e-2, beside 1.9e-2 that the graph itself lost (OpenVINO)."""


class Example(NamedTuple):
    """A batch of images as a model takes them, the reference's outputs, and the images in words."""

    image: Array
    outputs: Mapping[str, Array]
    name: str = ""
    selected: Mapping[str, int] | None = None
    """The outputs whose rows are a set, with the axis of the rows: see `vitdeploy.graph.selection`."""
    edges: tuple[Edge, ...] = ()
    """The edge of the selection of each image: see `vitdeploy.graph.selection_edges`."""
    further: Mapping[str, Array] = {}
    """The inputs beside the image, by name, such as points of a prompt."""
    undecided: Mapping[str, Array] = {}
    """How far near-ties between merged tokens may move each element of an output: see `vitdeploy.graph.merge_ties`."""

    def feed(self, input_name: str) -> dict[str, Array]:
        """Return all inputs; the image's is called `input_name`."""
        return {input_name: self.image, **self.further}


@dataclass(frozen=True)
class Tolerance:
    """The limits of one output.

    Attributes:
        difference: the largest difference, relative to the output's own largest value. Of integers and booleans the
            share of elements that may differ.
        distance: the largest value of 1 - cosine.
    """

    difference: float
    distance: float


def compare(
    reference: Mapping[str, Array],
    other: Mapping[str, Array],
    *,
    batch: int,
    where: str = "",
    selected: Mapping[str, int] | None = None,
    edges: Sequence[Edge] = (),
    undecided: Mapping[str, Array] | None = None,
) -> Parity:
    """Compare each output of `other` with the reference's, matched by name or else by order.

    If outputs are not finite, or do not match in number or shape, the difference is infinite, so that a comparison of
    nothing never passes.

    Args:
        reference: the reference's outputs by name.
        other: the outputs of a graph or engine for the same images.
        batch: the number of images.
        where: the images, in words.
        selected: the outputs whose rows are a set, with the axis of the rows. Their rows are matched first.
        edges: the edge of the selection of each image, whose rows may be others.
        undecided: how far each element of an output may be from the reference's. Only more than that counts.
    """
    pairs = _match(reference, other)
    problem = _find_problem(reference, pairs, len(other))
    if problem:
        where = f" on {where}" if where else ""
        return Parity(
            max_abs=float("inf"), reference_max=0.0, cosine=0.0, finite=False, batches=(batch,),
            problem=f"{problem}{where}",
        )  # fmt: skip
    values, moved = {name: b for name, (_, b) in pairs.items()}, 0
    if selected:
        values, moved = match_rows({name: a for name, (a, _) in pairs.items()}, values, selected, batch, edges)
    free = undecided or {}
    outputs = tuple(
        _compare_decided(name, a, values[name], free[name], where)
        if name in free
        else _compare_output(name, a, values[name], where)
        for name, (a, _) in pairs.items()
    )
    if moved:
        outputs = tuple(replace(o, moved_rows=moved) if o.name in (selected or ()) else o for o in outputs)
    return _summarize(outputs, (outputs,), (batch,))


def compare_session(session: Session, examples: Sequence[Example], input_name: str) -> Parity:
    """Run a session on all examples. Return the largest difference of each output from the reference's."""
    parity = merge([_compare_example(session, Example(*example), input_name) for example in examples])
    sizes = tuple("x".join(map(str, example[0].shape[-2:])) for example in examples)
    return replace(parity, image_sizes=sizes) if len(set(sizes)) > 1 else parity


def merge(parities: Sequence[Parity]) -> Parity:
    """Return the largest difference of each output over several comparisons, and the smallest cosine."""
    batches = tuple(batch for parity in parities for batch in parity.batches)
    for parity in parities:
        if not parity.finite:
            return replace(parity, batches=batches)
    cases = tuple(case for parity in parities for case in parity.cases)
    return _summarize(tuple(_worst(group) for group in zip(*cases, strict=True)), cases, batches)


def explain_difference(parity: Parity, limits: Sequence[Sequence[Tolerance]] | None = None) -> str | None:
    """Return why these numbers do not count as the reference's; None if they do.

    Args:
        parity: the comparison.
        limits: the limits of each output by batch of images; None judges as float32.
    """
    if not parity.finite:
        return parity.problem or "the outputs are not finite, or do not match in number or shape"
    outputs = [output for case in parity.cases for output in case]
    flat = [limit for case in limits for limit in case] if limits is not None else map(float32_limit, outputs)
    beyond = [(output, limit) for output, limit in zip(outputs, flat, strict=True) if not _is_within(output, limit)]
    if not beyond:
        return None
    output, limit = max(beyond, key=lambda pair: _relative(pair[0]) / pair[1].difference)
    return _describe(output, limit)


def float32_limit(output: OutputParity, *, kind: str = "fp32") -> Tolerance:
    """Return the limits of an output in float32, or in the type `kind` that an engine takes for it (TF32)."""
    difference = DISCRETE_LIMIT if output.discrete else ROUNDING[kind]
    return Tolerance(difference, _distance(ROUNDING[kind]))


def lowered_limits(cases: Sequence[Sequence[OutputParity]], kinds: Sequence[str]) -> list[list[Tolerance]]:
    """Return the limits of each output by batch of images, in a lower precision.

    Rounding strikes each batch by chance: of two logits the graph may lose next to nothing on one batch and the engine
    on another. So a batch has at least the limits of the usual loss, the root mean square over all batches.

    Args:
        cases: the differences of each output that the target-ready graph has in ONNX Runtime, by batch.
        kinds: the types that the engine rounds to without a node for it in the graph.
    """
    usual = [_lowered_limit(_average(outputs), kinds) for outputs in zip(*cases, strict=True)]
    return [
        [_looser(_lowered_limit(output, kinds), least) for output, least in zip(case, usual, strict=True)]
        for case in cases
    ]


def _lowered_limit(emulated: OutputParity, kinds: Iterable[str]) -> Tolerance:
    """Return the limits of an output in a lower precision.

    Args:
        emulated: the difference that the target-ready graph has in ONNX Runtime.
        kinds: the types that the engine rounds to without a node for it in the graph.
    """
    rounding = max(ROUNDING.get(kind, FLOAT32_LIMIT) for kind in kinds)
    floor = DISCRETE_LIMIT if emulated.discrete else rounding
    return Tolerance(MARGIN * _relative(emulated) + floor, MARGIN**2 * (1 - emulated.cosine) + _distance(rounding))


def _average(outputs: Sequence[OutputParity]) -> OutputParity:
    """Return the usual loss of an output: means of squares, which 1 - cosine is one of."""
    squares = sum(_relative(output) ** 2 for output in outputs) / len(outputs)
    distance = sum(1 - output.cosine for output in outputs) / len(outputs)
    return replace(outputs[0], max_abs=math.sqrt(squares), reference_max=1.0, cosine=1 - distance)


def _looser(one: Tolerance, other: Tolerance) -> Tolerance:
    return Tolerance(max(one.difference, other.difference), max(one.distance, other.distance))


def _compare_example(session: Session, example: Example, input_name: str) -> Parity:
    batch = len(example.image)
    where = f"{example.name or 'images'} in a batch of {batch}"
    outputs = session.run(example.feed(input_name))
    return compare(
        example.outputs, outputs, batch=batch, where=where, selected=example.selected, edges=example.edges,
        undecided=example.undecided,
    )  # fmt: skip


def _distance(rounding: float) -> float:
    """Return 1 - cosine for noise of this share of the signal: its square, of which a half would be exact."""
    return max(1 - LEAST_COSINE, rounding**2)


def _match(reference: Mapping[str, Array], other: Mapping[str, Array]) -> dict[str, tuple[Array, Array]]:
    if set(reference) <= set(other):
        return {name: (value, other[name]) for name, value in reference.items()}
    values = zip(reference.values(), other.values(), strict=False)
    return dict(zip(reference, values, strict=False))


def _find_problem(reference: Mapping[str, Array], pairs: Mapping[str, tuple[Array, Array]], count: int) -> str:
    """Return why the outputs cannot be compared; empty if they can."""
    if not pairs or len(pairs) != len(reference):
        return f"there are {count} outputs instead of {len(reference)}"
    if not any(value.size for value in reference.values()):
        return "there is nothing to compare: the outputs are empty"
    for name, (a, b) in pairs.items():
        if a.shape != b.shape:
            return f"output {name!r} has shape {list(b.shape)} instead of {list(a.shape)}"
        for whose, value in (("", b), ("the reference's ", a)):
            if not is_finite({name: value}):
                return f"{whose}output {name!r} has NaN or infinity"
    return ""


def _compare_output(name: str, reference: Array, other: Array, where: str) -> OutputParity:
    if all(np.issubdtype(value.dtype, np.integer) or value.dtype == bool for value in (reference, other)):
        share = float(np.mean(reference != other)) if reference.size else 0.0
        return OutputParity(
            name=name, max_abs=share, reference_max=1.0, cosine=1 - share, discrete=True, where=where
        )  # fmt: skip
    a, b = (value.astype(np.float64).ravel() for value in (reference, other))
    difference = float(np.abs(a - b).max(initial=0.0))
    return OutputParity(
        name=name,
        max_abs=difference,
        reference_max=float(np.abs(a).max(initial=0.0)),
        cosine=_cosine(a, b),
        where=where,
    )


def _compare_decided(name: str, reference: Array, other: Array, undecided: Array, where: str) -> OutputParity:
    """Compare what is beyond the differences that near-ties between merged tokens explain."""
    difference = other.astype(np.float64) - reference
    beyond = np.sign(difference) * np.maximum(np.abs(difference) - undecided, 0)
    explained = float(np.minimum(np.abs(difference), undecided)[np.isfinite(difference)].max(initial=0.0))
    return replace(_compare_output(name, reference, reference + beyond, where), undecided=explained)


def _cosine(a: Array, b: Array) -> float:
    """Return the cosine; of zeros 1 with zeros, and 0 with anything else.

    Each is divided by its largest value first: squares of denormal numbers are 0, and those of large ones overflow.
    """
    largest = [float(np.abs(value).max(initial=0.0)) for value in (a, b)]
    if not all(largest):
        return float(largest[0] == largest[1])
    a, b = a / largest[0], b / largest[1]
    return min(1.0, float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b))))


def _relative(output: OutputParity) -> float:
    """Return the difference relative to the output's own scale."""
    return output.max_abs / max(output.reference_max, SMALLEST_SCALE)


def _worst(group: Sequence[OutputParity]) -> OutputParity:
    worst = max(group, key=_relative)
    moved, undecided = sum(output.moved_rows for output in group), max(output.undecided for output in group)
    cosine = min(output.cosine for output in group)
    return replace(worst, cosine=cosine, moved_rows=moved, undecided=undecided)


def _summarize(
    outputs: tuple[OutputParity, ...], cases: tuple[tuple[OutputParity, ...], ...], batches: tuple[int, ...]
) -> Parity:
    worst = max(outputs, key=_relative)
    cosine = min(output.cosine for output in outputs)
    return Parity(
        max_abs=worst.max_abs,
        reference_max=worst.reference_max,
        cosine=cosine,
        finite=True,
        batches=batches,
        outputs=outputs,
        cases=cases,
    )


def _is_within(output: OutputParity, limit: Tolerance) -> bool:
    """Return whether an output is within its limits. A difference that is negligible by itself needs no cosine."""
    if output.discrete:
        return output.max_abs <= limit.difference
    return output.max_abs <= ABSOLUTE_FLOOR or (
        _relative(output) <= limit.difference and 1 - output.cosine <= limit.distance
    )


def _describe(output: OutputParity, limit: Tolerance) -> str:
    where = f" on {output.where}" if output.where else ""
    if output.discrete:
        return (
            f"{100 * output.max_abs:.2g} % of the values differ in output {output.name!r}{where} (the limit is "
            f"{100 * limit.difference:.2g} %)"
        )
    allowed = limit.difference * max(output.reference_max, SMALLEST_SCALE)
    return (
        f"cosine {output.cosine:.6f}, largest difference {output.max_abs:.3g} where values reach "
        f"{output.reference_max:.3g}, in output {output.name!r}{where} (the limits are {1 - limit.distance:.6f} and "
        f"{allowed:.2g})"
    )
