"""The precision that an ONNX file comes with: float32, half precision, or quantized."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vitdeploy.artifact.temporary import process_folder

if TYPE_CHECKING:
    import onnx_ir as ir

    from vitdeploy.sources import ModelPrecision

_DIGEST_CHARACTERS = 16


def raise_precision(model: ir.Model) -> tuple[ModelPrecision, bool]:
    """Raise half precision in a graph to float32, in place. What is quantized stays so.

    Returns:
        The precision that the graph came with, and whether it changed.
    """
    from vitdeploy.graph.screening import is_quantized
    from vitdeploy.graph.widening import widen_floats

    narrow = widen_floats(model)
    if is_quantized(model):
        return "quantized", narrow is not None
    if narrow is None:
        return "float32", False
    return "float16" if narrow.name == "FLOAT16" else "bfloat16", True


def write_raised(model: ir.Model, path: Path, digest: str) -> Path:
    """Write a raised graph to a file that lives as long as this process. The same file is written once.

    Args:
        model: the graph.
        path: the user's file that it came from, which is not changed.
        digest: the digest of the user's file and its data.
    """
    from vitdeploy.graph.model import Graph

    folder = process_folder("float32") / digest[:_DIGEST_CHARACTERS]
    raised = folder / path.name  # engines name the file in their errors
    if not raised.exists():
        folder.mkdir(exist_ok=True)
        Graph(model).save(raised)
    return raised
