"""NVIDIA's Triton Inference Server on this machine, from the wheel of PyTriton, and a client for its HTTP protocol.

PyTriton's own Python is not used: the wheel carries `tritonserver` and Triton's Python backend. The server runs on the
CPU, and only on this machine's loopback.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.venvs import ToolError, make_venv
from vitdeploy.session import Array

_TYPES = {"float32": "FP32", "int32": "INT32", "object": "BYTES"}
_START_S, _STOP_S = 120, 40


class Client:
    """A connection to the server, for one thread."""

    def __init__(self, port: int) -> None:
        self._connection = HTTPConnection("127.0.0.1", port, timeout=60)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def is_ready(self) -> bool:
        """Return True once all models are loaded."""
        try:
            self._connection.request("GET", "/v2/health/ready")
            response = self._connection.getresponse()
            response.read()
        except OSError:
            self._connection.close()
            return False
        return response.status == 200

    def describe(self, model: str) -> dict[str, Any]:
        """Return the configuration of a model as the server has read it."""
        self._connection.request("GET", f"/v2/models/{model}/config")
        config: dict[str, Any] = json.loads(self._connection.getresponse().read())
        return config

    def infer(self, model: str, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Return the outputs of a model: the protocol of KServe, with tensors as bytes behind the JSON.

        Raises:
            ToolError: the server refuses the request.
        """
        blobs = {name: _pack(array) for name, array in feeds.items()}
        inputs = [
            {
                "name": name,
                "shape": list(array.shape),
                "datatype": _TYPES[str(array.dtype)],
                "parameters": {"binary_data_size": len(blobs[name])},
            }
            for name, array in feeds.items()
        ]
        head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
        length = {"Inference-Header-Content-Length": str(len(head))}
        self._connection.request("POST", f"/v2/models/{model}/infer", b"".join([head, *blobs.values()]), length)
        response = self._connection.getresponse()
        content = response.read()
        if response.status != 200:
            raise ToolError(f"{model}: {content.decode()}")
        start = int(response.headers["Inference-Header-Content-Length"])
        answer, outputs = json.loads(content[:start]), {}
        for output in answer["outputs"]:
            end = start + output["parameters"]["binary_data_size"]
            outputs[output["name"]] = _unpack(content[start:end], output["datatype"], output["shape"])
            start = end
        return outputs


@contextmanager
def serve(*repositories: Path) -> Iterator[int]:
    """Serve model repositories as they are, and yield the port once all their models are loaded.

    Raises:
        ToolError: the server cannot be installed, or does not load them.
    """
    python = make_venv("triton")
    (site,) = python.parents[1].glob("lib/python*/site-packages")
    with tempfile.TemporaryDirectory(prefix="vitdeploy-triton-") as folder, Path(folder, "log").open("w+") as log:
        arguments = [f"--model-repository={path}" for path in repositories]
        arguments += [f"--backend-directory={_copy_backend(site, Path(folder))}", "--http-address=127.0.0.1"]
        port = _find_port()
        command: list[Path | str] = [site / "pytriton/tritonserver/bin/tritonserver", *arguments, f"--http-port={port}"]
        command += ["--allow-grpc=false", "--allow-metrics=false"]
        process = subprocess.Popen(command, env=_environment(python, site), stdout=log, stderr=log)
        try:
            with Client(port) as client:
                _wait_until_ready(process, client, Path(log.name))
            yield port
        finally:
            process.terminate()
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _copy_backend(site: Path, folder: Path) -> Path:
    """Return a folder with the Python backend, with the program that runs this version of Python."""
    triton = site / "pytriton/tritonserver"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = triton / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.exists():
        raise ToolError(f"PyTriton has no Triton for Python {version}")
    shutil.copytree(triton / "backends", folder / "backends")
    for path in (triton / "bin/tritonserver", Path(shutil.copy(stub, folder / "backends/python"))):
        path.chmod(0o755)
    return folder / "backends"


def _environment(python: Path, site: Path) -> dict[str, str]:
    """Return the variables by which the server finds its libraries, and its Python the packages of the environment."""
    libraries = f"{site / 'nvidia_pytriton.libs'}:{sysconfig.get_config_var('LIBDIR')}"
    others = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH")}
    return {**others, "PATH": f"{python.parent}:{os.environ['PATH']}", "LD_LIBRARY_PATH": libraries}


def _wait_until_ready(process: subprocess.Popen[bytes], client: Client, log: Path) -> None:
    deadline = time.monotonic() + _START_S
    while not client.is_ready():
        if process.poll() is not None or time.monotonic() > deadline:
            lines = [line for line in log.read_text().splitlines() if line.strip()]
            raise ToolError("tritonserver does not load the models: " + " | ".join(lines[-5:]))
        time.sleep(0.2)


def _find_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def _pack(array: Array) -> bytes:
    """Return the bytes of a tensor. Those of bytes have their length before each, in four bytes."""
    if array.dtype != np.object_:
        return array.tobytes()
    return b"".join(len(value).to_bytes(4, "little") + value for value in array.reshape(-1))


def _unpack(content: bytes, datatype: str, shape: Sequence[int]) -> Array:
    if datatype != "BYTES":
        numpy_type = next(name for name, triton in _TYPES.items() if triton == datatype)
        return np.frombuffer(content, numpy_type).reshape(shape)
    values, start = [], 0
    while start < len(content):
        end = start + 4 + int.from_bytes(content[start : start + 4], "little")
        values.append(content[start + 4 : end])
        start = end
    return np.array(values, np.object_).reshape(shape)
