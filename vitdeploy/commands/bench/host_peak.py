"""The fastest matrix product of this host's engines: the peak of the roofline."""

from __future__ import annotations

import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from vitdeploy import precision as precisions
from vitdeploy import targets
from vitdeploy.artifact.temporary import scratch_folder
from vitdeploy.errors import VitdeployError
from vitdeploy.evidence import Peak
from vitdeploy.graph.dialect import FLOAT32
from vitdeploy.recipe import TargetSpec
from vitdeploy.session import Array, Feeds, Session
from vitdeploy.targets import Target

# One product of 1024 x 1024 by 1024 x 4096: 8.6 GFLOP, weights of 16 MB. Larger ones are not faster.
_M, _K, _N = 1024, 1024, 4096
_OPERATIONS = 2.0 * _M * _K * _N
_MIN_RUNS = 5
_SECONDS = 0.4  # for each precision and engine


def measure_peaks(threads: int) -> dict[str, Peak]:
    """Return the fastest product in float32, bfloat16 and INT8 (u8 x s8) among the installed engines.

    bfloat16 only where this CPU has units for it.

    The result is empty without the library onnx, which is needed to write the product, or without an engine.
    """
    if find_spec("onnx") is None:
        return {}
    peaks: dict[str, Peak] = {}
    with scratch_folder("peak") as folder:
        for kind, target, path, image in _make_products(folder):
            numbers = precisions.kind_of("bf16").numbers if kind == "bf16" else FLOAT32  # INT8 is in the graph itself
            try:
                session = target.open_plain(path, threads, numbers)
                if session is None:
                    continue
                with session:
                    gops = _OPERATIONS / _time_best_s(session, {"x": image}) / 1e9
                    peak = Peak(gops=gops, engine=session.effective["engine"])
            except VitdeployError:
                continue  # this engine does not run this product
            if kind not in peaks or peak.gops > peaks[kind].gops:
                peaks[kind] = peak
    return peaks


def merge_peaks(one: dict[str, Peak], other: dict[str, Peak]) -> dict[str, Peak]:
    """Return the higher peak of each precision: a disturbance can only make a measurement lower."""
    return {
        precision: max((p[precision] for p in (one, other) if precision in p), key=lambda peak: peak.gops)
        for precision in {**one, **other}
    }


def _time_best_s(session: Session, feeds: Feeds) -> float:
    """Return the seconds of the fastest run."""
    best, start, runs = np.inf, time.perf_counter(), 0
    while runs < _MIN_RUNS or time.perf_counter() - start < _SECONDS:
        begin = time.perf_counter()
        session.run(feeds)
        best, runs = min(best, time.perf_counter() - begin), runs + 1
    return best


def _make_products(folder: Path) -> Iterator[tuple[str, Target, Path, Array]]:
    """Yield precision, an engine of this CPU, the product in the form that this engine runs best, and its input."""
    image = np.random.default_rng(0).random((_M, _K), np.float32)
    for form in ("fp32", "qdq", "integer"):
        _write(folder / f"{form}.onnx", form)
    for name in targets.names():
        target = targets.find(TargetSpec(kind=name))
        if target.runs_on == "cpu" and target.unavailable() is None:
            form = target.dialect().int8_linears
            yield "fp32", target, folder / "fp32.onnx", image
            if "bf16" in target.list_precisions():
                yield "bf16", target, folder / "fp32.onnx", image
            pixels = (image * 255).astype(np.uint8)
            yield "int8", target, folder / f"{form}.onnx", pixels if form == "integer" else image


def _write(path: Path, form: str) -> None:
    """Write a product of x (1024, 1024) and a constant (1024, 4096): in float, with Q/DQ pairs, or in integers."""
    from onnx import TensorProto, helper, numpy_helper, save

    rng = np.random.default_rng(0)
    codes = rng.integers(-127, 128, (_K, _N), dtype=np.int8)
    constants = {"w": codes.astype(np.float32) / 127} if form == "fp32" else {"w": codes, "zero": np.uint8(0)}
    kind, result = TensorProto.FLOAT, TensorProto.FLOAT
    if form == "fp32":
        nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    elif form == "integer":
        kind, result = TensorProto.UINT8, TensorProto.INT32
        nodes = [helper.make_node("MatMulInteger", ["x", "w", "zero"], ["y"])]
    else:
        constants |= {"scale": np.float32(1 / 255), "w_scale": np.float32(1 / 127), "w_zero": np.int8(0)}
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
            helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["v"]),
            helper.make_node("MatMul", ["d", "v"], ["y"]),
        ]
    graph = helper.make_graph(
        nodes,
        form,
        [helper.make_tensor_value_info("x", kind, [_M, _K])],
        [helper.make_tensor_value_info("y", result, [_M, _N])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
