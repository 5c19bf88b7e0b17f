"""All attention is accounted for: raised, or listed with why not; and what cannot be told is a doubt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

from tests.graphs import HEADS, SIZE, TOKENS, WIDTH, Site, dynamo, legacy, raised, redrawn, tokens
from vitdeploy.graph.dialect import FLOAT32
from vitdeploy.recipe import Batch, GateSpec
from vitdeploy.targets import Bundle, Compiled, audit_bundle
from vitdeploy.targets._audit import make_audit
from vitdeploy.verdict import Case, judge

MIXED = "heads or maps are mixed"
Core = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def scores(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.transpose(-2, -1) * SIZE**-0.5


class ConvolvedHeads(nn.Module):
    """Talking heads as a 1 x 1 convolution over the maps, as in EfficientFormerV2."""

    def __init__(self, kernel: int = 1) -> None:
        super().__init__()
        self.before, self.after = (nn.Conv2d(HEADS, HEADS, kernel, padding=kernel // 2) for _ in range(2))

    def forward(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Tensor:
        del x
        return self.after(self.before(scores(q, k)).softmax(-1)) @ v


class NormedMaps(nn.Module):
    """Maps that are mixed by an Einsum with a constant and normalised, as in DeepViT."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.norm = nn.Parameter(torch.randn(HEADS, HEADS)), nn.BatchNorm2d(HEADS)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Tensor:
        del x
        return self.norm(torch.einsum("bhij,hg->bgij", scores(q, k).softmax(-1), self.mix)) @ v


def multiplied(q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Tensor:
    """Both products as a multiplication and a sum."""
    del x
    shares = (q[:, :, :, None] * k[:, :, None]).sum(-1).softmax(-1)
    return (shares[..., None] * v[:, :, None]).sum(-2)


def written_out(q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Tensor:
    del x
    exponential = (scores(q, k) - 3).exp()
    return (exponential / (exponential.sum(-1, keepdim=True) + 1e-6)) @ v


def off_by_one(q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Tensor:
    del x
    exponential = scores(q, k).exp()
    return (exponential / (1 + exponential.sum(-1, keepdim=True))) @ v


def logarithm(q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Tensor:
    del x
    return scores(q, k).log_softmax(-1).exp() @ v


def split_map(q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Tensor:
    """The map's view over rows and columns, with positions added, as in SAM; then rolled."""
    del x
    side = int(TOKENS**0.5) if int(TOKENS**0.5) ** 2 == TOKENS else 1
    viewed = scores(q, k).reshape(-1, HEADS, TOKENS, side, TOKENS // side) + q.mean(-1)[..., None, None]
    return viewed.reshape(-1, HEADS, TOKENS, TOKENS).roll(1, 1).softmax(-1) @ v


def over_slots(q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Tensor:
    """Slot attention: the softmax runs over the queries, and each query's shares are normalised then."""
    del x
    shares = scores(q, k).softmax(-2) + 1e-6
    return (shares / shares.sum(-1, keepdim=True)) @ v


SITES: dict[str, tuple[Any, str]] = {
    "heads mixed by a convolution": (ConvolvedHeads(), MIXED),
    "heads mixed by a larger convolution": (ConvolvedHeads(3), MIXED),
    "maps mixed by an Einsum and normalised": (NormedMaps(), MIXED),
    "products by multiplication and sum": (multiplied, "multiplication and a sum"),
    "softmax as Exp and Div": (written_out, "written as several operators"),
    "softmax with one more": (off_by_one, "written as several operators"),
    "softmax by its logarithm": (logarithm, "written as several operators"),
    "a view of the map": (split_map, ""),
    "softmax over the queries, normalised": (over_slots, MIXED),
    "squared map": (lambda q, k, v, x: scores(q, k).softmax(-1).pow(2) @ v, MIXED),
    "activation on the scores": (lambda q, k, v, x: torch.nn.functional.gelu(scores(q, k)).softmax(-1) @ v, "Gelu"),
}


@pytest.mark.parametrize("name", SITES)
def test_attention_in_a_form_that_is_not_raised_is_listed_with_the_reason(name: str) -> None:
    core, reason = SITES[name]
    _, structure, refused = raised(legacy(redrawn(Site(core)), tokens()))
    assert len(structure.attention) == 1
    assert reason in (structure.attention[0].refused or "")
    assert list(refused.values()) == [structure.attention[0].refused]
    assert structure.unclassified == ()


def test_the_dynamo_exporters_graph_is_read_likewise() -> None:
    _, structure, _ = raised(dynamo(redrawn(Site(ConvolvedHeads())), tokens()))
    assert [MIXED in (site.refused or "") for site in structure.attention] == [True]


def test_a_varying_batch_hides_no_attention() -> None:
    _, structure, _ = raised(legacy(redrawn(Site(ConvolvedHeads())), tokens(2), dynamic=True))
    assert [MIXED in (site.refused or "") for site in structure.attention] == [True]


class Other(nn.Module):
    """An attention, and behind it a softmax that belongs to none."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.score, self.router, self.head = nn.Linear(WIDTH, 1), nn.Linear(WIDTH, 3), nn.Linear(WIDTH, 5)
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.squeeze, self.bins = nn.Linear(WIDTH, 2 * WIDTH), nn.Parameter(torch.arange(5.0))
        self.end = getattr(self, kind)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        attended = (scores(q, k).softmax(-1) @ v).transpose(1, 2).flatten(2)
        return self.end(x + self.out(attended), attended)

    def classes(self, x: Tensor, attended: Tensor) -> Tensor:
        del attended
        return self.head(x.mean(1)).softmax(-1)

    def pooling(self, x: Tensor, attended: Tensor) -> Tensor:
        del attended
        return self.score(x).softmax(1).transpose(1, 2) @ x

    def pooling_without_a_projection(self, x: Tensor, attended: Tensor) -> Tensor:
        return self.score(attended).softmax(1).transpose(1, 2) @ x

    def routing(self, x: Tensor, attended: Tensor) -> Tensor:
        del attended
        results = torch.stack([expert(x) for expert in self.experts], -2)
        return (self.router(x).softmax(-1)[..., None] * results).sum(-2)

    def soft_routing(self, x: Tensor, attended: Tensor) -> Tensor:
        del attended
        return self.router(x).softmax(1).transpose(1, 2) @ x

    def selective(self, x: Tensor, attended: Tensor) -> Tensor:
        """Radix softmax of ResNeSt and SKNet."""
        branches = torch.stack([x, attended], 1)
        weights = self.squeeze(branches.sum(1).mean(1)).unflatten(-1, (2, WIDTH)).softmax(1)
        return (branches * weights[:, :, None]).sum(1)

    def corners(self, x: Tensor, attended: Tensor) -> Tensor:
        """The same for the sides of a box, with queries and sides in one axis."""
        return self.squeeze(x).reshape(-1, 4).softmax(-1) @ attended[0, :4]

    def distances(self, x: Tensor, attended: Tensor) -> Tensor:
        """D-FINE's integral over the bins of a distribution."""
        del attended
        return self.head(x).softmax(-1) @ self.bins[:, None]

    def efficient(self, x: Tensor, attended: Tensor) -> Tensor:
        """Linear attention: the keys' softmax reads no product of q and k."""
        del attended
        return self.q(x).softmax(-1) @ (self.k(x).softmax(1).transpose(1, 2) @ self.v(x))

    def similarity(self, x: Tensor, attended: Tensor) -> Tensor:
        """CLIP's probabilities: a product of two computed tensors, but nothing is weighted by it."""
        return (x.mean(1) @ attended.mean(1).T).softmax(-1)


KINDS = [name for name, value in vars(Other).items() if callable(value) and name not in ("__init__", "forward")]


@pytest.mark.parametrize("kind", KINDS)
def test_a_softmax_that_is_no_attention_is_none(kind: str) -> None:
    graph, structure, refused = raised(legacy(redrawn(Other(kind)), tokens()))
    assert "Softmax" in [node.op_type for node in graph.nodes]
    assert [site.refused for site in structure.attention] == [None]
    assert (refused, structure.unclassified) == ({}, ())


FOREIGN = """
    <ir_version: 9, opset_import: ["" : 20, "acme" : 1]>
    foreign (float[1, 16, 32] x) => (float[1, 16, 32] y)
    {
        turned = Transpose <perm = [0, 2, 1]> (x)
        scores = MatMul (x, turned)
        hidden = acme.Scale (scores)
        shares = Softmax <axis = -1> (hidden)
        y = MatMul (shares, x)
    }
"""


def test_a_softmax_behind_an_unknown_operator_is_a_doubt_and_the_gate_invalid() -> None:
    _, structure, _ = raised(FOREIGN)
    assert (structure.attention, len(structure.unclassified)) == ((), 1)
    bundle = Bundle(Path("graph.onnx"), structure, FLOAT32, Batch(), "x", (1, 16, 32))
    audit = make_audit(
        "engine", bundle, Compiled(Path(), "model", "engine 1.0"), fused={}, reasons={}, layers={}, norms=0
    )
    assert "Scale hides where its products are" in audit.doubts[0]
    assert "may be an attention that is not counted" in audit.doubts[0]
    assert audit_bundle("engine", bundle, "digest").doubts == audit.doubts
    gate = judge(Case(audit=audit, bench=None, evaluation=None), GateSpec(min_fused_pct=1.0))
    assert gate.verdict == "invalid"
    assert "may be an attention that is not counted" in gate.checks[0].why


def test_the_attention_of_another_tool_is_a_site() -> None:
    model = onnx.parser.parse_model("""
        <ir_version: 9, opset_import: ["" : 20, "com.microsoft" : 1]>
        foreign (float[1, 16, 32] x) => (float[1, 16, 32] y)
        {
            y = com.microsoft.MultiHeadAttention <num_heads = 4> (x, x, x)
        }
    """)
    _, structure, _ = raised(model.SerializeToString())
    assert ["com.microsoft.MultiHeadAttention" in (site.refused or "") for site in structure.attention] == [True]
