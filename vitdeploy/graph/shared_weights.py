"""Write several ONNX graphs whose large tensors share one file, in which equal bytes are stored once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import onnx_ir as ir

from vitdeploy.graph.model import Graph

SHARED_ABOVE_BYTES = 1 << 10
"""Smaller tensors stay in each graph file, because ONNX shape inference must see shapes and axes."""

_ALIGNMENT = 64
"""Offsets are multiples of this: a cache line, and more than any type needs."""
_PAGE_BYTES = 4096
_PAGED_ABOVE_BYTES = 1 << 20
"""Larger tensors begin at a page, so that they can be memory-mapped. For smaller ones that would waste space."""


class SharedWeights:
    """The weight file of several graphs. Use it as a context manager; it creates the file.

    The same graphs in the same order give the same bytes.
    """

    def __init__(self, path: Path) -> None:
        """Write the weights to `path`. Graphs have to be in the same folder: external data may not point upwards."""
        self._path = path
        self._places: dict[str, int] = {}
        self._size = 0

    def __enter__(self) -> SharedWeights:
        self._file = self._path.open("wb")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, graph: Graph, path: Path) -> None:
        """Write a graph to `path`, and those of its large tensors that the file does not have yet to the file.

        The graph in memory stays as it is. Only one tensor is in memory at a time, unless the graph holds it already.
        """
        originals = {value: value.const_value for value in _list_initializers(graph)}
        try:
            for value, tensor in originals.items():
                if tensor is not None:
                    value.const_value = self._store(tensor)
            self._file.flush()
            ir.save(graph.model, path)
        finally:
            for value, tensor in originals.items():
                value.const_value = tensor

    def _store(self, tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        """Return a tensor whose numbers are in the file; a small one with its numbers in memory."""
        if tensor.dtype == ir.DataType.STRING:
            return tensor
        if tensor.nbytes < SHARED_ABOVE_BYTES:
            return ir.tensor(tensor.numpy(), dtype=tensor.dtype, name=tensor.name)  # it may point into another file
        data = tensor.tobytes()
        digest = hashlib.sha256(data).hexdigest()
        if digest not in self._places:
            self._places[digest] = self._append(data)
        return ir.ExternalTensor(
            self._path.name, self._places[digest], len(data), tensor.dtype,
            shape=ir.Shape(tensor.shape.numpy()), name=tensor.name or "", base_dir=self._path.parent,
        )  # fmt: skip

    def _append(self, data: bytes) -> int:
        step = _PAGE_BYTES if len(data) > _PAGED_ABOVE_BYTES else _ALIGNMENT
        offset = -(-self._size // step) * step
        self._file.write(b"\0" * (offset - self._size))
        self._file.write(data)
        self._size = offset + len(data)
        return offset


def _list_initializers(graph: Graph) -> Iterator[ir.Value]:
    """Yield the constants of the graph and of those inside of its nodes."""
    return (value for inner in graph.model.graphs() for value in inner.initializers.values())
