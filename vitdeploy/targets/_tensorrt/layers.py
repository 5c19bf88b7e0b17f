"""The layer plan beside an engine, which any machine can read. The engine opens only on its device."""

from __future__ import annotations

from pathlib import Path

from vitdeploy.targets._tensorrt.inspector import parse_inspector
from vitdeploy.targets._tensorrt.plan import PlanLayer, parse_plan

LAYERS, INSPECTED = "layers.txt", "layers.json"
"""The engine's layers as TensorRT describes them: in the build log or, if that is incomplete, by the engine
inspector."""


def read_layers(folder: Path) -> list[PlanLayer]:
    """Return the layers of the engine in `folder`; none if TensorRT did not describe them."""
    inspected, printed = folder / INSPECTED, folder / LAYERS
    if inspected.is_file():
        return parse_inspector(inspected.read_text(encoding="utf-8"))
    # Not splitlines(): it also splits at the record separators that TensorRT puts between names.
    return parse_plan(printed.read_text(encoding="utf-8").split("\n")) if printed.is_file() else []
