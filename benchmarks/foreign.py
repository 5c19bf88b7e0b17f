"""Models that other tools wrote, opened as their users run them, and how much of their attention is fused."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import openvino as ov

from vitdeploy.graph.onnx_session import OnnxSession
from vitdeploy.session import Array, Counters, Feeds, SequentialSession
from vitdeploy.targets._openvino_session import measure_operators

_ORT_ATTENTION = {"MultiHeadAttention", "Attention", "QAttention"}
_SOFTMAX = re.compile("softmax", re.IGNORECASE)
_PRODUCT = re.compile("matmul|scaled_?dot_?product", re.IGNORECASE)


class StockOpenVINO(SequentialSession):
    """A model in OpenVINO with nothing set but the latency hint and the threads.

    What is not quantized then computes in bfloat16 on a CPU that has it; `float32` forbids that.
    """

    def __init__(self, path: Path, threads: int, name: str, *, float32: bool) -> None:
        config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
        if float32:
            config["INFERENCE_PRECISION_HINT"] = "f32"
        self._source = path, "CPU", config
        self._model = ov.Core().compile_model(*self._source)
        self._request = self._model.create_infer_request()
        self.name = name
        self.threads: int | None = threads
        computes_in = self._model.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        self.effective: Mapping[str, str] = {"inference_precision": computes_in}

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Return the outputs by name."""
        result = self._request.infer(dict(feeds), share_inputs=True)
        return {output.get_any_name(): result[i] for i, output in enumerate(self._model.outputs)}

    def profile(self, feeds: Feeds) -> Counters:
        """Measure the time per kernel, in a second compilation with counters."""
        path, device, config = self._source
        return measure_operators(ov.Core().compile_model(path, device, {**config, "PERF_COUNT": True}), feeds)

    def close(self) -> None:
        """Free the model."""
        del self._request, self._model

    def count_fused_attention(self) -> int:
        """Count the kernels of the runtime model that compute a softmax and a product beside it."""
        return sum(map(_holds_attention, _source_layers(self._model.get_runtime_model().get_ordered_ops())))


def _source_layers(operators: Iterable[Any]) -> Iterable[list[str]]:
    """Yield for each kernel the names of the layers that it was made from."""
    for operator in operators:
        info = operator.get_rt_info()
        yield str(info["originalLayersNames"].astype(str)).split(",") if "originalLayersNames" in info else []


def _holds_attention(layers: list[str]) -> bool:
    return any(_SOFTMAX.search(name) for name in layers) and any(_PRODUCT.search(name) for name in layers)


def count_attention_in_onnxruntime(path: Path, feeds: Feeds, threads: int) -> int:
    """Count the attention kernels that ONNX Runtime executes in one inference, from its profile."""
    with (
        tempfile.TemporaryDirectory() as folder,
        OnnxSession(path, threads=threads, profile=Path(folder) / "run") as session,
    ):
        session.run(feeds)
        events = json.loads(session.end_profile().read_text(encoding="utf-8"))
    kernels = [event for event in events if event.get("name", "").endswith("_kernel_time")]
    return sum(event.get("args", {}).get("op_name") in _ORT_ATTENTION for event in kernels)
