"""The layers of an opened engine, from the engine inspector's JSON.

TensorRT 10 gives `{"Layers": [..], "Bindings": [..]}` with one `Format/Datatype` for each tensor, 11 adds `Constants`
and has `Datatype` and `Format` apart; a list alone is read too, which is what tools pass on. An engine that was built
without detailed profiling verbosity lists bare names, which tell nothing about kernels.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from vitdeploy.targets._tensorrt.plan import PlanLayer, PlanTensor, onnx_names, weights_of


def parse_inspector(text: str) -> list[PlanLayer]:
    """The layers in the inspector's JSON; what is not a layer with a name and a type is passed over, never guessed."""
    try:
        found = json.loads(text)
    except ValueError:
        return []
    entries = found.get("Layers") if isinstance(found, Mapping) else found
    if not isinstance(entries, Sequence) or isinstance(entries, str):
        return []
    return [layer for entry in entries if isinstance(entry, Mapping) and (layer := _layer(entry)) is not None]


def _layer(entry: Mapping[str, Any]) -> PlanLayer | None:
    name, kind = entry.get("Name"), entry.get("LayerType")
    if not isinstance(name, str) or not isinstance(kind, str):
        return None
    return PlanLayer(
        name=name,
        kind=kind,
        onnx_nodes=onnx_names(str(entry.get("Metadata") or "")),
        inputs=_tensors(entry.get("Inputs")),
        constants=(*_tensors(entry.get("Constants")), *_weights(entry.get("Weights"))),
        outputs=_tensors(entry.get("Outputs")),
        tactic=str(entry.get("TacticName") or ""),
    )


def _weights(found: Any) -> tuple[PlanTensor, ...]:
    if not isinstance(found, Mapping) or not isinstance(count := found.get("Count"), int):
        return ()
    return (weights_of(str(found.get("Type") or ""), count),)


def _tensors(found: Any) -> tuple[PlanTensor, ...]:
    entries = found if isinstance(found, list) else []
    return tuple(_tensor(entry) for entry in entries if isinstance(entry, Mapping))


def _tensor(entry: Mapping[str, Any]) -> PlanTensor:
    dtype = str(entry.get("Datatype") or entry.get("Format/Datatype") or "")
    dimensions = entry.get("Dimensions")
    # A list of numbers; some versions write it as text.
    sizes = dimensions if isinstance(dimensions, list) else re.findall(r"-?\d+", str(dimensions or ""))
    shape = tuple(int(size) for size in sizes if re.fullmatch(r"-?\d+", str(size)))
    return PlanTensor(name=str(entry.get("Name") or ""), dtype=dtype, shape=shape)
