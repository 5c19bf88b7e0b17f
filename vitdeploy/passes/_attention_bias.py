"""Combine everything that is added to the scores of an attention into the one bias that `Attention` takes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.model import array, constant, dims, operand, producer
from vitdeploy.passes._attention import MASKED, has_hidden_query
from vitdeploy.passes._attention_form import Form, FormWriter, Sizes, count, plan_view
from vitdeploy.session import Array

LOW = -1e4
"""What a Where has to fill in: no score comes near it, so adding it to a score is as good as replacing the score."""
VANISHING = -1e3
"""What has to be left of it behind the factors of the scores: its exponential is 0 beside that of any other score."""


@dataclass(frozen=True)
class Bias:
    """One summand of the scores.

    Attributes:
        value: the numbers that are added, or a condition if `choices` is set.
        scale: a factor on them.
        view: the sizes of the scores where they are added, which may be split or merged there: Swin adds its mask to
            (batch, windows, heads, n, n), SAM its positions to (batch · heads, rows, columns, rows, columns).
        is_swapped: the scores are (…, keys, queries) there.
        choices: the number to add where the condition `value` is true, and the number where it is false.
    """

    value: ir.Value
    scale: float
    view: Sizes | None
    is_swapped: bool = False
    choices: tuple[float, float] | None = None

    def find_masked(self, limit: float) -> Array:
        """Return where a constant adds at most `limit` to the scores: (…, queries, keys), or as they are swapped."""
        numbers = array(self.value)
        if self.choices is not None:
            numbers = np.where(numbers, *self.choices)
        with np.errstate(over="ignore"):  # the lowest number times a factor is minus infinity
            return np.atleast_2d(numbers.astype(np.float32) * np.float32(self.scale)) <= limit


def may_fill_rows(biases: Sequence[Bias], keys: int | None) -> bool:
    """Return whether constants together may mask all `keys` of a query, some of them by a fill.

    Adding the number of the fill then gives other probabilities than replacing by it.
    """
    return _may_mask_rows(biases, [bias for bias in biases if bias.choices is not None], keys, VANISHING)


def may_give_nan(biases: Sequence[Bias], keys: int | None) -> bool:
    """Return whether constants together may add minus infinity to all `keys` of a query."""
    return _may_mask_rows(biases, biases, keys, -math.inf)


def _may_mask_rows(biases: Sequence[Bias], some: Sequence[Bias], keys: int | None, limit: float) -> bool:
    """Return whether constants add at most `limit` to all keys of a query, and one of `some` to at least one of them.

    Those that are added to different views of the scores are not compared: they count as masking a row.
    """
    masks = [(bias, bias.find_masked(limit)) for bias in biases if constant(bias.value) is not None]
    masks = [(bias, masked) for bias, masked in masks if masked.any()]
    if not any(bias in some for bias, _ in masks):
        return False
    if len({(bias.view, bias.is_swapped) for bias, _ in masks}) > 1:
        return True
    parts = np.broadcast_arrays(*(masked for _, masked in masks))
    by_some = [part for (bias, _), part in zip(masks, parts, strict=True) if bias in some]
    whole, partial = (_as_rows(np.logical_or.reduce(each), masks[0][0], keys) for each in (parts, by_some))
    return bool((whole.all(axis=-1) & partial.any(axis=-1)).any())


def _as_rows(masked: Array, bias: Bias, keys: int | None) -> Array:
    """Return (…, keys) of what is masked in the view of `bias`, which may split them; all if its sizes do not tell."""
    if bias.is_swapped:
        rows: Array = masked.swapaxes(-2, -1)
        return rows
    if bias.view is None or keys is None or bias.view[-1] in (keys, None):
        return masked
    whole = np.broadcast_to(masked, np.broadcast_shapes(masked.shape, tuple(n or 1 for n in bias.view)))
    return whole.reshape(-1, keys) if whole.size % keys == 0 else np.ones((1, keys), bool)


@dataclass(frozen=True)
class ScoresForm:
    """The canonical form of the scores (batch, heads, queries, keys), and the axes that the product gave them.

    Attributes:
        form: batch and heads.
        lead: the sizes in front of (queries, keys) in the product.
        tokens: the numbers of queries and keys.
    """

    form: Form
    lead: Sizes
    tokens: Sizes

    @property
    def sizes(self) -> Sizes:
        """The sizes of the canonical scores."""
        return (*self.form.sizes, *self.tokens)


def can_bring(bias: Bias, scores: ScoresForm) -> bool:
    """Return whether `merge_biases` can bring `bias` to the canonical scores."""
    if bias.view is None or dims(bias.value) is None:
        return False
    tokens = scores.tokens[::-1] if bias.is_swapped else scores.tokens
    if bias.view == (*scores.form.sizes, *tokens):
        return True
    return None not in tokens and (_fits(bias, bias.view, scores) or _is_per_image(bias, scores))


def _fits(bias: Bias, view: Sizes, scores: ScoresForm) -> bool:
    sizes, tokens = dims(bias.value) or (), scores.tokens[::-1] if bias.is_swapped else scores.tokens
    if len(sizes) > len(view):
        return False
    if scores.form.perm is None:
        return plan_view(sizes, view, (*scores.form.sizes, *tokens)) is not None
    whole = (*scores.lead, *tokens)
    if (plan := plan_view(sizes, view, whole)) is None:
        return False
    order = (*scores.form.perm, len(scores.lead), len(scores.lead) + 1)
    turned, turned_view = (tuple(shape[axis] for axis in order) for shape in (plan[1], whole))
    return plan_view(turned, turned_view, (*scores.form.sizes, *tokens)) is not None


def _is_per_image(bias: Bias, scores: ScoresForm) -> bool:
    """Return whether a constant over windows must be repeated for each image of a batch that varies."""
    view, sizes = bias.view, dims(bias.value) or ()
    if constant(bias.value) is None or view is None or scores.form.batch is not None or _fits(bias, view, scores):
        return False
    is_shared = all(n == 1 for n, size in zip(sizes[::-1], view[::-1], strict=False) if size is None)
    return is_shared and _fits(*_of_one_image(bias, scores))


def _of_one_image(bias: Bias, scores: ScoresForm) -> tuple[Bias, Sizes, ScoresForm]:
    """Return the bias, its view and the scores in a batch of one image."""
    view = tuple(n or 1 for n in bias.view or ())
    in_front = math.prod(view) // (count(scores.tokens) or 1)
    lead = tuple(n or in_front // math.prod(m or 1 for m in scores.lead) for n in scores.lead)
    form = replace(scores.form, batch=in_front // (scores.form.heads or 1))
    return replace(bias, view=view), view, replace(scores, form=form, lead=lead)


def merge_biases(
    tape: ir.tape.Tape, v: ir.Value, biases: tuple[Bias, ...], scores: ScoresForm, name: str
) -> ir.Value | None:
    """Merge all `biases` of the scores into one; None if they add nothing.

    Those that are added to the same view of the scores are added up there, where they are smallest. With a varying
    batch, a mask over windows is repeated for each image. The batch of `v`, which is 4-D, tells how many there are:

        mask (windows, 1, n, n) + bias (1, heads, n, n) ─ Tile ─▶ (batch · windows, heads, n, n)
    """
    biases = tuple(b for b in biases if not _adds_nothing(b))
    if not biases:
        return None
    summands, per_image = [], []
    for number, group in enumerate(_group(biases)):
        label = f"{name}/bias_{number}"
        parts = [_make_summand(tape, bias, f"{label}_{i}" if i else label) for i, bias in enumerate(group)]
        total = replace(group[0], value=_add_up(tape, parts, label), scale=1.0, choices=None)
        if _is_per_image(total, scores):
            one, _, one_image = _of_one_image(total, scores)
            per_image.append(_bring(tape, one, one_image, label))
        else:
            summands.append(_bring(tape, total, scores, label))
    if per_image:  # the Tile repeats a constant: all constants are added up first, and repeated together
        per_image += [s for s in summands if constant(s) is not None]
        summands = [s for s in summands if constant(s) is None]
        total_value = _add_up(tape, per_image, f"{name}/windows")
        summands.insert(0, _repeat_for_each_image(tape, v, total_value, f"{name}/windows"))
    return broadcast_mask(tape, _add_up(tape, summands, f"{name}/bias"), scores.tokens, name)


def _group(biases: Iterable[Bias]) -> list[list[Bias]]:
    """Group biases that are added to the same view of the scores, constants apart from what is computed."""
    groups: dict[tuple[Sizes | None, bool, bool], list[Bias]] = {}
    for bias in biases:
        groups.setdefault((bias.view, bias.is_swapped, constant(bias.value) is not None), []).append(bias)
    return list(groups.values())


def _bring(tape: ir.tape.Tape, bias: Bias, scores: ScoresForm, name: str) -> ir.Value:
    writer, tokens = FormWriter(tape, scores.form, name), scores.tokens
    view = bias.view or ()
    result = writer.bring_summand(bias.value, view, scores.lead, tokens[::-1] if bias.is_swapped else tokens, "view")
    assert result is not None, "can_bring was not asked"
    return writer.transpose_last(result, "swapped") if bias.is_swapped else result


def is_idle(mask: ir.Value, scores_shape: tuple[int | None, ...]) -> bool:
    """Return whether a constant mask leaves every score as it is: all true, or all zero.

    A mask that is larger than the scores is not idle: adding it would repeat them. Batches that vary count as equal,
    because `Attention` refuses a mask with another batch than the scores.
    """
    expand = producer(mask, "Expand")
    value, shape = (operand(expand, 0) if expand is not None else mask), dims(mask)
    if constant(value) is None or shape is None or len(shape) > len(scores_shape):
        return False
    fits = all(n in (1, size) for n, size in zip(shape[::-1], scores_shape[::-1], strict=False))
    numbers = array(value)
    return fits and bool(numbers.all() if numbers.dtype == np.bool_ else not numbers.any())


def make_additive(tape: ir.tape.Tape, mask: ir.Value, dtype: ir.DataType | None, name: str) -> ir.Value:
    """Turn a constant boolean mask into numbers to add, which every target takes. Return any other mask unchanged.

    A mask with a row that lets no key pass is unchanged too: the result of such a row is up to the operator.
    """
    if constant(mask) is None or mask.dtype != ir.DataType.BOOL or dtype is None:
        return mask
    if has_hidden_query(mask):
        return mask
    numbers = np.where(array(mask), 0.0, MASKED).astype(dtype.numpy())
    return tape.initializer(ir.tensor(numbers, name=f"{name}/additive_mask"))


def broadcast_mask(tape: ir.tape.Tape, mask: ir.Value, scores_shape: tuple[int | None, ...], name: str) -> ir.Value:
    """Broadcast `mask` to the last two axes of the scores (queries, keys), as Add would.

    `Attention` does not: it pads a short last axis with minus infinity, and ONNX Runtime refuses a single row.
    """
    shape = dims(mask)
    if shape is None or shape[-2:] == scores_shape or None in scores_shape:
        return mask
    if constant(mask) is not None:
        numbers = array(mask)
        target_shape = np.broadcast_shapes(numbers.shape, [int(n or 1) for n in scores_shape])
        numbers = np.broadcast_to(numbers, target_shape).copy()
        return tape.initializer(ir.tensor(numbers, name=f"{name}/mask"))
    target_value = tape.initializer(ir.tensor(np.array(scores_shape, np.int64), name=f"{name}/mask_shape"))
    return tape.op("Expand", [mask, target_value], name=f"{name}/mask")


def _adds_nothing(bias: Bias) -> bool:
    return bias.choices is None and is_idle(bias.value, bias.view or ())


def _make_summand(tape: ir.tape.Tape, bias: Bias, name: str) -> ir.Value:
    """Return the numbers that a bias adds: scaled, and chosen by its condition.

    A constant becomes a new one, because exporters share equal constants between nodes.
    """
    if constant(bias.value) is not None:
        return _make_constant_summand(tape, bias, name)
    if bias.choices is not None:
        yes, no = (
            tape.initializer(ir.tensor(np.array(bias.scale * number, np.float32), name=f"{name}/{label}"))
            for label, number in zip(("yes", "no"), bias.choices, strict=True)
        )
        result = tape.op("Where", [bias.value, yes, no], name=name)
        result.shape, result.dtype = bias.value.shape, ir.DataType.FLOAT
        return result
    if bias.scale == 1.0:
        return bias.value
    factor = tape.initializer(ir.tensor(np.array(bias.scale, np.float32), name=f"{name}/factor"))
    result = tape.op("Mul", [bias.value, factor], name=name)
    result.shape, result.type = bias.value.shape, bias.value.type
    return result


def _make_constant_summand(tape: ir.tape.Tape, bias: Bias, name: str) -> ir.Value:
    if bias.scale == 1.0 and bias.choices is None:
        return bias.value
    numbers = array(bias.value)
    if bias.choices is not None:
        numbers = np.where(numbers, *bias.choices).astype(np.float32)
    return tape.initializer(ir.tensor(numbers * np.array(bias.scale, numbers.dtype), name=name))


def _repeat_for_each_image(tape: ir.tape.Tape, v: ir.Value, bias: ir.Value, name: str) -> ir.Value:
    """Repeat a constant (windows, heads, n, n) for each image in v (batch · windows, heads, n, size).

    The batch is read from v and not from q: q must keep a single reader, or its scale does not fold into its linear.
    """
    windows, *rest = array(bias).shape

    def ints(label: str, values: list[int]) -> ir.Value:
        return tape.initializer(ir.tensor(np.array(values, np.int64), name=f"{name}/{label}"))

    size = tape.op("Shape", [v], {"start": 0, "end": 1}, name=f"{name}/all")
    images = tape.op("Div", [size, ints("number", [windows])], name=f"{name}/images")
    repeats = tape.op("Concat", [images, ints("ones", [1] * len(rest))], {"axis": 0}, name=f"{name}/times")
    result = tape.op("Tile", [bias, repeats], name=f"{name}/repeated")
    result.shape, result.type = ir.Shape([None, *rest]), bias.type
    return result


def _add_up(tape: ir.tape.Tape, summands: list[ir.Value], name: str) -> ir.Value:
    """Add the summands; constants are added right away."""
    total, *others = summands
    for number, other in enumerate(others):
        label = f"{name}_sum_{number}"
        if constant(total) is not None and constant(other) is not None:
            total = tape.initializer(ir.tensor(array(total) + array(other), name=label))
            continue
        one, two = dims(total), dims(other)
        result = tape.op("Add", [total, other], name=label)
        result.type = total.type
        if one is not None and two is not None:
            result.shape = ir.Shape(_broadcast(one, two))
        total = result
    return total


def _broadcast(one: Sizes, two: Sizes) -> Sizes:
    """Return the sizes of a sum. A size that varies is the result's, unless the other one is a number above 1."""
    rank = max(len(one), len(two))
    pairs = zip(*((1,) * (rank - len(sizes)) + sizes for sizes in (one, two)), strict=True)
    return tuple(b if a == 1 else a if b == 1 or b is None else b for a, b in pairs)
