"""The patch grid of an ONNX graph whose image size varies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vitdeploy.sources import _image

if TYPE_CHECKING:
    import onnx_ir as ir

_POINTWISE = ("Add", "Cast", "Div", "Identity", "Mul", "Sub")
"""Operators between the image and the patch embedding that keep its size: normalisation inside of the graph."""


def check_patches(path: Path, image: ir.Value, size: tuple[int, int]) -> None:
    """Refuse an image whose sides are not multiples of the patch.

    A convolution with equal kernel and stride does not read what is left over at the right and at the bottom. PyTorch
    models refuse such a size, but the check is not part of their graph.

    Args:
        path: the file, for the message.
        image: the graph's input, NCHW.
        size: height and width of the images.

    Raises:
        SourceError: a side is not a multiple.
    """
    patch = _find_patch(image)
    if patch is not None:
        _image.check_patch(str(path), size, patch)


def _find_patch(image: ir.Value) -> tuple[int, int] | None:
    """Return height and width of the patches, or None if the image is not cut into patches by a convolution."""
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
