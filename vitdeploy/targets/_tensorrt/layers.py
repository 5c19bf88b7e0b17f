"""The layer plan that is kept beside an engine: that opens only on its device, the plan can be read everywhere."""

from __future__ import annotations

from pathlib import Path

from vitdeploy.targets._tensorrt.inspector import parse_inspector
from vitdeploy.targets._tensorrt.plan import PlanLayer, parse_plan

LAYERS, INSPECTED = "layers.txt", "layers.json"
"""TensorRT's own words on the engine's layers: in the build log or, where that does not tell all, from the engine
inspector."""


def stored_layers(folder: Path) -> list[PlanLayer]:
    """The layers of the engine in `folder`; none where TensorRT told nothing."""
    inspected, printed = folder / INSPECTED, folder / LAYERS
    if inspected.is_file():
        return parse_inspector(inspected.read_text(encoding="utf-8"))
    # Not splitlines(): TensorRT puts a record separator between names, and that would be cut at, too.
    return parse_plan(printed.read_text(encoding="utf-8").split("\n")) if printed.is_file() else []
