"""Open a model in a process of its own, run it, and print the memory of the process. `weight_only.py` starts it.

    python -m benchmarks.opened_memory FILE INPUT PRECISION

FILE is an .xml of OpenVINO or an .onnx, which ONNX Runtime opens; INPUT is the name of its input. Prints the anonymous
memory in KiB: mapped files belong to the page cache, which the system can take back.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from vitdeploy.precision import kind_of
from vitdeploy.session import Session

_RUNS = 3


def open_model(path: Path, precision: str, *, threads: int | None = None, name: str = "") -> Session:
    """Open an .xml in OpenVINO, computing in `precision`, or an .onnx in ONNX Runtime, which has it in the graph."""
    if path.suffix == ".xml":
        from vitdeploy.targets._openvino_session import Engine, OpenVINOSession

        return OpenVINOSession(path, Engine("CPU", threads, numbers=kind_of(precision).numbers), name=name)
    from vitdeploy.graph.onnx_session import OnnxSession

    return OnnxSession(path, threads=threads, name=name)


def main(path: Path, input_name: str, precision: str) -> None:
    """Open, run and print."""
    with open_model(path, precision) as session:
        for _ in range(_RUNS):
            session.run({input_name: np.zeros((1, 3, 224, 224), np.float32)})
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    print(next(line.split()[1] for line in status.splitlines() if line.startswith("RssAnon")))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
