"""Where the time of an engine's run goes, by TensorRT's own profiler.

It measures each kernel between CUDA events of its own, so that a run takes longer than without it; the profiler sees
kernels that are enqueued one by one, so that no CUDA graph is used.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from vitdeploy.session import Counters, OperatorTime
from vitdeploy.targets._tensorrt.plan import PlanLayer


class LayerTimes:
    """Milliseconds by the layer's name, summed over runs."""

    def __init__(self) -> None:
        self.ms: defaultdict[str, float] = defaultdict(float)

    def counters(self, runs: int, total_s: float, layers: Sequence[PlanLayer]) -> Counters:
        """Means over the runs, each layer with what the plan tells of it; one that the plan does not name is kept."""
        known: Mapping[str, PlanLayer] = {layer.name: layer for layer in layers}
        operators = []
        for name, ms in self.ms.items():
            layer = known.get(name)
            nodes = layer.onnx_nodes if layer is not None and layer.onnx_nodes else (name,)
            kind = layer.kind if layer is not None else ""
            operators.append(OperatorTime(name=name, kind=kind, nodes=nodes, ms=ms / runs))
        return Counters(runs, total_s * 1e3 / runs, tuple(operators))


def profiler_for(trt: ModuleType, times: LayerTimes) -> Any:
    """A TensorRT profiler that tells `times` everything."""

    class Profiler(trt.IProfiler):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            times.ms[layer_name] += ms

    return Profiler()
