"""The time of each kernel of an engine, by TensorRT's own profiler.

The profiler times each kernel with CUDA events, so a run takes longer with it. It sees only kernels that are enqueued
one by one, so a profiled run uses no CUDA graph.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from vitdeploy.session import Counters, OperatorTime
from vitdeploy.targets._tensorrt.plan import PlanLayer


class LayerTimes:
    """Milliseconds per layer name, summed over runs."""

    def __init__(self) -> None:
        self.ms: defaultdict[str, float] = defaultdict(float)

    def counters(self, runs: int, total_s: float, layers: Sequence[PlanLayer]) -> Counters:
        """Return the mean time of each layer, with its kind and ONNX nodes from the plan."""
        planned: Mapping[str, PlanLayer] = {layer.name: layer for layer in layers}
        operators = []
        for name, ms in self.ms.items():
            layer = planned.get(name)
            nodes = layer.onnx_nodes if layer is not None and layer.onnx_nodes else (name,)
            kind = layer.kind if layer is not None else ""
            operators.append(OperatorTime(name=name, kind=kind, nodes=nodes, ms=ms / runs))
        return Counters(runs, total_s * 1e3 / runs, tuple(operators))


def make_profiler(trt: ModuleType, times: LayerTimes) -> Any:
    """Return a TensorRT profiler that adds every time to `times`."""

    class Profiler(trt.IProfiler):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            times.ms[layer_name] += ms

    return Profiler()
