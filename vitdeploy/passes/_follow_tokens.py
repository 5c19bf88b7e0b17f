"""Follow tokens of which some are removed to the end of a model: what takes them, and what needs their places."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.model import array, constant, dims
from vitdeploy.passes._special_tokens import read_shape
from vitdeploy.passes._token_axis import (
    CORE_INPUTS,
    ELEMENT_WISE,
    find_input_axes,
    find_reshape_axis,
    read_selection,
)
from vitdeploy.session import Array

_CONVOLUTIONS = {"Conv", "ConvTranspose"}
_POOLS = {"AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool", "LpPool"}
_Use = tuple[ir.Node, int]


@dataclass(frozen=True)
class TokenAxis:
    """The axis of tokens of a value, how often some were removed, and how many leading tokens are cut off."""

    axis: int
    removals: int
    start: int = 0


class PlacesNeeded(Exception):
    """An operator needs the places of the patches, which the removals from number `first` on change."""

    def __init__(self, reason: str, first: int = 1) -> None:
        super().__init__(reason)
        self.first = first


@dataclass
class Follower:
    """The values that hold fewer tokens, and the changes that their operators need. Shapes are those of before.

    Attributes:
        special: the number of leading tokens that are never removed.
        counts: the number of tokens after no removal, after one, after two, …
        tokens: the values that hold fewer tokens.
        constants: inputs with the number of tokens in them, and the new numbers.
        keys: the attentions that read fewer tokens as keys.
        means: the means over fewer tokens.
    """

    special: int
    counts: list[int]
    tokens: dict[ir.Value, TokenAxis] = field(default_factory=dict)
    constants: dict[_Use, Array] = field(default_factory=dict)
    keys: dict[ir.Node, TokenAxis] = field(default_factory=dict)
    means: dict[ir.Node, TokenAxis] = field(default_factory=dict)

    def count(self, tokens: TokenAxis) -> int:
        """Return how many tokens a value will have."""
        return self.counts[tokens.removals] - tokens.start

    def follow(self, node: ir.Node) -> None:
        """Note what one operator does with the tokens, if it reads any.

        Raises:
            PlacesNeeded: it needs the places of the patches, or is not known.
        """
        reads = {i: self.tokens[v] for i, v in enumerate(node.inputs) if v is not None and v in self.tokens}
        if not reads:
            return
        if node.domain != "":
            raise PlacesNeeded(f"{node.domain}.{node.op_type} reads the tokens, and is not known here")
        _RULES.get(node.op_type, Follower._keep_axis)(self, node, reads)

    # ------------------------------------------------------------------------------------------- one token at a time

    def _keep_axis(self, node: ir.Node, reads: Mapping[int, TokenAxis]) -> None:
        """Follow an operator that treats each token by itself."""
        tokens = _agree(node, reads)
        old_count = self._old_count(tokens)
        for axis in range(len(dims(node.outputs[0]) or ())):
            axes = find_input_axes(node, axis, old_count)
            if not axes or any(axes.get(index) != read.axis for index, read in reads.items()):
                continue
            for index in axes.keys() - reads.keys():
                _refuse_operand(node, index)
            self.tokens[node.outputs[0]] = replace(tokens, axis=axis)
            return
        raise PlacesNeeded(_explain(node))

    def _follow_reshape(self, node: ir.Node, reads: Mapping[int, TokenAxis]) -> None:
        self._keep_axis(node, reads)
        tokens, shape = self.tokens[node.outputs[0]], array(node.inputs[1]).copy()
        if shape[tokens.axis] > 0:
            shape[tokens.axis] = self.count(tokens)
            self.constants[node, 1] = shape

    def _follow_squeeze(self, node: ir.Node, reads: Mapping[int, TokenAxis]) -> None:
        before, after = dims(node.inputs[0]), dims(node.outputs[0])
        axes = range(len(after or ()))
        axis = next(
            (a for a in axes if before and after and find_reshape_axis(before, after, a) == reads[0].axis), None
        )
        if axis is None:
            raise PlacesNeeded(_explain(node))
        self.tokens[node.outputs[0]] = replace(reads[0], axis=axis)

    def _follow_softmax(self, node: ir.Node, reads: Mapping[int, TokenAxis]) -> None:
        if node.attributes.get_int("axis", -1) % len(dims(node.outputs[0]) or (0,)) == reads[0].axis:
            raise PlacesNeeded("a softmax over the tokens is no attention that is known here")
        self.tokens[node.outputs[0]] = reads[0]

    def _follow_concat(self, node: ir.Node, reads: Mapping[int, TokenAxis]) -> None:
        tokens = _agree(node, reads)
        rank = len(dims(node.outputs[0]) or (0,))
        if node.attributes.get_int("axis", 0) % rank == tokens.axis:
            raise PlacesNeeded("the tokens are joined with others, as in a model with several streams of tokens")
        for index in set(range(len(node.inputs))) - reads.keys():
            _refuse_operand(node, index)
        self.tokens[node.outputs[0]] = tokens

    def _follow_expand(self, node: ir.Node, reads: Mapping[int, TokenAxis]) -> None:
        shape, before, after = read_shape(node), dims(node.inputs[0]), dims(node.outputs[0])
        if shape is None or before is None or after is None or 0 not in reads:
            raise PlacesNeeded(_explain(node))
        axis = reads[0].axis + len(after) - len(before)
        place = axis - len(after) + len(shape)
        tokens = replace(reads[0], axis=axis)
        if place >= 0 and shape[place] != 1:
            shape[place] = self.count(tokens)
            self.constants[node, 1] = np.array(shape, np.int64)
        self.tokens[node.outputs[0]] = tokens

    # ------------------------------------------------------------------------------------------ some of the tokens

    def _follow_gather(self, node: ir.Node, reads: Mapping[int, TokenAxis]) -> None:
        selection = self._select(node, reads)
        if selection is None:
            raise PlacesNeeded(_explain(node))
        axis, indices = selection
        if axis != reads[0].axis:
            drops = 1 if indices.ndim == 0 and axis < reads[0].axis else 0
            self.tokens[node.outputs[0]] = replace(reads[0], axis=reads[0].axis - drops)
        elif (tokens := self._cut(indices, reads[0])) is not None:
            self.constants[node, 1] = np.arange(tokens.start - reads[0].start, self.count(reads[0]))
            self.tokens[node.outputs[0]] = tokens

    def _follow_slice(self, node: ir.Node, reads: Mapping[int, TokenAxis]) -> None:
        axes = read_shape(node, 3)
        if axes is not None and len(dims(node.inputs[0]) or ()) and 0 in reads:
            rank = len(dims(node.inputs[0]) or ())
            if all(axis % rank != reads[0].axis for axis in axes):
                self.tokens[node.outputs[0]] = reads[0]
                return
        selection = self._select(node, reads)
        if selection is None:
            raise PlacesNeeded(_explain(node))
        if (tokens := self._cut(selection[1], reads[0])) is not None:
            self.constants[node, 1] = np.array([tokens.start - reads[0].start])
            self.constants[node, 2] = np.array([self.count(reads[0])])
            self.tokens[node.outputs[0]] = tokens

    def _follow_split(self, node: ir.Node, reads: Mapping[int, TokenAxis]) -> None:
        shape, tokens = dims(node.inputs[0]), reads.get(0)
        if shape is None or tokens is None:
            raise PlacesNeeded(_explain(node))
        if node.attributes.get_int("axis", 0) % len(shape) != tokens.axis:
            self.tokens.update(dict.fromkeys(node.outputs, tokens))
            return
        sizes = [(dims(v) or ())[tokens.axis] or 0 for v in node.outputs]
        left = self.special - tokens.start
        if len(node.inputs) < 2 or constant(node.inputs[1]) is None or sum(sizes[:-1]) > left:
            raise PlacesNeeded("the tokens are split between patches")
        cut = replace(tokens, start=tokens.start + sum(sizes[:-1]))
        self.constants[node, 1] = np.array([*sizes[:-1], self.count(cut)])
        self.tokens[node.outputs[-1]] = cut

    def _select(self, node: ir.Node, reads: Mapping[int, TokenAxis]) -> tuple[int, Array] | None:
        source = node.inputs[0]
        shape = None if source is None else dims(source)
        return None if source is None or shape is None or 0 not in reads else read_selection(node, source, shape)

    def _cut(self, indices: Array, tokens: TokenAxis) -> TokenAxis | None:
        """Return the tokens that are left if leading ones are cut off; None if only special tokens are picked."""
        left = self.special - tokens.start
        if (indices < left).all():
            return None
        first, count = int(indices.reshape(-1)[0]), self._old_count(tokens)
        if first > left or not np.array_equal(indices, np.arange(first, count)):
            raise PlacesNeeded("single patches are picked by their place")
        return replace(tokens, start=tokens.start + first)

    # ---------------------------------------------------------------------------------------- all tokens at once

    def _follow_attention(self, node: ir.Node, reads: Mapping[int, TokenAxis]) -> None:
        if node.attributes.get_int("is_causal", 0) or any(v is not None for v in node.inputs[CORE_INPUTS:]):
            raise PlacesNeeded("an attention is causal or caches keys")
        self._shrink_bias(node, reads)
        if any(len(dims(node.inputs[index]) or ()) != 4 or read.axis != 2 for index, read in reads.items()):
            raise PlacesNeeded("an attention does not take the tokens one by one, as in windows or across channels")
        pair = {index: read for index, read in reads.items() if index in (1, 2)}
        if pair:
            keys = _agree(node, pair)
            if len(pair) < 2:
                raise PlacesNeeded("an attention takes fewer keys than values", keys.removals)
            self.keys[node] = keys
        if 0 in reads:
            self.tokens[node.outputs[0]] = reads[0]

    def _shrink_bias(self, node: ir.Node, reads: Mapping[int, TokenAxis]) -> None:
        """Cut a bias (…, queries, keys) to fewer tokens, if it has the same numbers for all of them."""
        bias = node.inputs[CORE_INPUTS - 1] if len(node.inputs) >= CORE_INPUTS else None
        shape = dims(bias)
        if bias is None:
            return
        axes = {axis: reads[index] for index, axis in ((0, -2), (1, -1)) if index in reads}
        axes = {axis: tokens for axis, tokens in axes.items() if shape is None or (1, 1, *shape)[axis] != 1}
        if not axes:
            return
        numbers = array(bias) if constant(bias) is not None else None
        if numbers is None or any((numbers != numbers.take([0], axis)).any() for axis in axes):
            raise PlacesNeeded("an attention has a mask, or adds a bias by the places of two tokens")
        for axis, tokens in axes.items():
            numbers = numbers.take(range(self.count(tokens)), axis)
        self.constants[node, CORE_INPUTS - 1] = numbers

    def _follow_reducemean(self, node: ir.Node, reads: Mapping[int, TokenAxis]) -> None:
        axes = read_shape(node) if len(node.inputs) > 1 else list(node.attributes.get_ints("axes", ()))
        rank, tokens = len(dims(node.inputs[0]) or ()), reads[0]
        gone = {axis % rank for axis in axes or ()}
        keeps = bool(node.attributes.get_int("keepdims", 1))
        if gone == {tokens.axis} and rank == 3 and tokens.axis:
            self.means[node] = tokens
        elif not gone or tokens.axis in gone:
            raise PlacesNeeded("a mean is taken over the tokens and another axis")
        else:
            lower = 0 if keeps else sum(axis < tokens.axis for axis in gone)
            self.tokens[node.outputs[0]] = replace(tokens, axis=tokens.axis - lower)

    def _follow_shape(self, node: ir.Node, reads: Mapping[int, TokenAxis]) -> None:
        """Accept a Shape of which only other sizes are read, such as the batch."""
        for use in node.outputs[0].uses():
            places = read_shape(use.node) if use.node.op_type == "Gather" else None
            if places is None or reads[0].axis in [place % len(dims(node.inputs[0]) or (1,)) for place in places]:
                raise PlacesNeeded("the model computes with the number of tokens")

    def _old_count(self, tokens: TokenAxis) -> int:
        return self.counts[0] - tokens.start


def _agree(node: ir.Node, reads: Mapping[int, TokenAxis]) -> TokenAxis:
    """Return the removals before all tokens that an operator reads.

    Raises:
        PlacesNeeded: it reads tokens from before and behind a removal.
    """
    first, *others = reads.values()
    if any((read.removals, read.start) != (first.removals, first.start) for read in others):
        fewest = min(read.removals for read in reads.values())
        raise PlacesNeeded(_across(node), fewest + 1)
    return first


def _refuse_operand(node: ir.Node, index: int) -> None:
    """Refuse numbers for each place, and tokens from before a removal."""
    if constant(node.inputs[index]) is None:
        raise PlacesNeeded(_across(node))
    if node.op_type == "Mul":
        raise PlacesNeeded("each place has a factor of its own behind it, as with rotary positions (RoPE)")
    raise PlacesNeeded(f"each place has numbers of its own behind it, such as positions ({node.op_type})")


def _across(node: ir.Node) -> str:
    return f"{node.op_type} {node.name} combines the tokens with those from before some were removed"


def _explain(node: ir.Node) -> str:
    """Return why an operator cannot take fewer tokens."""
    if node.op_type == "Reshape":
        return "the tokens are arranged as a grid, as windows or in another order"
    if node.op_type in _CONVOLUTIONS:
        return "a convolution goes over the tokens"
    if node.op_type in _POOLS:
        return "the tokens are pooled over a grid"
    if node.op_type in ELEMENT_WISE:
        return f"{node.op_type} {node.name} combines the tokens with values of other sizes"
    return f"it is not known how {node.op_type} {node.name} treats single tokens"


_RULES: Mapping[str, Callable[[Follower, ir.Node, Mapping[int, TokenAxis]], None]] = {
    "Attention": Follower._follow_attention,
    "Concat": Follower._follow_concat,
    "Expand": Follower._follow_expand,
    "Gather": Follower._follow_gather,
    "ReduceMean": Follower._follow_reducemean,
    "Reshape": Follower._follow_reshape,
    "Shape": Follower._follow_shape,
    "Slice": Follower._follow_slice,
    "Softmax": Follower._follow_softmax,
    "Split": Follower._follow_split,
    "Squeeze": Follower._follow_squeeze,
    "Unsqueeze": Follower._follow_squeeze,
}
"""Operators that do more than treat each token by itself."""
