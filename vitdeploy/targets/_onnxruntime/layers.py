"""Read the layers of the engine that TensorRT-RTX's plug-in runs.

ONNX Runtime's profile has one node for each part of the graph that the plug-in got, and the nodes that it left. The
plug-in writes the time of each layer of its engine as a Chrome trace, an event for each layer, with the nodes that the
layer computes:

    {"name": "_gemm_mha_v2_myl0_5", "ph": "X", "cat": "nv::trt::layer", "ts": 0, "dur": 11.2, "tid": 1,
     "args": {"onnx_nodes": "[ONNX Layer: pv_matmul][ONNX Layer: softmax][ONNX Layer: qk_matmul]"}}
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from vitdeploy.targets._tensorrt.plan import PlanLayer, parse_metadata

_LAYER = "nv::trt::layer"
_BETWEEN = re.compile(r"[;,|\x1e\x1f]\s*")
"""Between names, if they are written without TensorRT's brackets. Only the strings of the library are known so far."""


def read_layers(trace: Path) -> list[PlanLayer]:
    """Return the layers of an engine from the plug-in's trace; none if it wrote no trace."""
    try:
        data = json.loads(trace.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    events = data.get("traceEvents", []) if isinstance(data, dict) else data
    layers: dict[PlanLayer, None] = {}
    for event in events:
        if event.get("cat") == _LAYER:
            nodes = event.get("args", {}).get("onnx_nodes", "")
            names = parse_metadata(nodes) or tuple(filter(None, _BETWEEN.split(nodes)))
            layers[PlanLayer(event.get("name", ""), "", names)] = None
    return list(layers)
