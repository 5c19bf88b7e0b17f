"""Write the nodes that merge tokens, in operators that every engine has: no scatter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.structure import MERGE

_LEAST_LENGTH = 1e-6
"""The length that a key is divided by at least: a key of zeros is similar to none."""
_TO_THE_END = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Merged:
    """The tokens behind a merge.

    Attributes:
        tokens: (B, N - removed, C).
        sizes: how many tokens each stands for, (B, N - removed, 1).
        places: where each patch from before the merge is among those behind it, (B, patches), counted from the first
            patch; None where nothing asks for it.
    """

    tokens: ir.Value
    sizes: ir.Value
    places: ir.Value | None


class MergeWriter:
    """A tape with the nodes of one merge, or of what reads merged tokens.

    keys (B, H, N, d) ─ mean over heads ─ even patches a, odd patches b ─ cosine ─ best b for each a
    the `removed` patches of a with the highest cosine ─ one-hot of their best b (B, odd, removed)
    tokens = special · other patches of a · (b · size of b + one-hot · a · size of a) / size of both
    """

    def __init__(self, module: str) -> None:
        self.tape = ir.tape.Tape()
        self._module = module

    def op(self, label: str, op_type: str, *inputs: ir.Value | None, **attributes: object) -> ir.Value:
        """Add one node, and return its output."""
        return self.tape.op(op_type, list(inputs), attributes or None, name=f"{self._module}{MERGE}/{label}")  # type: ignore[arg-type]

    def ints(self, label: str, *numbers: int) -> ir.Value:
        """Add a constant vector."""
        return self.tape.initializer(ir.tensor(np.array(numbers, np.int64), name=f"{self._module}{MERGE}/{label}"))

    def number(self, label: str, number: float) -> ir.Value:
        """Add a constant number."""
        return self.tape.initializer(ir.tensor(np.array(number, np.float32), name=f"{self._module}{MERGE}/{label}"))

    def cut(self, label: str, value: ir.Value, start: int, end: int, axis: int = 1, step: int = 1) -> ir.Value:
        """Cut out `start` to `end` along an axis."""
        places = (start, end, axis, step)[: 4 if step > 1 else 3]
        names = ("start", "end", "axis", "step")
        limits = [self.ints(f"{label}_{name}", place) for name, place in zip(names, places, strict=False)]
        return self.op(label, "Slice", value, *limits)

    def pick(self, label: str, value: ir.Value, indices: ir.Value, channels: int) -> ir.Value:
        """Pick tokens, (B, n, channels), by their indices (B, n), image by image."""
        column = self.op(f"{label}_column", "Unsqueeze", indices, self.ints(f"{label}_axis", -1))
        if channels > 1:
            column = self.op(f"{label}_columns", "Expand", column, self.ints(f"{label}_channels", 1, 1, channels))
        return self.op(label, "GatherElements", value, column, axis=1)

    # ------------------------------------------------------------------------------------------------------- merge

    def merge(
        self, tokens: ir.Value, keys: ir.Value, sizes: ir.Value | None, *, special: int, count: int, removed: int,
        channels: int, has_places: bool,
    ) -> Merged:  # fmt: skip
        """Write a merge.

        Args:
            tokens: (B, N, C).
            keys: of the attention before it, (B, heads, N, d).
            sizes: how many tokens each stands for, (B, N, 1); None if all stand for themselves.
            special: the number of leading tokens that are not merged.
            count: N.
            removed: how many tokens fewer there will be, at most half of the patches, rounded up.
            channels: C.
            has_places: write `Merged.places` too.
        """
        even, odd = (count - special + 1) // 2, (count - special) // 2
        best, order = self._match(keys, special, count, even)
        chosen = self.cut("chosen", order, 0, removed)
        partners = self.op("partners", "GatherElements", best, chosen, axis=1)
        numbers = self.tape.initializer(
            ir.tensor(np.arange(odd, dtype=np.int64).reshape(1, odd, 1), name=f"{self._module}{MERGE}/numbers")
        )
        row = self.op("partners_row", "Unsqueeze", partners, self.ints("partners_axis", 1))
        onehot = self.op("onehot", "Cast", self.op("is_partner", "Equal", row, numbers), to=ir.DataType.FLOAT)

        parts = []
        if special:
            parts.append(self.cut("special", tokens, 0, special))
        ordered = self.pick("ordered", self._cut_even("even", tokens, special, count), order, channels)
        if removed < even:
            parts.append(self.cut("kept", ordered, removed, even))
        moved = self.cut("moved", ordered, 0, removed)
        targets = self._cut_odd("odd", tokens, special, count)
        shares, own_share, new_sizes = self._weigh(onehot, order, sizes, special, count, removed)
        sum_of_moved = self.op("sum_moved", "MatMul", shares, moved)
        parts.append(self.op("merged", "Add", self.op("own", "Mul", targets, own_share), sum_of_moved))
        merged = self.op("tokens", "Concat", *parts, axis=1) if len(parts) > 1 else parts[0]
        places = self._place(order, best, even, odd, removed) if has_places else None
        return Merged(merged, new_sizes, places)

    def _cut_even(self, label: str, value: ir.Value, special: int, count: int) -> ir.Value:
        return self.cut(label, value, special, count, step=2)

    def _cut_odd(self, label: str, value: ir.Value, special: int, count: int) -> ir.Value:
        return self.cut(label, value, special + 1, count, step=2)

    def _match(self, keys: ir.Value, special: int, count: int, even: int) -> tuple[ir.Value, ir.Value]:
        """Return the most similar odd patch of each even one, and the even ones in order of similarity: (B, even)."""
        mean = self.op("mean_key", "ReduceMean", keys, self.ints("heads", 1), keepdims=0)
        length = self.op("similarity/length", "ReduceL2", mean, self.ints("similarity/columns", -1), keepdims=1)
        unit = self.op(
            "similarity/unit",
            "Div",
            mean,
            self.op("similarity/safe_length", "Max", length, self.number("similarity/least", _LEAST_LENGTH)),
        )
        a, b = (
            self._cut_even("similarity/even_keys", unit, special, count),
            self._cut_odd("similarity/odd_keys", unit, special, count),
        )
        cosine = self.op(
            "similarity/cosine", "MatMul", a, self.op("similarity/odd_columns", "Transpose", b, perm=[0, 2, 1])
        )
        best = self.op("similarity/best", "ArgMax", cosine, axis=-1, keepdims=0)
        highest = self.op("similarity/highest", "ReduceMax", cosine, self.ints("similarity/odd_axis", -1), keepdims=0)
        return best, self._sort("similarity/order", highest, even, largest=1)

    def _sort(self, label: str, values: ir.Value, count: int, *, largest: int) -> ir.Value:
        """Return the indices that sort values, (B, count)."""
        inputs = [values, self.ints(f"{label}_count", count)]
        attributes = {"axis": -1, "largest": largest, "sorted": 1}
        name = f"{self._module}{MERGE}/{label}"
        return self.tape.op_multi_out("TopK", inputs, attributes, num_outputs=2, name=name)[1]

    def _weigh(
        self, onehot: ir.Value, order: ir.Value, sizes: ir.Value | None, special: int, count: int, removed: int
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Return the shares of moved tokens in each odd one (B, odd, removed), its own share, and all new sizes.

        Tokens are multiplied by shares, at most 1, and not by sizes: a sum of 60 tokens could overflow float16.
        """
        even, last = (count - special + 1) // 2, self.ints("moved_axis", -1)
        one = self.number("one", 1.0)
        if sizes is None:
            added = self.op("added", "ReduceSum", onehot, last, keepdims=1)
            pads = self.ints("pads", 0, special + even - removed, 0, 0, 0, 0)
            new_sizes = self.op("beside/sizes", "Add", self.op("padded", "Pad", added, pads), one)
            share = self.op("own_share", "Div", one, self.op("total", "Add", added, one))
            return self.op("shares", "Mul", onehot, share), share, new_sizes
        ordered = self.pick("ordered_sizes", self._cut_even("even_sizes", sizes, special, count), order, 1)
        moved = self.cut("moved_sizes", ordered, 0, removed)
        weighted = self.op("weighted", "Mul", onehot, self.op("sizes_row", "Transpose", moved, perm=[0, 2, 1]))
        own = self._cut_odd("odd_sizes", sizes, special, count)
        total = self.op("total", "Add", own, self.op("added", "ReduceSum", weighted, last, keepdims=1))
        parts = [self.cut("special_sizes", sizes, 0, special)] if special else []
        if removed < even:
            parts.append(self.cut("kept_sizes", ordered, removed, even))
        new_sizes = self.op("beside/sizes", "Concat", *parts, total, axis=1)
        return self.op("shares", "Div", weighted, total), self.op("own_share", "Div", own, total), new_sizes

    def _place(self, order: ir.Value, best: ir.Value, even: int, odd: int, removed: int) -> ir.Value:
        """Return where each patch is behind the merge, (B, even + odd), counted from the first patch.

        The kept ones of a come first, then b. A TopK of the order is its inverse: the rank of each even patch.
        """
        left = self.ints("kept_count", even - removed)
        rank = self._sort("rank", order, even, largest=0)
        border = self.ints("border", removed)
        is_moved = self.op("is_moved", "Less", rank, border)
        moved_to, kept_at = self.op("moved_to", "Add", best, left), self.op("kept_at", "Sub", rank, border)
        evens = self.op("even_places", "Where", is_moved, moved_to, kept_at)
        numbers = np.arange(even - removed, even - removed + odd, dtype=np.int64).reshape(1, odd)
        row = self.tape.initializer(ir.tensor(numbers, name=f"{self._module}{MERGE}/odd_numbers"))
        zeros = self.op("zeros", "Mul", self.cut("some", order, 0, 1), self.ints("zero", 0))
        odds = self.op("odd_places", "Add", row, zeros)  # one row for each image
        both = self.op("both_places", "Concat", evens, odds, axis=1)
        turns = [i // 2 if i % 2 == 0 else even + i // 2 for i in range(even + odd)]
        return self.op("beside/places", "Gather", both, self.ints("turns", *turns), axis=1)

    # ----------------------------------------------------------------------------------- read merged tokens

    def log_sizes(self, sizes: ir.Value, start: int, queries: int) -> ir.Value:
        """Return the bias of an attention whose keys are merged: a key counts once for each token in it.

        It is (B, 1, queries, keys), because the operator `Attention` does not broadcast queries in ONNX Runtime.
        """
        log = self.op(
            "beside/log_sizes", "Log", sizes if not start else self.cut("beside/left_sizes", sizes, start, _TO_THE_END)
        )
        row = self.op(
            "beside/log_row",
            "Unsqueeze",
            self.op("beside/log_turned", "Transpose", log, perm=[0, 2, 1]),
            self.ints("row", 1),
        )
        return self.op("beside/bias", "Expand", row, self.ints("queries", 1, 1, queries, 1)) if queries > 1 else row

    def mean(self, tokens: ir.Value, sizes: ir.Value, axis: int, start: int, whole: int, *, keepdims: int) -> ir.Value:
        """Return the mean of tokens that stand for `whole` of them, as one token or without its axis.

        Args:
            tokens: (B, n, C), or (B, C, n) with `axis` 2.
            sizes: (B, N, 1).
            axis: the axis of tokens.
            start: the number of leading tokens that `tokens` lacks.
            whole: the number of tokens before any merge.
            keepdims: 1 to keep the axis.
        """
        left = sizes if not start else self.cut("beside/mean_sizes", sizes, start, _TO_THE_END)
        share = self.op("beside/mean_shares", "Mul", left, self.number("mean_whole", 1 / whole))
        if axis == 2:
            share = self.op("beside/mean_row", "Transpose", share, perm=[0, 2, 1])
        weighted = self.op("mean_weighted", "Mul", tokens, share)
        return self.op("mean", "ReduceSum", weighted, self.ints("mean_axis", axis), keepdims=keepdims)

    def compose(self, first: ir.Value, second: ir.Value) -> ir.Value:
        """Return the places behind two merges, (B, patches), from those behind each."""
        return self.op("beside/places_behind_all", "GatherElements", second, first, axis=1)

    def unmerge(
        self, tokens: ir.Value, places: ir.Value, axis: int, shape: Sequence[int | None], special: int
    ) -> ir.Value:
        """Return each patch as the token that it was merged into, behind `special` tokens, on the same axis.

        Args:
            tokens: the tokens, images first.
            places: the indices, (B, patches).
            axis: the axis of tokens, not the first.
            shape: the shape of `tokens`. Only the batch may vary.
            special: the number of leading tokens that were not merged.
        """
        patches = self.cut("merged_patches", tokens, special, _TO_THE_END, axis) if special else tokens
        others = [a for a in range(1, len(shape)) if a != axis]
        row = self.op("places_row", "Unsqueeze", places, self.ints("places_axes", *others)) if others else places
        times = self.ints("copies", *(shape[a] or 1 if a in others else 1 for a in range(len(shape))))
        unmerged = self.op(
            "unmerged", "GatherElements", patches, self.op("all_places", "Expand", row, times), axis=axis
        )
        if not special:
            return unmerged
        first = self.cut("unmerged_special", tokens, 0, special, axis)
        return self.op("all_unmerged", "Concat", first, unmerged, axis=axis)
