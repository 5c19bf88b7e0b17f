"""Fold the arithmetic of preprocessing, (x / 255 - mean) / std, into the patch embedding."""

from __future__ import annotations

from typing import Literal

import numpy as np
import onnx_ir as ir

from vitdeploy.errors import GraphError
from vitdeploy.graph.model import Graph, dims, operand
from vitdeploy.passes import Pass, PassResult
from vitdeploy.passes._linear import Linear, linear_of, rewrite
from vitdeploy.session import Array

_BYTE = 255.0
_EXACT_HALF = 1 / 256
"""A power of two: it takes bytes to [0, 1) without rounding, in float16 too."""


class FoldPreprocessing(Pass):
    """The graph takes pixels from 0 to 255, RGB, NCHW; what turned them into the model's input is in its weights.

        normalized ─ Conv(W, b)   ─▶   pixels ─ [Cast] ─ Conv(W·a, b + Σ W·c)      a = 1 / (255 std), c = -mean / std

    A Conv that pads with zeros, which are the mean there, gets them after a subtraction: pixels ─ Sub 255 mean ─
    Conv(W·a, b). Where the image goes elsewhere (two readers, a resize first), it is computed: pixels ─ Mul a ─ Add c,
    and the refusal says so.

    Attributes:
        mean, std: one number for each channel, of pixels in [0, 1].
        dtype: of the graph's input.
        half: the weights become float16. Divided by 255 they would be subnormal there, with few digits left, so the
            pixels are divided by 256 first.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    dtype: Literal["float32", "uint8"] = "float32"
    half: bool = False

    def apply(self, graph: Graph) -> PassResult:
        """Let the graph take pixels.

        Raises:
            GraphError: it has not one image input with these channels.
        """
        image = _image(graph, len(self.mean))
        factor, shift = 1 / (_BYTE * np.asarray(self.std)), -np.asarray(self.mean) / np.asarray(self.std)
        conv = _only_conv(image)
        steps: list[_Step] = [("Cast", "input/cast", None)] if self.dtype == "uint8" else []
        if self.half:
            steps.append(("Mul", "input/scale", np.float32(_EXACT_HALF)))
            factor = factor / _EXACT_HALF
        if conv is None:
            steps += [("Mul", "input/std", _per_channel(factor)), ("Add", "input/mean", _per_channel(shift))]
        elif _pads(conv.product):
            steps.append(("Sub", "input/mean", _per_channel(-shift / factor)))
            shift = np.zeros_like(shift)
        _insert(graph, image, steps)
        if self.dtype == "uint8":
            image.dtype = ir.DataType.UINT8
        if conv is None:
            return PassResult(1, {str(image.name): "no convolution alone reads the image: normalized before it"})
        _fold(graph, conv, factor, shift)
        return PassResult(1)


_Step = tuple[str, str, Array | np.float32 | None]
"""An operator with its node's name and its second operand."""


def _insert(graph: Graph, image: ir.Value, steps: list[_Step]) -> None:
    """Put `steps` between the image and everything that reads it."""
    readers, tape, value = list(image.uses()), ir.tape.Tape(), image
    for op_type, name, number in steps:
        if number is None:
            result = tape.op(op_type, [value], {"to": ir.DataType.FLOAT}, name=name)
        else:
            other = tape.initializer(ir.tensor(np.asarray(number), name=f"{name}_operand"))
            result = tape.op(op_type, [value, other], name=name)
        result.name, result.shape, result.dtype = f"{name}:0", image.shape, ir.DataType.FLOAT
        value = result
    for initializer in tape.initializers:
        graph.model.graph.register_initializer(initializer)
    if tape.nodes:
        graph.model.graph.insert_before(graph.model.graph[0], list(tape.nodes))
    for node, index in readers:
        node.replace_input_with(index, value)


def _image(graph: Graph, channels: int) -> ir.Value:
    inputs = [v for v in graph.model.graph.inputs if v.name not in graph.model.graph.initializers]
    shape = dims(inputs[0]) if len(inputs) == 1 else None
    if shape is None or len(shape) != 4 or shape[1] != channels:
        found = ", ".join(f"{v.name}{v.shape}" for v in inputs)
        raise GraphError(f"the graph takes {found}, not images of {channels} channels", fix="Leave --input out.")
    return inputs[0]


def _only_conv(image: ir.Value) -> Linear | None:
    """The Conv over all channels that alone reads the image."""
    uses = [use.node for use in image.uses()]
    if len(uses) != 1 or image.is_graph_output() or uses[0].op_type != "Conv":
        return None
    linear = linear_of(uses[0])
    whole = linear is not None and linear.weight.shape[1] == (dims(image) or ())[1]
    return linear if whole else None


def _pads(conv: ir.Node) -> bool:
    automatic = conv.attributes.get_string("auto_pad", "NOTSET")
    return automatic.startswith("SAME") or any(conv.attributes.get_ints("pads", []))


def _fold(graph: Graph, conv: Linear, factor: Array, shift: Array) -> None:
    weight = conv.weight.astype(np.float64)
    constant = weight.reshape(*weight.shape[:2], -1).sum(axis=2) @ shift
    bias = constant if conv.bias is None else conv.bias + constant
    scaled = weight * factor.reshape(1, -1, *[1] * (weight.ndim - 2))
    if not rewrite(graph, conv, operand(conv.product, 0), scaled, bias):
        raise GraphError(f"{conv.product.name} cannot hold weights for pixels", fix="Leave --input out.")


def _per_channel(values: Array) -> Array:
    return values.astype(np.float32)[None, :, None, None]
