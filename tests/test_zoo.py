"""A small cut of the zoo: every attention that the model itself computes is raised and fused, with its numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

from benchmarks.zoo import making, models
from benchmarks.zoo.counting import count_attentions
from benchmarks.zoo.making import Maker, count_reasons, save_legacy
from benchmarks.zoo.rows import LARGEST_RELATIVE_DIFFERENCE, Case, Row
from tests.graphs import run
from vitdeploy import passes
from vitdeploy.evidence import Unfused
from vitdeploy.graph.model import Graph, load
from vitdeploy.passes import order

CUT = ["textbook", "textbook, masked", "timm levit_128s", "hf segformer"]


@pytest.fixture(scope="module")
def makers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Maker]:
    """A maker of rows for each model. They use files: the legacy exporter takes a third of the ladder's time."""
    return {name: Maker(name, tmp_path_factory.mktemp("zoo")) for name in CUT}


@pytest.mark.parametrize("name", CUT)
def test_every_attention_of_the_model_fuses(name: str, makers: dict[str, Maker]) -> None:
    for target in ("openvino", "onnxruntime"):
        row = makers[name].make(Case(name, "onnx 17", target, "fp32"))
        assert row.attentions
        assert (row.error, row.problems, row.unfused) == ("", [], {}), row
        assert row.raised == row.fused == row.attentions, row
        assert row.norms_fused == row.norms, row
        assert row.is_exact, row


@pytest.mark.parametrize("name", CUT)
def test_a_site_that_gives_zeros_shows(name: str, makers: dict[str, Maker]) -> None:
    """The zoo's `difference` rests on this: with these weights it would show any one attention that is wrong."""
    sites, graph = makers[name].attentions, load(makers[name].save(17))
    passes.run(order.raising(1), graph)
    gates = _gated(graph)
    assert len(gates) == sites
    image = np.random.default_rng(0).standard_normal((1, 3, *models.MODELS[name].size)).astype(np.float32)
    opened = {gate: np.array(1, np.float32) for gate in gates}
    reference = run(graph, image, **opened)
    for gate in gates:
        broken = run(graph, image, **opened | {gate: np.array(0, np.float32)})
        difference = max(np.abs(broken[k] - v).max() / np.abs(v).max() for k, v in reference.items())
        assert difference > LARGEST_RELATIVE_DIFFERENCE, gate


def _gated(graph: Graph) -> list[str]:
    """Multiply each attention's result by a number that the graph takes as an input; the inputs' names."""
    gates = []
    for core in [n for n in graph.nodes if n.op_type == "Attention"]:
        result = core.outputs[0]
        gate = ir.Value(name=f"{core.name}/gate", shape=ir.Shape([]), type=ir.TensorType(ir.DataType.FLOAT))
        uses = tuple(result.uses())
        gated = ir.node("Mul", [result, gate], name=f"{core.name}/gated")
        graph.model.graph.insert_after(core, gated)
        graph.model.graph.inputs.append(gate)
        for use in uses:
            use.node.replace_input_with(use.idx, gated.outputs[0])
        gates.append(gate.name or "")
    return gates


class Features(nn.Module):
    """Returns what the second of three attentions gives, written into a larger tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.MultiheadAttention(8, 2, batch_first=True) for _ in range(3))

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """(1, 3, 8, 8)."""
        x, features = image.flatten(1, 2), []
        for layer in self.layers:
            x = x + layer(x, x, x)[0]
            features.append(x)
        padded = torch.zeros(1, 32, 8)
        padded[:, :24] = features[1]
        return {"features": padded}


def test_attentions_behind_the_last_feature_are_dead() -> None:
    assert count_attentions(Features().eval(), (8, 8)) == 2


class Constants(nn.Module):
    """Attends first among learned queries, which do not see the image, and then to the image."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(1, 4, 8))
        self.layers = nn.ModuleList(nn.MultiheadAttention(8, 2, batch_first=True) for _ in range(2))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(1, 3, 8, 8)."""
        first, second = self.layers
        queries = first(self.queries, self.queries, self.queries)[0]
        tokens = image.flatten(1, 2)
        attended: torch.Tensor = second(queries, tokens, tokens)[0]
        return attended


def test_attentions_that_do_not_see_the_image_are_constants() -> None:
    assert count_attentions(Constants().eval(), (8, 8)) == 1


def test_the_exporter_ladder_serves_the_zoo_and_int8(tmp_path: Path) -> None:
    maker = Maker("textbook", tmp_path)
    row = maker.make(Case("textbook", "module", "openvino", "fp32"))
    assert (row.error, row.raised, row.fused, row.exporter, row.weights_pct) == ("", 2, 2, "dynamo", None)
    row = maker.make(Case("textbook", "module", "onnxruntime", "int8"))
    assert (row.error, row.raised, row.fused) == ("", 2, 2)
    assert 50 < (row.weights_pct or 0) < 100
    assert sum(row.outside.values()) > 0


def test_a_returned_map_is_refused_and_counted(tmp_path: Path) -> None:
    name = "textbook, returns its map"
    row = Maker(name, tmp_path).make(Case(name, "module", "onnxruntime", "fp32"))
    assert (row.attentions, row.sites, row.raised, row.fused) == (2, 2, 1, 1)
    ((reason, count),) = row.unfused.items()
    assert count == 1
    assert reason.startswith("the attention map is read by something else")


def test_an_exporter_that_fails_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def fails(*_: object) -> None:
        calls.append(1)
        raise RuntimeError("Unsupported: an operator\nand a page of advice")

    monkeypatch.setattr(making, "save_legacy", fails)
    maker = Maker("textbook", tmp_path)
    rows = [maker.make(Case("textbook", "onnx 14", target, "fp32")) for target in ("openvino", "onnxruntime")]
    assert [row.error for row in rows] == ["the legacy exporter cannot: Unsupported: an operator"] * 2
    assert [row.attentions for row in rows] == [2, 2]
    assert len(calls) == 1


def test_each_reason_is_counted_without_the_kernels() -> None:
    parts = "runs as 3 kernels: {0}/qk in {0}/qk_myl0_7 (gemm)"
    reasons = {
        "a": parts.format("a"),
        "b": parts.format("b"),
        "c": f"no kernel takes it; {parts.format('c')}",
        "d": "x",
    }
    unfused = tuple(Unfused(site=site, reason=reason) for site, reason in reasons.items())
    assert count_reasons(unfused, {"d": "it is no attention"}) == {
        "runs as 3 kernels": 2,
        "no kernel takes it": 1,
        "it is no attention": 1,
    }


def test_the_legacy_exporter_writes_the_opset_that_is_asked_for(tmp_path: Path) -> None:
    save_legacy(models.build("textbook"), (32, 32), 14, tmp_path / "model.onnx")
    assert load(tmp_path / "model.onnx").opset == 14


@pytest.mark.parametrize(
    ("row", "problems"),
    [
        ({"difference": 1e-6}, []),
        ({"difference": 1e-3}, ["differs by 1e-03"]),
        ({"difference": float("nan")}, ["differs by nan"]),
        ({"difference": 1e-3, "precision": "fp16"}, []),
        ({"difference": 1e-6, "sites": 1}, ["1 sites instead of 2"]),
    ],
)
def test_other_numbers_and_other_counts_are_problems(row: dict[str, object], problems: list[str]) -> None:
    facts = {"precision": "fp32", "attentions": 2, "sites": 2} | row
    assert Row("m", "module", "openvino", seconds=1.0, **facts).problems == problems  # type: ignore[arg-type]
