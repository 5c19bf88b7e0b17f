"""Export adaptive average pooling to a grid that does not divide the image's as two products."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@contextlib.contextmanager
def adaptive_pools_as_products() -> Iterator[None]:
    """Compute such a pooling as `rows · image · columnsᵀ`, whose factors hold the weight of each pixel in each cell.

    Cells of unequal sizes have no operator in ONNX. The dynamo exporter gathers and adds pixel by pixel, some 40 nodes,
    of which OpenVINO 2026.4 computes other numbers where a convolution reads them; the legacy exporter refuses.
    UPerNet's pyramid pools a grid of 16 to 3 and 6.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    pool = torch.nn.functional.adaptive_avg_pool2d

    class AsProducts(TorchFunctionMode):
        """A mode, because models also call the function by a name of their own."""

        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            options = dict(kwargs or {}) | dict(zip(("input", "output_size"), args, strict=False))
            if function is pool and (factors := _make_factors(**options)) is not None:
                rows, columns = factors
                return rows @ options["input"] @ columns.T
            return function(*args, **(kwargs or {}))

    with AsProducts():
        yield


def _make_factors(input: torch.Tensor, output_size: Any) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return the factors of the rows and of the columns; None if all cells are of one size, or a size is not known."""
    sides = input.shape[-2:]
    wanted = output_size if isinstance(output_size, Sequence) else (output_size, output_size)
    cells = [n if m is None else m for n, m in zip(sides, wanted, strict=True)]
    if not all(type(n) is int for n in (*sides, *cells)) or not any(n % m for n, m in zip(sides, cells, strict=True)):
        return None
    rows, columns = (_average(n, m).to(input) for n, m in zip(sides, cells, strict=True))
    return rows, columns


def _average(size: int, cells: int) -> torch.Tensor:
    """Return (cells, size): cell i averages ⌊i · size / cells⌋ up to ⌈(i + 1) · size / cells⌉, as in PyTorch."""
    import torch

    factor = torch.zeros(cells, size)
    for i in range(cells):
        start, end = i * size // cells, -(-(i + 1) * size // cells)
        factor[i, start:end] = 1 / (end - start)
    return factor
