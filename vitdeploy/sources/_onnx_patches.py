"""The patch grid of an ONNX graph whose image size varies."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

_POINTWISE = ("Add", "Cast", "Div", "Identity", "Mul", "Sub")
"""Operators between the image and the patch embedding that keep its size: normalisation inside of the graph."""


def find_patch(image: ir.Value) -> tuple[int, int] | None:
    """Return height and width of the patches, or None if the image is not cut into patches by a convolution.

    Both sides of an image have to be multiples. A convolution with equal kernel and stride does not read what is left
    over at the right and at the bottom. PyTorch models refuse such a size, but the check is not part of their graph.

    Args:
        image: the graph's input, NCHW.
    """
    pending, seen = [image], {image}
    while pending:
        for node in pending.pop().consumers():
            if node.op_type == "Conv":
                return _read_patch(node)
            if node.op_type in _POINTWISE and node.outputs[0] not in seen:
                seen.add(node.outputs[0])
                pending.append(node.outputs[0])
    return None


def _read_patch(conv: ir.Node) -> tuple[int, int] | None:
    """Return the kernel of a convolution that reads each pixel once, else None."""
    kernel = conv.attributes.get_ints("kernel_shape", ()) or _read_kernel(conv.inputs[1])
    strides, pads = conv.attributes.get_ints("strides", ()), conv.attributes.get_ints("pads", ())
    padding = conv.attributes.get_string("auto_pad", "NOTSET")
    if len(kernel) != 2 or tuple(kernel) != tuple(strides) or any(pads) or padding not in ("NOTSET", "VALID"):
        return None
    return int(kernel[0]), int(kernel[1])


def _read_kernel(weight: ir.Value | None) -> tuple[int, ...]:
    shape = weight.shape if weight is not None else None
    return tuple(size for size in shape[2:] if isinstance(size, int)) if shape is not None else ()
