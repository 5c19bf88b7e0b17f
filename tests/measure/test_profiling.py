"""Profiles by part of the model, from the counters of real engines."""

from pathlib import Path

import pytest
from torch import nn

from tests.graphs import images, legacy, parsed
from vitdeploy import passes
from vitdeploy.graph.onnx_session import OnnxSession, read_counters
from vitdeploy.graph.recognize import recognize
from vitdeploy.graph.structure import AttentionSite, Linear, Structure
from vitdeploy.measure.profiling import ROLES, profile
from vitdeploy.passes import order
from vitdeploy.runtime.torch_session import TorchSession
from vitdeploy.session import Counters, OperatorTime, Session
from vitdeploy.targets._openvino_session import Engine, OpenVINOSession
from vitdeploy.targets.openvino import OpenVINO

BATCH = 32
Lowered = tuple[Path, Structure]


@pytest.fixture(scope="module")
def lowered(vit: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Lowered:
    """The tiny ViT as primitives, on disk; a batch that keeps every operator above a counter's microsecond."""
    graph = parsed(legacy(vit, images(BATCH)))
    dialect = OpenVINO().dialect()
    passes.run([*order.raising(), *order.folding(packed_qkv=dialect.packed_qkv)], graph)
    structure = recognize(graph, {})
    passes.run(order.lowering(dialect), graph)
    path = tmp_path_factory.mktemp("profile") / "graph.onnx"
    graph.save(path)
    return path, structure.locate_attention(node.name or "" for node in graph.nodes)


def opened(engine: str, path: Path) -> Session:
    return OnnxSession(path, threads=1) if engine == "ort" else OpenVINOSession(path, Engine("CPU", 1), name=engine)


@pytest.mark.parametrize("engine", ["ort", "openvino"])
def test_every_part_of_the_model_takes_its_time(engine: str, lowered: Lowered) -> None:
    path, structure = lowered
    with opened(engine, path) as session:
        measured = session.profile({"input": images(BATCH)})
    assert measured is not None
    found = profile(engine, measured, structure)
    assert tuple(found.roles) == ROLES
    assert all(found.roles[role] > 0 for role in ("qkv", "attention", "mlp", "norm"))
    accounted_ms = sum(found.roles.values())
    assert 0 < accounted_ms <= 1.05 * found.total_ms
    assert accounted_ms + found.between_ms == pytest.approx(max(found.total_ms, accounted_ms))
    assert [o.ms for o in found.operators] == sorted((o.ms for o in found.operators), reverse=True)
    products = {o.name: o.role for o in found.operators if o.kind.split()[0] in ("MatMul", "FullyConnected", "Gemm")}
    expected = {"qkv": "qkv", "proj": "attention", "fc1": "mlp", "fc2": "mlp"}
    for part, role in expected.items():
        roles = [its_role for name, its_role in products.items() if f"/{part}/" in name]
        assert roles, part
        assert set(roles) == {role}


def test_an_engine_without_counters_says_so(vit: nn.Module) -> None:
    assert TorchSession(vit).profile({"input": images()}) is None


def test_time_between_operators_belongs_to_none() -> None:
    empty = Structure(attention=(), linears=(), norms=())
    one = OperatorTime("a", "Add", ("a",), 2.0)
    found = profile("x", Counters(3, 5.0, (one,)), empty)
    assert (found.total_ms, found.between_ms, found.roles["other"]) == (5.0, 3.0, 2.0)
    assert profile("x", Counters(3, 1.0, (one,)), empty).between_ms == 0  # operators at the same time


def test_the_slower_half_of_the_runs_is_left_out_of_ort_counters() -> None:
    def run(start: int, dur: int) -> list[dict[str, object]]:
        kernel = {"cat": "Node", "name": "a_kernel_time", "ts": start + 1, "dur": dur - 10, "args": {"op_name": "Add"}}
        return [{"name": "model_run", "ts": start, "dur": dur}, kernel]

    found = read_counters([*run(0, 100), *run(1000, 900), *run(3000, 110), *run(4000, 500)])
    assert (found.runs, found.total_ms) == (2, pytest.approx(0.105))
    assert found.operators == (OperatorTime("a", "Add", ("a",), pytest.approx(0.095)),)


def test_the_nearest_name_decides_where_a_module_holds_all_of_its_attention() -> None:
    """As torchvision's nn.MultiheadAttention exports it: the packed projection goes by the module's own name."""
    module = "layers.0.self_attention"
    site = AttentionSite(
        name=module, nodes=(f"{module}/Attention/qk", f"{module}/Attention/softmax", f"{module}/Attention/pv"),
        block=0, heads=3, head_size=16,
    )  # fmt: skip
    linears = (
        Linear(name=module, nodes=(f"{module}/MatMul",), role="qkv", block=0, weight=(48, 144)),
        Linear(name=f"{module}.out_proj", nodes=(f"{module}/MatMul_1",), role="proj", block=0, weight=(48, 48)),
    )
    structure = Structure(attention=(site,), linears=linears, norms=())
    kernels = {"MatMul": "qkv", "MatMul_1": "attention", "Attention/softmax": "attention", "Add": "qkv"}
    counted = tuple(OperatorTime(f"{module}/{n}", "kernel", (f"{module}/{n}",), 1.0) for n in kernels)
    found = profile("x", Counters(1, 4.0, counted), structure)
    assert {o.name.removeprefix(f"{module}/"): o.role for o in found.operators} == kernels
