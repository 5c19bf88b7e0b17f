"""Operators that mix heads between the two products are refused; learned queries are raised."""

from __future__ import annotations

import torch
from torch import nn

from tests.graphs import HEADS, SIZE, TOKENS, WIDTH, Site, differs, dynamo, expected, legacy, raised, redrawn, tokens


class TalkingHeads(nn.Module):
    """CaiT's attention: a linear across the heads on both sides of the softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = nn.Linear(HEADS, HEADS), nn.Linear(HEADS, HEADS)

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """The attended values."""
        del x
        scores = self.before((q @ k.transpose(-2, -1) * 0.25).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        shares = self.after(scores.softmax(-1).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return shares @ v


class LearnedQueries(nn.Module):
    """Attention with learned queries, as in DETR's first block and in pooling heads."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.zeros(1, HEADS, TOKENS, SIZE))

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """The attended values."""
        del q, x
        return (self.queries @ k.transpose(-2, -1) * 0.25).softmax(-1) @ v


def test_talking_heads_are_refused_with_the_reason() -> None:
    module = redrawn(Site(TalkingHeads()))
    graph, structure, refused = raised(legacy(module, tokens()))
    assert list(refused.values()) == [
        "heads or maps are mixed between its two products, which a fused kernel does not do"
    ]
    assert len(structure.attention) == 1
    assert differs(graph, tokens(), expected(module, tokens())) is None


def test_a_gate_between_softmax_and_product_is_refused() -> None:
    def gated(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        del x
        shares = (q @ k.transpose(-2, -1)).softmax(-1) * torch.linspace(0.1, 0.9, HEADS)[:, None, None] + 0.01
        return (shares / shares.sum(-1, keepdim=True)) @ v

    _, _, refused = raised(legacy(redrawn(Site(gated)), tokens()))
    assert "mixed" in next(iter(refused.values()))


def test_learned_queries_are_raised() -> None:
    module = redrawn(Site(LearnedQueries()))
    graph, structure, refused = raised(legacy(module, tokens()))
    assert (len(structure.attention), dict(refused)) == (1, {})
    assert differs(graph, tokens(), expected(module, tokens())) is None


def test_a_gating_softmax_is_no_attention() -> None:
    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(WIDTH, WIDTH)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x).softmax(-1) * x

    _, structure, refused = raised(legacy(redrawn(Gate()), tokens()))
    assert (structure.attention, dict(refused)) == ((), {})


class Separable(nn.Module):
    """The attention of MobileViTv2: one score for each token weights a sum of all. A fold stands in front of it."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Conv2d(WIDTH, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, channels, tokens, 1)."""
        image = nn.functional.fold(x.mT, (TOKENS, 1), kernel_size=1)
        weights = self.score(image).softmax(2)
        return image * (weights * image).sum(2, keepdim=True)


class FoldedScores(nn.Module):
    """An attention whose scores are folded."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The attended values."""
        scores = nn.functional.fold(x @ x.mT, (TOKENS, 1), kernel_size=1)
        return scores.flatten(2).softmax(-1) @ x


def test_a_fold_hides_no_product() -> None:
    _, structure, _ = raised(dynamo(redrawn(Separable()), tokens()))
    assert (structure.attention, structure.unclassified) == ((), ())
    _, structure, _ = raised(dynamo(FoldedScores(), tokens()))
    assert [bool(site.refused) for site in structure.attention] == [True]
