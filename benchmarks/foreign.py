"""Open what other tools wrote as their users run it, and see how much of its attention runs as one kernel."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any

import openvino as ov

from vitdeploy.graph.onnx_session import OnnxSession
from vitdeploy.session import Array, Feeds

_ORT_ATTENTION = {"MultiHeadAttention", "Attention", "QAttention"}
_SOFTMAX = re.compile("softmax", re.IGNORECASE)
_PRODUCT = re.compile("matmul|scaled_?dot_?product", re.IGNORECASE)


class StockOpenVINO(AbstractContextManager["StockOpenVINO"]):
    """A model in OpenVINO with nothing set but the latency hint and the threads.

    So it computes in bfloat16 what is not quantized, where the CPU has it; `float32` forbids that.
    """

    def __init__(self, path: Path, threads: int, name: str, *, float32: bool) -> None:
        config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
        if float32:
            config["INFERENCE_PRECISION_HINT"] = "f32"
        self._model = ov.Core().compile_model(path, "CPU", config)
        self._request = self._model.create_infer_request()
        self.name = name
        self.threads: int | None = threads
        computes_in = self._model.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        self.effective: Mapping[str, str] = {"inference_precision": computes_in}

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Outputs by name."""
        result = self._request.infer(dict(feeds), share_inputs=True)
        return {output.get_any_name(): result[i] for i, output in enumerate(self._model.outputs)}

    def close(self) -> None:
        """Free the model."""
        del self._request, self._model

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def fused_attention(self) -> int:
        """Kernels of the runtime model that compute a softmax and a product around it."""
        return sum(map(_holds_attention, _origins(self._model.get_runtime_model().get_ordered_ops())))


def _origins(operators: Iterable[Any]) -> Iterable[list[str]]:
    for operator in operators:
        info = operator.get_rt_info()
        yield str(info["originalLayersNames"].astype(str)).split(",") if "originalLayersNames" in info else []


def _holds_attention(names: list[str]) -> bool:
    return any(_SOFTMAX.search(name) for name in names) and any(_PRODUCT.search(name) for name in names)


def fused_by_onnxruntime(path: Path, feeds: Feeds, threads: int) -> int:
    """Attention kernels that one inference executes, from ONNX Runtime's profile."""
    with (
        tempfile.TemporaryDirectory() as folder,
        OnnxSession(path, threads=threads, profile=Path(folder) / "run") as session,
    ):
        session.run(feeds)
        events = json.loads(session.end_profile().read_text(encoding="utf-8"))
    executed = [event for event in events if event.get("name", "").endswith("_kernel_time")]
    return sum(event.get("args", {}).get("op_name") in _ORT_ATTENTION for event in executed)
