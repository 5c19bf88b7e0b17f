"""Fold the arithmetic of preprocessing, (x / 255 - mean) / std, into the patch embedding."""

from __future__ import annotations

from typing import Literal

import numpy as np
import onnx_ir as ir

from vitdeploy.errors import GraphError
from vitdeploy.graph.model import Graph, dims, operand
from vitdeploy.passes import Pass, PassResult
from vitdeploy.passes._linear import LinearMatch, match_linear, rewrite_linear
from vitdeploy.session import Array

_BYTE = 255.0
_EXACT_SCALE = 1 / 256
"""A power of two brings bytes to [0, 1) without rounding, in float16 too."""


class FoldPreprocessing(Pass):
    """Let the graph take pixels from 0 to 255 (RGB, NCHW), and fold their normalization into its weights.

        normalized ─ Conv(W, b)   ─▶   pixels ─ [Cast] ─ Conv(W·a, b + Σ W·c)      a = 1 / (255 std), c = -mean / std

    A Conv that pads with zeros needs the mean subtracted first, because a zero stands for the mean there: pixels ─
    Sub 255·mean ─ Conv(W·a, b). Where anything but one Conv reads the image (two readers, a resize first), the
    normalization is computed in the graph: pixels ─ Mul a ─ Add c. The refusal says so.

    Attributes:
        mean, std: one number for each channel, of pixels in [0, 1].
        dtype: data type of the graph's input.
        half: whether the weights become float16 later. Divided by 255 they would be subnormal there and lose digits,
            so the pixels are divided by 256 first.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    dtype: Literal["float32", "uint8"] = "float32"
    half: bool = False

    def apply(self, graph: Graph) -> PassResult:
        """Let the graph take pixels.

        Raises:
            GraphError: the first input of the graph is no image with this number of channels.
        """
        image = _find_image(graph, len(self.mean))
        factor, shift = 1 / (_BYTE * np.asarray(self.std)), -np.asarray(self.mean) / np.asarray(self.std)
        conv = _match_only_conv(image)
        steps: list[_Step] = [("Cast", "input/cast", None)] if self.dtype == "uint8" else []
        if self.half:
            steps.append(("Mul", "input/scale", np.float32(_EXACT_SCALE)))
            factor = factor / _EXACT_SCALE
        if conv is None:
            steps += [("Mul", "input/std", _as_nchw(factor)), ("Add", "input/mean", _as_nchw(shift))]
        elif _has_padding(conv.product):
            steps.append(("Sub", "input/mean", _as_nchw(-shift / factor)))
            shift = np.zeros_like(shift)
        _insert(graph, image, steps)
        if self.dtype == "uint8":
            image.dtype = ir.DataType.UINT8
        if conv is None:
            reason = "it is not read by one convolution alone: its normalization is computed in the graph"
            return PassResult(1, {str(image.name): reason})
        _fold(graph, conv, factor, shift)
        return PassResult(1)


_Step = tuple[str, str, Array | np.float32 | None]
"""An operator, the name of its node, and its second operand."""


def _insert(graph: Graph, image: ir.Value, steps: list[_Step]) -> None:
    """Insert `steps` between the image and all its readers."""
    readers, tape, value = list(image.uses()), ir.tape.Tape(), image
    for op_type, name, numbers in steps:
        if numbers is None:
            result = tape.op(op_type, [value], {"to": ir.DataType.FLOAT}, name=name)
        else:
            second = tape.initializer(ir.tensor(np.asarray(numbers), name=f"{name}_operand"))
            result = tape.op(op_type, [value, second], name=name)
        result.shape, result.dtype = image.shape, ir.DataType.FLOAT
        value = result
    if tape.nodes:
        graph.insert_before(graph.model.graph[0], tape)
    for node, index in readers:
        node.replace_input_with(index, value)


def _find_image(graph: Graph, channels: int) -> ir.Value:
    inputs = [v for v in graph.model.graph.inputs if v.name not in graph.model.graph.initializers]
    shape = dims(inputs[0]) if inputs else None
    if shape is None or len(shape) not in (4, 5) or shape[-3] != channels:
        described = ", ".join(f"{v.name}{v.shape}" for v in inputs)
        raise GraphError(f"the graph takes {described}, not images of {channels} channels", fix="Leave --input out.")
    return inputs[0]


def _match_only_conv(image: ir.Value) -> LinearMatch | None:
    """Match the Conv over all channels that is the only reader of the image."""
    uses = [use.node for use in image.uses()]
    if len(uses) != 1 or image.is_graph_output() or uses[0].op_type != "Conv":
        return None
    conv = match_linear(uses[0])
    covers_all_channels = conv is not None and conv.weight.shape[1] == (dims(image) or ())[-3]
    return conv if covers_all_channels else None


def _has_padding(conv: ir.Node) -> bool:
    automatic = conv.attributes.get_string("auto_pad", "NOTSET")
    return automatic.startswith("SAME") or any(conv.attributes.get_ints("pads", []))


def _fold(graph: Graph, conv: LinearMatch, factor: Array, shift: Array) -> None:
    weight = conv.weight.astype(np.float64)
    shifted = weight.reshape(*weight.shape[:2], -1).sum(axis=2) @ shift
    bias = shifted if conv.bias is None else conv.bias + shifted
    scaled = weight * factor.reshape(1, -1, *[1] * (weight.ndim - 2))
    if not rewrite_linear(graph, conv, operand(conv.product, 0), scaled, bias):
        raise GraphError(
            f"the data type of {conv.product.name} cannot hold weights for pixels", fix="Leave --input out."
        )


def _as_nchw(values: Array) -> Array:
    """Reshape (channels,) to (1, channels, 1, 1)."""
    return values.astype(np.float32)[None, :, None, None]
