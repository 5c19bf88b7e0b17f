"""Open an engine in Triton's Python backend. Written by vitdeploy; it needs numpy, and onnxruntime or openvino.

`settings.json` beside this file says which engine, and what it is opened with.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import triton_python_backend_utils as pb_utils

Array: TypeAlias = "np.ndarray[Any, Any]"
FOLDER = Path(__file__).resolve().parent


class TritonPythonModel:
    """One instance of the model."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the engine."""
        self.settings = json.loads((FOLDER / "settings.json").read_text(encoding="utf-8"))
        device = int(args["model_instance_device_id"]) if args["model_instance_kind"] == "GPU" else 0
        opener = {"onnxruntime": open_onnxruntime, "openvino": open_openvino}[self.settings["engine"]]
        self.run = opener(self.settings, device)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer requests: all in one run if Triton joins them, else each in its own."""
        feeds = [self.read(request) for request in requests]
        if not self.settings["joins"]:
            return [response for arrays in feeds for response in self.answer([arrays])]
        return self.answer(feeds)

    def read(self, request: Any) -> list[Array]:
        """Return the arrays of a request, in the order of the inputs."""
        return [pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self.settings["inputs"]]

    def answer(self, feeds: list[list[Array]]) -> list[Any]:
        """Return a response to each request of one run. If the run fails, all of them say why."""
        try:
            outputs = self.run(feeds[0] if len(feeds) == 1 else [np.concatenate(a) for a in zip(*feeds, strict=True)])
        except Exception as error:  # noqa: BLE001  each engine has types of its own
            failed = pb_utils.TritonError(f"the engine refuses the request: {error}")
            return [pb_utils.InferenceResponse(output_tensors=[], error=failed) for _ in feeds]
        if len(feeds) == 1:
            return [self.respond(outputs)]
        ends = np.cumsum([len(arrays[0]) for arrays in feeds])[:-1]
        shares = [np.split(output, ends) for output in outputs]
        return [self.respond(list(parts)) for parts in zip(*shares, strict=True)]

    def respond(self, outputs: list[Array]) -> Any:
        """Return the response with the outputs, in the order of their names."""
        tensors = [
            pb_utils.Tensor(name, np.ascontiguousarray(output))
            for name, output in zip(self.settings["outputs"], outputs, strict=True)
        ]
        return pb_utils.InferenceResponse(output_tensors=tensors)


def open_onnxruntime(settings: dict[str, Any], device: int) -> Any:
    """Return a function from the arrays of the inputs to those of the outputs, both in the order of the names."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = settings["threads"] or count_cores()
    provider: Any = "CPUExecutionProvider"
    if settings["cuda"] is not None:
        provider = ("CUDAExecutionProvider", {"device_id": str(device), **settings["cuda"]})
    session = ort.InferenceSession(str(FOLDER / settings["file"]), options, providers=[provider])
    if session.get_providers()[0] != (provider if isinstance(provider, str) else provider[0]):
        raise RuntimeError(f"ONNX Runtime opened the model on {session.get_providers()[0]} instead of the GPU")
    names = [value.name for value in session.get_inputs()]
    return lambda arrays: session.run(None, dict(zip(names, arrays, strict=True)))


def open_openvino(settings: dict[str, Any], device: int) -> Any:  # noqa: ARG001  OpenVINO's devices have names
    """Return a function as `open_onnxruntime` does. OpenVINO may rename tensors, so they are taken by index."""
    import openvino as ov

    properties = dict(settings["properties"])
    if settings["device"].startswith("CPU"):
        properties["INFERENCE_NUM_THREADS"] = settings["threads"] or count_cores()
    model = ov.Core().compile_model(FOLDER / settings["file"], settings["device"], properties)
    request = model.create_infer_request()

    def run(arrays: list[Array]) -> list[Array]:
        result = request.infer(dict(enumerate(arrays)), share_inputs=True)
        return [result[index] for index in range(len(model.outputs))]

    return run


def count_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))
