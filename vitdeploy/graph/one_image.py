"""The shapes of one image in a graph whose sizes vary."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import onnx_ir as ir

from vitdeploy.graph.model import Graph

_IMAGE_RANK = 4  # NCHW


@contextmanager
def one_image(graph: Graph, size: tuple[int, int] | None = None) -> Iterator[None]:
    """Give the graph the shapes of one image, and restore the old shapes afterwards.

    Args:
        graph: the graph.
        size: height and width of the image; None leaves them as they are.
    """
    values = [*graph.model.graph.inputs, *(o for n in graph.model.graph.all_nodes() for o in n.outputs)]
    before = [(value, value.shape) for value in values]
    try:
        for value, shape in before:
            is_input = value.producer() is None
            value.shape = ir.Shape([1, *_with_size(shape, size)]) if is_input and shape is not None else None
        graph.infer_shapes()
        yield
    finally:
        for value, shape in before:
            value.shape = shape


def _with_size(shape: ir.Shape, size: tuple[int, int] | None) -> list[int | ir.SymbolicDim]:
    """Return the dimensions behind the batch, with height and width of NCHW images replaced by `size`."""
    return [*shape[1:]] if size is None or len(shape) != _IMAGE_RANK else [shape[1], *size]
