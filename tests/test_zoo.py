"""A small cut of the zoo: every attention that the model itself computes is raised and fused, with its numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

from benchmarks.zoo import __main__ as zoo
from benchmarks.zoo import models
from tests.graphs import run
from vitdeploy import passes
from vitdeploy.evidence import AttentionAudit, Audit, LinearAudit, NormAudit, Unfused
from vitdeploy.graph.model import Graph, load
from vitdeploy.passes import order

CUT = ["textbook", "textbook, masked", "timm levit_128s", "hf segformer"]
MODULE = f"python:{models.__name__}:build"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, Path]]:
    """Each model's number of attentions, and its file: the legacy exporter takes a third of the ladder's time."""
    folder = tmp_path_factory.mktemp("zoo")
    made = {}
    for number, name in enumerate(CUT):
        model, size = models.build(name), models.MODELS[name].size
        zoo._save_legacy(model, size, 17, folder / f"{number}.onnx")
        made[name] = models.count_attentions(model, size), folder / f"{number}.onnx"
    return made


@pytest.mark.parametrize("name", CUT)
def test_every_attention_of_the_model_fuses(name: str, exported: dict[str, tuple[int, Path]], tmp_path: Path) -> None:
    sites, file = exported[name]
    assert sites > 0
    for target in ("openvino", "onnxruntime"):
        row = zoo._row(name, "onnx 17", str(file), target, sites, tmp_path / target)
        assert (row.raised, row.fused, row.note) == (str(sites), str(sites), ""), row
        assert float(row.difference) <= zoo.LARGEST_RELATIVE_DIFFERENCE, row


@pytest.mark.parametrize("name", CUT)
def test_a_site_that_gives_zeros_shows(name: str, exported: dict[str, tuple[int, Path]]) -> None:
    """What the zoo's `difference` rests on: with these weights it would see any one attention that is wrong."""
    sites, file = exported[name]
    graph = load(file)
    passes.run(order.raising(1), graph)
    gates = _gated(graph)
    assert len(gates) == sites
    image = np.random.default_rng(0).standard_normal((1, 3, *models.MODELS[name].size)).astype(np.float32)
    opened = {gate: np.array(1, np.float32) for gate in gates}
    reference = run(graph, image, **opened)
    for gate in gates:
        broken = run(graph, image, **opened | {gate: np.array(0, np.float32)})
        difference = max(np.abs(broken[k] - v).max() / np.abs(v).max() for k, v in reference.items())
        assert difference > zoo.LARGEST_RELATIVE_DIFFERENCE, gate


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
    assert models.count_attentions(Features().eval(), (8, 8)) == 2


def test_the_exporter_ladder_serves_the_zoo(tmp_path: Path) -> None:
    row = zoo._row("textbook", "module", MODULE, "openvino", 2, tmp_path / "a")
    assert (row.raised, row.fused, row.note) == ("2", "2", "")


def test_a_returned_map_is_refused_and_counted(tmp_path: Path) -> None:
    row = zoo._row("textbook, returns its map", "module", MODULE, "onnxruntime", 2, tmp_path / "a")
    assert (row.raised, row.fused) == ("1", "1")
    assert row.note.startswith("1 site: the attention map is read by something else")


def test_the_module_comes_first_and_an_exporter_s_failure_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("Unsupported: an operator\nand a page of advice")

    def row(name: str, route: str, spec: str, target: str, sites: int, out: Path) -> zoo.Row:
        del spec, out
        return zoo.Row(name, route, target, sites, "2", "2", "0", 0, "")

    monkeypatch.setattr(zoo, "_save_legacy", fails)
    monkeypatch.setattr(zoo, "_row", row)
    rows = list(zoo._rows("textbook"))
    assert [r.route for r in rows] == ["module"] * len(zoo.TARGETS) + ["onnx 17", "onnx 14"]
    assert rows[-1].note == "legacy exporter: Unsupported: an operator"


def test_a_reason_is_told_once() -> None:
    parts = "runs as 3 kernels: {0}/qk in {0}/qk_myl0_7 (gemm)"
    reasons = {
        "a": parts.format("a"),
        "b": parts.format("b"),
        "c": f"no kernel takes it; {parts.format('c')}",
        "d": "x",
    }
    attention = AttentionAudit(
        sites=4, fused=0, evidence="compiled", unfused=tuple(Unfused(site=s, reason=r) for s, r in reasons.items())
    )
    audit = Audit(
        target="t", precision="fp16", attention=attention, layernorm=NormAudit(sites=0, fused=0), linears=LinearAudit()
    )
    told = zoo._notes(audit, {"d": "it is no attention"})
    assert told == ["2 sites: runs as 3 kernels", "1 site: no kernel takes it", "1 site: it is no attention"]
