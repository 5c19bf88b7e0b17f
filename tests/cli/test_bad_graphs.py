"""ONNX files that cannot be served: one line with what, where and the fix, or else right numbers."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from tests.cli.conftest import listing, run

FLOAT, DOUBLE, HALF, INT64 = TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.INT64
KERNEL = np.random.default_rng(0).standard_normal((8, 3, 4, 4)).astype(np.float32)
HEAD = np.random.default_rng(1).standard_normal((8, 10)).astype(np.float32)
IMAGE = ("image", [1, 3, 16, 16], FLOAT)
SCORES = ("scores", [1, 10], FLOAT)


pytestmark = pytest.mark.usefixtures("here")


def value(name: str, shape: Any = None, kind: int = FLOAT) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def node(op: str, read: str, made: str, name: str = "", **attributes: Any) -> NodeProto:
    return helper.make_node(op, ["" if n == "-" else n for n in read.split()], made.split(), name, **attributes)


def nodes(**changed: list[NodeProto]) -> list[NodeProto]:
    """Patches, ReLU, mean, head; `changed` replaces some of them by others."""
    own = {
        "stem": node("Conv", "image kernel", "patches", "stem", kernel_shape=[4, 4], strides=[4, 4]),
        "relu": node("Relu", "patches", "active", "relu"),
        "mean": node("GlobalAveragePool", "active", "mean", "mean"),
        "flat": node("Flatten", "mean", "flat", "flat"),
        "head": node("MatMul", "flat head", "scores", "head"),
    }
    return [n for key, found in own.items() for n in changed.get(key, [found])]


def model(
    graph: list[NodeProto] | None = None,
    *,
    inputs: tuple[Any, ...] = (IMAGE,),
    outputs: tuple[Any, ...] = (SCORES,),
    opset: int = 18,
    ir_version: int = 9,
    domains: tuple[str, ...] = (),
    **constants: Any,
) -> ModelProto:
    """The small model, changed; `constants` add to its two weights or replace them."""
    weights = {"kernel": KERNEL, "head": HEAD} | constants
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    made = helper.make_graph(
        nodes() if graph is None else graph,
        "g",
        [value(*i) for i in inputs],
        [value(*o) for o in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()],
    )
    return helper.make_model(made, opset_imports=opsets, ir_version=ir_version)


def refused(made: ModelProto | None, *words: str, target: str = "onnxruntime") -> str:
    """The error line of an export that fails and leaves the current folder as it was."""
    if made is not None:
        Path("m.onnx").write_bytes(made.SerializeToString())
    before = listing(Path.cwd())
    found = run("export", "m.onnx", "--target", target, *words)
    assert (found.code, found.out) == (1, ""), found.err
    assert listing(Path.cwd()) == before
    assert len(found.error) < 500
    return found.error


def served(made: ModelProto, *words: str, target: str = "onnxruntime") -> Any:
    """What an export says whose numbers are right."""
    Path("m.onnx").write_bytes(made.SerializeToString())
    found = run("export", "m.onnx", "--target", target, *words, "-o", "out", "--force", "--json")
    assert found.code == 0, found.err
    exported = json.loads(found.out)
    assert exported["graph_parity"]["max_abs"] < 1e-5 * exported["graph_parity"]["reference_max"]
    return exported


# ------------------------------------------------------------------------------------------------ control flow


def branch(name: str, number: float) -> onnx.GraphProto:
    constant = helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.float32(number)))
    return helper.make_graph([constant], name, [], [value(name)])


def with_if(*before: NodeProto) -> list[NodeProto]:
    either = node("If", "condition", "factor", "branch", then_branch=branch("two", 2), else_branch=branch("three", 3))
    return [*before, either, *nodes(head=[node("MatMul", "flat head", "raw"), node("Mul", "raw factor", "scores")])]


def test_a_branch_on_a_constant_is_folded() -> None:
    exported = served(model(with_if(), condition=True))
    assert exported["graph_parity"]["reference_max"] > 0
    operators = {n.op_type for n in onnx.load("out/graph.onnx").graph.node}
    assert "If" not in operators
    assert exported["notes"][0] == "the model has no attention site, so it is not recognised as a Vision Transformer"


def test_a_branch_on_the_image_is_refused() -> None:
    asked = [node("ReduceMean", "image", "brightness", keepdims=0), node("Greater", "brightness zero", "condition")]
    line = refused(model(with_if(*asked), zero=np.float32(0)))
    assert "node 'branch' is If, and the operators inside control flow cannot be checked" in line
    assert "Export the model without branches and loops" in line


def test_loops_are_refused() -> None:
    body = helper.make_graph(
        [node("Identity", "go", "on"), node("Mul", "x half", "y", "inner")],
        "body",
        [value("i", [], INT64), value("go", [], TensorProto.BOOL), value("x", [1, 10])],
        [value("on", [], TensorProto.BOOL), value("y", [1, 10])],
        [numpy_helper.from_array(np.float32(0.5), "half")],
    )
    loop = [node("MatMul", "flat head", "raw"), node("Loop", "trips - raw", "scores", "loop", body=body)]
    assert "node 'loop' is Loop" in refused(model(nodes(head=loop), trips=np.int64(3)))
    step = helper.make_graph(
        [node("Add", "sum x", "next"), node("Identity", "next", "y")],
        "step",
        [value("sum", [10]), value("x", [10])],
        [value("next", [10]), value("y", [10])],
    )
    scan = node("Scan", "zeros raw", "last scores", "scan", body=step, num_scan_inputs=1)
    graph = nodes(head=[node("MatMul", "flat head", "raw"), scan])
    assert "node 'scan' is Scan" in refused(model(graph, zeros=np.zeros(10, np.float32)))


# --------------------------------------------------------------------------------------------------- operators


@pytest.mark.parametrize(
    ("operator", "domain", "parts"),
    [
        ("Mystery", "acme.ops", ["node 'act' is Mystery of acme.ops", "standard operators"]),
        ("Mystery", "", ["node 'act' is Mystery, which is not an operator of ONNX"]),
        (
            "QuickGelu",
            "com.microsoft",
            ["node 'act' is QuickGelu of com.microsoft", "before ONNX Runtime optimised it"],
        ),
        ("Bernoulli", "", ["node 'act' (Bernoulli) draws random numbers", "eval mode"]),
    ],
)
@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
def test_operators_that_no_claim_can_be_made_about(operator: str, domain: str, parts: list[str], target: str) -> None:
    act = node(operator, "patches", "active", "act", domain=domain)
    line = refused(model(nodes(relu=[act]), domains=(domain,) if domain else ()), target=target)
    assert all(part in line for part in parts)


def test_dropout_that_drops() -> None:
    drop = nodes(relu=[node("Dropout", "patches ratio training", "active", "drop")])
    assert "node 'drop' (Dropout) draws random numbers" in refused(model(drop, ratio=np.float32(0.5), training=True))
    served(model(drop, ratio=np.float32(0.5), training=False))


def test_a_function_of_the_model_is_an_operator() -> None:
    made = model(nodes(relu=[node("Act", "patches", "active", domain="own")]), domains=("own",))
    body = [node("Relu", "x", "y")]
    made.functions.append(helper.make_function("own", "Act", ["x"], ["y"], body, [helper.make_opsetid("", 18)]))
    served(made)


# ------------------------------------------------------------------------------------------------------ inputs


@pytest.mark.parametrize(
    ("inputs", "part"),
    [
        (
            (IMAGE, ("depth", [1, 1, 16, 16], FLOAT)),
            "beside the image 'image' it needs depth (float32, [1, 1, 16, 16])",
        ),
        ((("image", [1, 7], INT64),), "its input is not float32 (image: INT64[1,7])"),
        ((("image", [1, 7, 8], FLOAT),), "its input is not a batch of images"),
        ((("image", [1, 3, 0, 16], FLOAT),), "its input image[1,3,0,16] is empty"),
        ((("image", [0, 3, 16, 16], FLOAT),), "its input image[0,3,16,16] is empty"),
        ((("image", [1, 3, 1 << 20, 1 << 20], FLOAT),), "images of 1048576x1048576 are too large"),
        ((("image", [1, 1, 16, 16], FLOAT),), "m.onnx does not run on image [1, 1, 16, 16]: Conv node"),
        ((("image", [4, 3, 16, 16], FLOAT),), "m.onnx takes batches of 4, not of 1. Give --batch 4"),
    ],
)
def test_inputs_that_are_not_one_image(inputs: tuple[Any, ...], part: str) -> None:
    assert part in refused(model(inputs=inputs))


def test_a_fixed_batch_is_served_when_it_is_asked_for() -> None:
    fixed = model(inputs=(("image", [4, 3, 16, 16], FLOAT),), outputs=(("scores", [4, 10], FLOAT),))
    served(fixed, "--batch", "4")


# ----------------------------------------------------------------------------------------------------- weights


def external(location: str) -> None:
    """The small model with its weights in `w.data`, and what it says of where they are."""
    Path("w.data").unlink(missing_ok=True)
    onnx.save(model(), "m.onnx", save_as_external_data=True, location="w.data", size_threshold=0)
    made = onnx.load("m.onnx", load_external_data=False)
    for tensor in made.graph.initializer:
        for entry in tensor.external_data:
            entry.value = location if entry.key == "location" else entry.value
    Path("m.onnx").write_bytes(made.SerializeToString())


def test_external_data_is_taken_from_the_models_own_folder_only(here: Path) -> None:
    external("w.data")
    elsewhere = here.parent / "w.data"
    for location in ("../w.data", str(elsewhere), "w.data"):
        external(location)
        Path("w.data").replace(elsewhere)
        if location == "w.data":
            Path("w.data").symlink_to(elsewhere)
        assert "the data of 'kernel' lies outside the folder of the model. Save the model again" in refused(None)
    Path("w.data").unlink()
    assert f"its data file w.data is missing. Copy it into {here}" in refused(None)
    external("w.data")
    os.truncate("w.data", 100)
    assert "its data file w.data is truncated" in refused(None)


def damaged(change: Callable[[TensorProto], object]) -> ModelProto:
    made = model()
    change(made.graph.initializer[0])
    return made


def test_initializers_that_contradict_themselves() -> None:
    cut = refused(damaged(lambda t: setattr(t, "raw_data", t.raw_data[:-100])))
    assert "Initializer 'kernel': raw_data size (1436 bytes) does not match" in cut
    assert "refuses m.onnx" in refused(damaged(lambda t: t.dims.__setitem__(0, -8)))
    assert "refuses m.onnx" in refused(damaged(lambda t: t.dims.__setitem__(0, 1 << 40)))
    assert "Node (head) Op (MatMul)" in refused(model(head=np.zeros((9, 10), np.float32)))
    double = model()
    double.graph.initializer.append(numpy_helper.from_array(2 * HEAD, "head"))
    assert "m.onnx has 2 initializers named 'head'" in refused(double)


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_weights_that_are_no_numbers(number: float) -> None:
    weights = HEAD.copy()
    weights[0, 0] = number
    assert "the model itself gives NaN or infinity for plain images. Check its weights" in refused(model(head=weights))


def in_type(kind: int) -> tuple[ModelProto, ModelProto]:
    """The small model in a floating-point type: inside of it only, and at its input and output too."""
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    weights = {"kernel": KERNEL.astype(dtype), "head": HEAD.astype(dtype)}
    inside = [
        node("Cast", "image", "x", to=kind),
        *nodes(stem=[node("Conv", "x kernel", "patches", "stem", strides=[4, 4])]),
    ]
    inside[-1].output[0] = "raw"
    plain = model(inputs=(("image", [1, 3, 16, 16], kind),), outputs=(("scores", [1, 10], kind),), **weights)
    return model([*inside, node("Cast", "raw", "scores", to=FLOAT)], **weights), plain


def test_a_model_in_double_is_no_reference() -> None:
    inside, plain = in_type(DOUBLE)
    line = refused(inside)
    assert "node 'stem' (Conv) computes in double, so there is no FP32 to compare with. Use the float32 model" in line
    assert "Use the float32 model" in refused(plain)


def test_a_model_in_half_precision_is_raised() -> None:
    for half in in_type(HALF):
        assert "m.onnx came in float16: it was raised to float32, which is the reference" in served(half)["notes"]


def test_a_model_that_is_quantized_is_its_own_reference() -> None:
    pair = [node("QuantizeLinear", "image scale", "q", "q"), node("DequantizeLinear", "q scale", "x", "dq")]
    stem = node("Conv", "x kernel", "patches", strides=[4, 4])
    served(model(nodes(stem=[*pair, stem]), scale=np.float32(0.02)))
    line = refused(None, "--precision", "int8")
    assert "m.onnx is quantized already, so it cannot become int8. Leave out --precision to keep it as it is" in line


# ------------------------------------------------------------------------------------------------------ wiring


@pytest.mark.parametrize(
    ("graph", "outputs", "part"),
    [
        ([], (IMAGE,), "the output 'image' is an input too"),
        (nodes(), (SCORES, IMAGE), "the output 'image' is an input too"),
        (nodes(), (), "it has no outputs"),
        (nodes(), (SCORES, ("ghost", [1], FLOAT)), "Graph output (ghost) does not exist"),
        ([node("Identity", "head", "scores")], (SCORES,), "no output depends on the image"),
        (nodes(relu=[node("Relu", "ghost", "active", "relu")]), (SCORES,), "node 'relu' (Relu) reads 'ghost'"),
        (nodes(relu=[node("Add", "patches late", "active"), node("Relu", "active", "late")]), (SCORES,), "not acyclic"),
        (nodes(relu=[node("Relu", "patches", "active")] * 2), (SCORES,), "Output 'active' is redeclared"),
        (nodes(relu=[node("Relu", "patches", "active", "stem")]), (SCORES,), "2 nodes are named 'stem'"),
        (nodes(), (("scores", [1, 11], FLOAT),), "declares the output scores[1,11] but computes [1, 10]"),
        (nodes(), (("scores", [1, 10, 1], FLOAT),), "declares the output scores[1,10,1] but computes [1, 10]"),
        (nodes(), (("scores", [1, 10], INT64),), "Type (tensor(int64)) of output arg (scores)"),
    ],
)  # fmt: skip
def test_graphs_that_do_not_hold_together(graph: list[NodeProto], outputs: tuple[Any, ...], part: str) -> None:
    assert part in refused(model(graph, outputs=outputs))


def test_the_order_and_the_names_of_nodes_do_not_matter() -> None:
    anonymous = nodes()[::-1]
    for one in anonymous:
        one.ClearField("name")
    served(model(anonymous))


# ----------------------------------------------------------------------------------------------------- versions


@pytest.mark.parametrize(("opset", "ir_version"), [(7, 3), (9, 4), (11, 6), (26, 13)])
def test_old_and_new_opsets_give_the_same_numbers(opset: int, ir_version: int) -> None:
    inputs = (IMAGE, ("kernel", [8, 3, 4, 4], FLOAT), ("head", [8, 10], FLOAT)) if ir_version == 3 else (IMAGE,)
    served(model(opset=opset, ir_version=ir_version, inputs=inputs))


def test_versions_from_the_future() -> None:
    assert "m.onnx has opset 99 and ONNX IR 9" in refused(model(opset=99))
    assert "m.onnx has opset 18 and ONNX IR 99" in refused(model(ir_version=99))
