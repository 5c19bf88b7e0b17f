"""Compare the forms of a quantized 1×1 convolution in ONNX Runtime with the float one.

    python -m benchmarks.pointwise

Each form stands alone between two elementwise operators, because that is where convolutions of hybrids stand. One
thread; the CPU time of the process, in turns, the least of 40 runs. Writes benchmarks/pointwise.md.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import onnxruntime as ort
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from benchmarks.tables import describe_machine, write_page
from vitdeploy.session import Array

TABLE = Path(__file__).with_suffix(".md")
COLUMNS = ("K", "N", "K · N / (K + N)", "sides", "float, ms", "product, speed", "QLinearConv, speed")
CHANNELS = (
    (16, 32), (32, 128), (128, 32), (64, 64), (64, 256), (256, 64), (128, 128), (128, 512), (512, 128), (256, 256),
    (256, 1024), (1024, 256),
)  # fmt: skip
SIDES = (56, 28, 14, 7)
_MOST_CHANNELS_AT_56 = 256
_RUNS = 40
_SCALE, _ZERO = np.float32(0.03), np.uint8(128)


def main() -> None:
    """Time every size and write the table."""
    rows = []
    for side in SIDES:
        for inputs, outputs in CHANNELS:
            if side == max(SIDES) and max(inputs, outputs) > _MOST_CHANNELS_AT_56:
                continue
            times = time_forms(inputs, outputs, side)
            speeds = [f"{times[0] / seconds:.2f}" for seconds in times[1:]]
            effective = f"{inputs * outputs / (inputs + outputs):.0f}"
            rows.append((str(inputs), str(outputs), effective, str(side), f"{1e3 * times[0]:.3f}", *speeds))
            write_page(TABLE, _heading(), COLUMNS, rows)
    print(TABLE.read_text(encoding="utf-8"))


def time_forms(inputs: int, outputs: int, side: int) -> list[float]:
    """Return the seconds of the float convolution, the integer product with its moves, and QLinearConv."""
    rng = np.random.default_rng(0)
    weight = (rng.standard_normal((outputs, inputs)) / inputs**0.5).astype(np.float32)
    image = rng.standard_normal((1, inputs, side, side)).astype(np.float32)
    sessions = [_open(form(weight), image.shape, (1, outputs, side, side)) for form in (_float, _product, _convolution)]
    seconds: list[list[float]] = [[] for _ in sessions]
    for _ in range(_RUNS):
        for session, measured in zip(sessions, seconds, strict=True):
            session.run(None, {"x": image})
            started = time.process_time()
            session.run(None, {"x": image})
            measured.append(time.process_time() - started)
    return [min(measured) for measured in seconds]


Form = tuple[list[NodeProto], dict[str, Array]]
"""The nodes from `before` to `after`, and their constants."""


def _float(weight: Array) -> Form:
    return [helper.make_node("Conv", ["before", "w"], ["after"])], {"w": weight[:, :, None, None]}


def _quantize(weight: Array) -> tuple[list[NodeProto], dict[str, Array], Array]:
    scale = (np.abs(weight).max(axis=1) / 127).astype(np.float32)
    codes = np.rint(weight / scale[:, None]).astype(np.int8)
    nodes = [helper.make_node("QuantizeLinear", ["before", "sx", "zx"], ["q"])]
    return nodes, {"sx": np.asarray(_SCALE), "zx": np.asarray(_ZERO), "sw": scale}, codes


def _product(weight: Array) -> Form:
    nodes, constants, codes = _quantize(weight)
    nodes += [
        helper.make_node("Transpose", ["q"], ["t"], perm=[0, 2, 3, 1]),
        helper.make_node("MatMulIntegerToFloat", ["t", "w", "sx", "sw", "zx"], ["m"], domain="com.microsoft"),
        helper.make_node("Transpose", ["m"], ["after"], perm=[0, 3, 1, 2]),
    ]
    return nodes, {**constants, "w": np.ascontiguousarray(codes.T)}


def _convolution(weight: Array) -> Form:
    nodes, constants, codes = _quantize(weight)
    names = ["q", "sx", "zx", "w", "sw", "zw", "sy", "zy"]
    nodes += [
        helper.make_node("QLinearConv", names, ["o"]),
        helper.make_node("DequantizeLinear", ["o", "sy", "zy"], ["after"]),
    ]
    zeros = np.zeros(len(weight), np.int8)
    rest = {"w": codes[:, :, None, None], "zw": zeros, "sy": np.asarray(_SCALE), "zy": np.asarray(_ZERO)}
    return nodes, {**constants, **rest}


def _open(form: Form, shape: tuple[int, ...], result: tuple[int, ...]) -> ort.InferenceSession:
    nodes, constants = form
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["before"]), *nodes, helper.make_node("Sigmoid", ["after"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, result)],
        [numpy_helper.from_array(numbers, name) for name, numbers in constants.items()],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    model: ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _heading() -> list[str]:
    return [
        "# 1×1 convolutions in INT8, in ONNX Runtime",
        "",
        "A convolution from K to N channels of a map with this many positions on each side. `product`: quantize, move",
        "the channels to the end, MatMulIntegerToFloat, move them back: the form that vitdeploy writes. Speeds are",
        "relative to the float convolution, above 1 is faster. CPU time of one thread. Made by",
        "`python -m benchmarks.pointwise`.",
        "",
        describe_machine("onnxruntime"),
    ]


if __name__ == "__main__":
    main()
