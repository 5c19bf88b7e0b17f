"""Read the layers of an opened engine from the engine inspector's JSON.

TensorRT 10 gives `{"Layers": [..], "Bindings": [..]}` with one `Format/Datatype` for each tensor. TensorRT 11 adds
`Constants`, and separates `Datatype` and `Format`. A list alone is read too, because tools pass it on. An engine that
was built without detailed profiling verbosity lists only names, which say nothing about kernels.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from vitdeploy.targets._tensorrt.plan import PlanLayer, PlanTensor, make_weights, parse_metadata


def parse_inspector(text: str) -> list[PlanLayer]:
    """Return the layers in the inspector's JSON. An entry without a name and a type is skipped."""
    try:
        content = json.loads(text)
    except ValueError:
        return []
    entries = content.get("Layers") if isinstance(content, Mapping) else content
    if not isinstance(entries, Sequence) or isinstance(entries, str):
        return []
    return [layer for entry in entries if isinstance(entry, Mapping) and (layer := _parse_layer(entry)) is not None]


def _parse_layer(entry: Mapping[str, Any]) -> PlanLayer | None:
    name, kind = entry.get("Name"), entry.get("LayerType")
    if not isinstance(name, str) or not isinstance(kind, str):
        return None
    return PlanLayer(
        name=name,
        kind=kind,
        onnx_nodes=parse_metadata(str(entry.get("Metadata") or "")),
        inputs=_parse_tensors(entry.get("Inputs")),
        constants=(*_parse_tensors(entry.get("Constants")), *_parse_weights(entry.get("Weights"))),
        outputs=_parse_tensors(entry.get("Outputs")),
        tactic=str(entry.get("TacticName") or ""),
    )


def _parse_weights(weights: Any) -> tuple[PlanTensor, ...]:
    if not isinstance(weights, Mapping) or not isinstance(count := weights.get("Count"), int):
        return ()
    return (make_weights(str(weights.get("Type") or ""), count),)


def _parse_tensors(tensors: Any) -> tuple[PlanTensor, ...]:
    entries = tensors if isinstance(tensors, list) else []
    return tuple(_parse_tensor(entry) for entry in entries if isinstance(entry, Mapping))


def _parse_tensor(entry: Mapping[str, Any]) -> PlanTensor:
    dtype = str(entry.get("Datatype") or entry.get("Format/Datatype") or "")
    dimensions = entry.get("Dimensions")
    # A list of numbers. Some versions write it as text.
    sizes = dimensions if isinstance(dimensions, list) else re.findall(r"-?\d+", str(dimensions or ""))
    shape = tuple(int(size) for size in sizes if re.fullmatch(r"-?\d+", str(size)))
    return PlanTensor(name=str(entry.get("Name") or ""), dtype=dtype, shape=shape)
