"""Changed ONNX files: refused in one line, or exported with the numbers of the file.

The numbers of the file come from ONNX Runtime itself, without optimisations, on images that the export does not know.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from tests.robustness import tiny
from tests.robustness.cases import FINE, WRONG, Judged
from tests.robustness.mutations import mutate_bytes

_LARGEST_ERROR = 2e-3  # of the largest value of an output; the export allows itself half of it
_OPERATORS = ("Relu", "Neg", "Identity", "Softmax", "Sigmoid", "Exp", "Cast", "Gelu", "RandomNormalLike", "Loop",
              "LayerNormalization", "Add", "Mul", "Erf", "Tanh", "Nothing", "Flatten", "Log", "Reciprocal",
              "ArgMax", "Shape", "Sqrt")  # fmt: skip
_DIMENSIONS = (0, 1, 2, 3, 17, -1, 1 << 20, 1 << 40, 2**63 - 1)
Change = Callable[[ModelProto, random.Random], str]


class OnnxFiles:
    """A ViT of one block, changed in one place, exported for ONNX Runtime."""

    name = "onnx"
    seconds = 120.0
    mebibytes = 2048

    def prepare(self, folder: Path) -> None:
        """Make the model, and export it once unchanged."""
        import onnxruntime as ort

        ort.set_default_logger_severity(4)
        self._model = tiny.make_model()
        self._content = self._model.SerializeToString()
        place = folder / "unchanged"
        place.mkdir()
        if problem := self._export_and_compare(self._content, place):
            raise RuntimeError(f"the unchanged model: {problem}")

    def judge(self, number: int, rng: random.Random, folder: Path) -> Judged:
        """Change one place, export, and compare."""
        if rng.random() < 0.25:
            content, what = mutate_bytes(self._content, rng)
        else:
            model = copy.deepcopy(self._model)
            change = rng.choice(_CHANGES)
            what = f"{change.__name__.strip('_')} {change(model, rng)}"
            content = model.SerializeToString()
        problem = self._export_and_compare(content, folder)
        return Judged(WRONG if problem else FINE, f"{what}; {problem}")

    def _export_and_compare(self, content: bytes, folder: Path) -> str:
        from vitdeploy import artifact as artifacts
        from vitdeploy import recipe as recipes
        from vitdeploy.commands.export import export
        from vitdeploy.progress import Silent
        from vitdeploy.runtime.artifact_session import open_session

        path = folder / "model.onnx"
        path.write_bytes(content)
        export(recipes.compose(str(path), target="onnxruntime"), folder / "out", Silent())
        loaded = artifacts.load(folder / "out")
        name, shape = loaded.manifest.inputs[0].name, loaded.manifest.inputs[0].shape
        sizes = [size if isinstance(size, int) else 1 for size in shape]
        with open_session(loaded, 1, Silent()) as session:
            for seed in (11, 12):
                image = np.random.default_rng(seed).standard_normal(sizes).astype(np.float32)
                expected = _run_plain(content, image)
                given = session.run({name: image})
                if problem := _find_difference(expected, list(given.values())):
                    return problem
        return ""


def _run_plain(content: bytes, image: Any) -> list[Any]:
    """Run the file in ONNX Runtime without optimisations."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    outputs: list[Any] = session.run(None, {names[0]: image})
    return outputs


def _find_difference(expected: list[Any], given: list[Any]) -> str:
    if len(expected) != len(given):
        return f"{len(given)} outputs instead of {len(expected)}"
    for number, (right, wrong) in enumerate(zip(expected, given, strict=True)):
        if right.shape != wrong.shape:
            return f"output {number} has the shape {wrong.shape} instead of {right.shape}"
        scale = float(np.abs(right).max(initial=0.0)) or 1.0
        error = float(np.abs(right.astype(np.float64) - wrong.astype(np.float64)).max(initial=0.0))
        if not error <= _LARGEST_ERROR * scale:
            return f"output {number} differs by {error:.3g}, where values reach {scale:.3g}"
    return ""


def _operator(model: ModelProto, rng: random.Random) -> str:
    node = rng.choice(model.graph.node)
    old, node.op_type = node.op_type, rng.choice(_OPERATORS)
    return f"{node.name}: {old} to {node.op_type}"


def _attribute(model: ModelProto, rng: random.Random) -> str:
    node = rng.choice([node for node in model.graph.node if node.attribute])
    attribute = rng.choice(node.attribute)
    if attribute.ints:
        at = rng.randrange(len(attribute.ints))
        attribute.ints[at] = rng.choice([0, 1, 2, 3, -1, 7, 1 << 40])
    elif attribute.type == 1:
        attribute.f = rng.choice([0.0, -1.0, 1e30, float("nan"), 0.5])
    else:
        attribute.i = rng.choice([0, 1, 2, -1, -2, 5, 1 << 40])
    return f"{node.name}.{attribute.name}"


def _rewire(model: ModelProto, rng: random.Random) -> str:
    node = rng.choice(model.graph.node)
    at = rng.randrange(len(node.input))
    names = [n.output[0] for n in model.graph.node] + [t.name for t in model.graph.initializer] + ["image", "gone", ""]
    node.input[at] = rng.choice(names)
    return f"{node.name}: input {at} is {node.input[at]!r}"


def _drop_node(model: ModelProto, rng: random.Random) -> str:
    at = rng.randrange(len(model.graph.node))
    name = str(model.graph.node[at].name)
    del model.graph.node[at]
    return name


def _repeat_node(model: ModelProto, rng: random.Random) -> str:
    node = copy.deepcopy(rng.choice(model.graph.node))
    if rng.random() < 0.5:
        node.output[0] += "_again"
    model.graph.node.append(node)
    return str(node.name)


def _insert_node(model: ModelProto, rng: random.Random) -> str:
    at = rng.randrange(len(model.graph.node))
    node = model.graph.node[at]
    inserted = helper.make_node(rng.choice(_OPERATORS[:6]), [node.input[0]], ["inserted"], name="inserted")
    if inserted.op_type == "Cast":
        inserted.attribute.append(helper.make_attribute("to", rng.choice([1, 6, 7, 10, 11])))
    node.input[0] = "inserted"
    model.graph.node.insert(at, inserted)
    return f"{inserted.op_type} before {node.name}"


def _shuffle_nodes(model: ModelProto, rng: random.Random) -> str:
    nodes = list(model.graph.node)
    rng.shuffle(nodes)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return ""


def _tensor_shape(model: ModelProto, rng: random.Random) -> str:
    tensor = rng.choice(model.graph.initializer)
    dims = list(tensor.dims) or [1]
    dims[rng.randrange(len(dims))] = rng.choice(_DIMENSIONS)
    tensor.dims[:] = dims
    return f"{tensor.name}: {dims}"


def _tensor_type(model: ModelProto, rng: random.Random) -> str:
    tensor = rng.choice(model.graph.initializer)
    tensor.data_type = rng.choice([0, 2, 3, 6, 7, 9, 10, 11, 16, 22, 99])
    return f"{tensor.name}: {tensor.data_type}"


def _tensor_values(model: ModelProto, rng: random.Random) -> str:
    tensor = rng.choice(model.graph.initializer)
    values = numpy_helper.to_array(tensor).copy()
    flat = values.reshape(-1)
    if values.dtype == np.int64:
        flat[rng.randrange(len(flat))] = rng.choice([0, 1, -1, 2, 3, 1 << 40])
    else:
        flat[rng.randrange(len(flat))] = rng.choice([0.0, 1e30, float("nan"), float("inf"), -100.0, 1e-40])
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return str(tensor.name)


def _tensor_data(model: ModelProto, rng: random.Random) -> str:
    tensor = rng.choice(model.graph.initializer)
    tensor.raw_data = rng.choice(
        [b"", tensor.raw_data[:-1], tensor.raw_data * 2, tensor.raw_data[: len(tensor.raw_data) // 2]]
    )
    return f"{tensor.name}: {len(tensor.raw_data)} bytes"


def _external(model: ModelProto, rng: random.Random) -> str:
    tensor = rng.choice(model.graph.initializer)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entries = {
        "location": rng.choice(
            ["/etc/passwd", "../../../../etc/passwd", "weights.bin", "/dev/zero", "", ".", "model.onnx"]
        ),
        "offset": rng.choice(["0", "-1", "99999999999", "x"]),
        "length": rng.choice(["64", "-1", "99999999999999", ""]),
    }
    for key, value in entries.items():
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    return f"{tensor.name}: {entries}"


def _input(model: ModelProto, rng: random.Random) -> str:
    entry = rng.choice([*model.graph.input, *model.graph.output])
    kind = entry.type.tensor_type
    if rng.random() < 0.3:
        kind.elem_type = rng.choice([0, 2, 7, 10, 11])
        return f"{entry.name}: type {kind.elem_type}"
    dimension = rng.choice(kind.shape.dim)
    if rng.random() < 0.4:
        dimension.dim_param = rng.choice(["batch", "N", "", "a b"])
        return f"{entry.name}: dimension {dimension.dim_param!r}"
    dimension.dim_value = rng.choice(_DIMENSIONS)
    return f"{entry.name}: dimension {dimension.dim_value}"


def _names(model: ModelProto, rng: random.Random) -> str:
    node = rng.choice(model.graph.node)
    name = rng.choice(["", "x\ny", "\x1b[2J", "a" * 3000, "n_q", "logits", "é", "<script>", "../x"])
    if rng.random() < 0.5:
        node.name = name
        return f"a node is {name[:20]!r}"
    for other in model.graph.node:
        other.input[:] = [name if i == node.output[0] else i for i in other.input]
    node.output[0] = name
    return f"a value is {name[:20]!r}"


def _versions(model: ModelProto, rng: random.Random) -> str:
    if rng.random() < 0.5:
        model.opset_import[0].version = rng.choice([0, 1, 7, 11, 13, 17, 18, 22, 23, 99, -1])
        return f"opset {model.opset_import[0].version}"
    model.ir_version = rng.choice([0, 3, 7, 10, 99])
    return f"IR {model.ir_version}"


def _outputs(model: ModelProto, rng: random.Random) -> str:
    kind = rng.choice(["none", "twice", "inner", "image", "weight"])
    if kind == "none":
        del model.graph.output[:]
    elif kind == "twice":
        model.graph.output.append(model.graph.output[0])
    else:
        name = {"inner": "block", "image": "image", "weight": "head.b"}[kind]
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    return kind


def _inputs(model: ModelProto, rng: random.Random) -> str:
    if rng.random() < 0.5:
        del model.graph.input[:]
        return "none"
    model.graph.input.append(helper.make_tensor_value_info("second", TensorProto.FLOAT, [1]))
    return "two"


def _loop(model: ModelProto, rng: random.Random) -> str:
    """A loop of 2^62 rounds before the output."""
    kind = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Add", ["value", "value"], ["next"])],
        "body",
        [kind("round", 7, []), kind("go", 9, []), kind("value", 1, None)],
        [kind("go_on", 9, []), kind("next", 1, None)],
    )
    rounds = rng.choice([0, 3, 1 << 62])
    model.graph.initializer.append(numpy_helper.from_array(np.array(rounds), "rounds"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "start"))
    model.graph.node[-1].output[0] = "before"
    model.graph.node.append(helper.make_node("Loop", ["rounds", "start", "before"], ["logits"], body=body, name="loop"))
    return f"of {rounds} rounds"


def _many_nodes(model: ModelProto, rng: random.Random) -> str:
    count = rng.choice([2_000, 20_000])
    last = model.graph.node[-1].output[0]
    model.graph.node[-1].output[0] = "chain0"
    for number in range(count):
        output = last if number == count - 1 else f"chain{number + 1}"
        model.graph.node.append(helper.make_node("Identity", [f"chain{number}"], [output], name=f"chain_{number}"))
    return f"{count}"


_CHANGES: tuple[Change, ...] = (
    _operator, _operator, _attribute, _attribute, _rewire, _rewire, _drop_node, _repeat_node, _insert_node,
    _insert_node, _shuffle_nodes, _tensor_shape, _tensor_type, _tensor_values, _tensor_values, _tensor_data, _external,
    _input, _input, _names, _names, _versions, _outputs, _inputs, _loop, _many_nodes,
)  # fmt: skip
