"""What this host can do on these threads, measured, and how near a model comes to it.

The floor of a model is its arithmetic at the measured peak of each precision: no kernel is faster. Where no cache holds
its weights, reading them once at the measured bandwidth is a floor too. Efficiency is floor / median.
(Williams, Waterman & Patterson 2009, "Roofline: An Insightful Visual Performance Model".)
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from vitdeploy.errors import VitdeployError
from vitdeploy.evidence import Peak, Roofline
from vitdeploy.measure.work import Work
from vitdeploy.session import Feeds, Session

# One product of 1024 x 1024 by 1024 x 4096: 8.6 GFLOP, weights of 16 MB. Larger ones are no faster.
_M, _K, _N = 1024, 1024, 4096
_OPERATIONS = 2.0 * _M * _K * _N
_MIN_RUNS = 5
_SECONDS = 0.4  # for each precision and engine

_COPY_BYTES = 64 << 20  # for each thread: beyond any cache
_COPIES = 5
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


def peaks(threads: int) -> dict[str, Peak]:
    """The fastest product seen in float32 and in INT8 (u8 x s8), over the engines that are installed.

    Empty without onnx, which writes the product down, or without an engine.
    """
    if find_spec("onnx") is None:
        return {}
    found: dict[str, Peak] = {}
    with tempfile.TemporaryDirectory(prefix="vitdeploy-peak-") as folder:
        for precision, opened, image in _products(Path(folder), threads):
            try:
                with opened() as session:
                    gops = _OPERATIONS / _best_s(session, {"x": image}) / 1e9
                    peak = Peak(gops=gops, engine=session.effective["engine"])
            except VitdeployError:
                continue  # an engine that does not take this product says nothing about the host
            if precision not in found or peak.gops > found[precision].gops:
                found[precision] = peak
    return found


def better(one: dict[str, Peak], other: dict[str, Peak]) -> dict[str, Peak]:
    """The higher peak of each precision: a disturbed measurement only ever reads lower."""
    return {
        precision: max((p[precision] for p in (one, other) if precision in p), key=lambda peak: peak.gops)
        for precision in {**one, **other}
    }


def copy_gbs(threads: int) -> float:
    """10^9 bytes a second, read and written, of `threads` copies at a time that no cache holds."""
    pairs = [(np.ones(_COPY_BYTES, np.uint8), np.empty(_COPY_BYTES, np.uint8)) for _ in range(threads)]
    best = np.inf
    with ThreadPoolExecutor(threads) as pool:  # NumPy lets go of the interpreter while it copies
        for _ in range(_COPIES):
            start = time.perf_counter()
            list(pool.map(lambda pair: np.copyto(pair[1], pair[0]), pairs))
            best = min(best, time.perf_counter() - start)
    return 2.0 * _COPY_BYTES * threads / best / 1e9


def largest_cache() -> int | None:
    """Bytes of the largest cache of the first core; None where the system does not tell."""
    sizes = []
    for path in _CACHES.glob("index*/size"):
        text = path.read_text(encoding="ascii").strip()
        if text[:-1].isdigit():
            sizes.append(int(text[:-1]) << {"K": 10, "M": 20, "G": 30}.get(text[-1], 0))
    return max(sizes, default=None)


def describe(work: Work, threads: int, measured: dict[str, Peak], bandwidth: float | None) -> Roofline:
    """The evidence."""
    return Roofline(
        threads=threads,
        peaks=measured,
        copy_gbs=bandwidth,
        cache_bytes=largest_cache(),
        operations=work.operations,
        weight_bytes=work.weight_bytes,
        activation_bytes=work.activation_bytes,
        unknown=work.unknown,
    )


def floor_ms(work: Work, images: int, roofline: Roofline) -> float | None:
    """The least time for `images` images in ms; None when a peak or a part of the work is not known."""
    if work.unknown or not work.operations or not set(work.operations) <= set(roofline.peaks):
        return None
    compute = sum(images * count / roofline.peaks[kind].gops / 1e6 for kind, count in work.operations.items())
    streamed = roofline.cache_bytes is not None and work.weight_bytes > roofline.cache_bytes
    if not streamed or not roofline.copy_gbs:
        return compute
    return max(compute, work.weight_bytes / roofline.copy_gbs / 1e6)


def _best_s(session: Session, feeds: Feeds) -> float:
    best, start, runs = np.inf, time.perf_counter(), 0
    while runs < _MIN_RUNS or time.perf_counter() - start < _SECONDS:
        begin = time.perf_counter()
        session.run(feeds)
        best, runs = min(best, time.perf_counter() - begin), runs + 1
    return best


def _products(
    folder: Path, threads: int
) -> Iterator[tuple[str, Callable[[], Session], np.ndarray[tuple[int, ...], np.dtype[np.float32 | np.uint8]]]]:
    """Precision, how to open the product in an engine, and what to feed it."""
    image = np.random.default_rng(0).random((_M, _K), np.float32)
    quantized = (image * 255).astype(np.uint8)
    plain, pairs, integer = folder / "fp32.onnx", folder / "qdq.onnx", folder / "int8.onnx"
    _write(plain, "fp32")
    _write(pairs, "qdq")
    _write(integer, "integer")
    if find_spec("onnxruntime") is not None:
        from vitdeploy.graph.runner import OnnxSession

        yield "fp32", lambda: OnnxSession(plain, threads=threads), image
        yield "int8", lambda: OnnxSession(integer, threads=threads), quantized
    if find_spec("openvino") is not None:
        from vitdeploy.targets._openvino_session import Engine, OpenVINOSession

        yield "fp32", lambda: OpenVINOSession(plain, Engine("CPU", threads), name="peak"), image
        yield "int8", lambda: OpenVINOSession(pairs, Engine("CPU", threads), name="peak"), image


def _write(path: Path, form: str) -> None:
    """A product of x (1024, 1024) and a constant (1024, 4096): float, with Q/DQ pairs around it, or in integers."""
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
