"""Record which members TensorRT's Python bindings have, for `surface.json`.

    pip download --no-deps tensorrt-cu12-bindings==10.3.0 (10.16.1.11; tensorrt-cu13-bindings==11.4.0.106), unpack them
    python -m tests.fakes.record_surface 10.3=UNPACKED/tensorrt_bindings/tensorrt.so 10.16=… 11.4=…

The bindings are wheels like any other; the libraries behind them are not, and nine C functions are all that the
bindings link to. A stub of those is enough to import them and list classes, members and the numbers of enum members:
names only, nothing is called. Only the classes that vitdeploy touches are kept.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from vitdeploy.targets._tensorrt import surface

SURFACE = Path(__file__).with_name("surface.json")
FUNCTIONS = (
    "createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL",
    "createNvOnnxParser_INTERNAL", "createNvOnnxParserRefitter_INTERNAL", "getBuilderPluginRegistry",
    "getNvOnnxParserVersion", "getPluginRegistry", "initLibNvInferPlugins",
)  # fmt: skip
LISTING = f"""
import importlib.util, json, sys

def load(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

surface = load("surface", {surface.__file__!r})
print(json.dumps(surface.list_members(load("tensorrt", sys.argv[1]))))
"""


def record(bindings: Path) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "stub.c"
        source.write_text("\n".join(f"void *{name}(void) {{ return 0; }}" for name in FUNCTIONS))
        for library in ("nvinfer", "nvonnxparser", "nvinfer_plugin"):
            for major in (10, 11):
                soname = f"lib{library}.so.{major}"
                command = ["cc", "-shared", "-fPIC", source, "-o", f"{folder}/{soname}", f"-Wl,-soname,{soname}"]
                subprocess.run(command, check=True)
        environment = {**os.environ, "LD_LIBRARY_PATH": folder}
        command = [sys.executable, "-c", LISTING, str(bindings)]
        told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return dict(json.loads(told.stdout))


if __name__ == "__main__":
    pairs = (argument.split("=", 1) for argument in sys.argv[1:])
    surfaces = {version: record(Path(path)) for version, path in pairs}
    lines = [
        f'"{version}": {{\n' + ",\n".join(f'"{name}": {json.dumps(members)}' for name, members in found.items()) + "\n}"
        for version, found in surfaces.items()
    ]
    SURFACE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
