"""Rows that a model selects by score are compared as sets, and real errors in them still show."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from tests.graphs import dynamo, legacy, parsed, redrawn
from tests.two_stages import CLASSES, ROWS, TwoStages
from vitdeploy.graph.parity import Example, compare, explain_difference
from vitdeploy.graph.row_matching import Edge
from vitdeploy.graph.selection import find_selected
from vitdeploy.graph.selection_edges import find_edges
from vitdeploy.session import Array

Outputs = dict[str, Array]


def images(batch: int = 1) -> Array:
    return np.random.default_rng(0).standard_normal((batch, 3, 64, 64)).astype(np.float32)


@pytest.mark.parametrize("gather", ["elements", "index"])
@pytest.mark.parametrize("export", [legacy, dynamo])
def test_the_rows_of_a_selection_are_found(gather: str, export: Callable[..., bytes]) -> None:
    graph = parsed(export(redrawn(TwoStages(gather)), images()))
    assert find_selected(graph) == {"output_0": 1, "output_1": 1}


class BestToken(nn.Module):
    """A TopK whose order no output keeps: the best tokens are averaged."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        t = x.flatten(2).transpose(1, 2)
        return t.gather(1, t.sum(-1).topk(4, 1).indices[..., None].expand(-1, -1, 3)).mean(1)


def test_what_no_output_keeps_is_no_selection() -> None:
    assert find_selected(parsed(legacy(BestToken(), images()))) == {}


SELECTED = {"logits": 1, "boxes": 1}


def detections(seed: int, batch: int = 2) -> Outputs:
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((batch, ROWS, CLASSES)).astype(np.float32)
    boxes = rng.uniform(size=(batch, ROWS, 4)).astype(np.float32)
    return {"logits": logits, "boxes": boxes, "features": rng.standard_normal((batch, 8)).astype(np.float32)}


def swap(outputs: Outputs, rng: np.random.Generator) -> None:
    """Ties that change places: whole rows of an image."""
    order = rng.permutation(ROWS)
    for name in SELECTED:
        outputs[name][0] = outputs[name][0][order]


def rename_class(outputs: Outputs, rng: np.random.Generator) -> None:
    row = rng.integers(ROWS)
    outputs["logits"][0, row] = np.roll(outputs["logits"][0, row], 1)


def move_box(outputs: Outputs, rng: np.random.Generator) -> None:
    outputs["boxes"][1, rng.integers(ROWS), rng.integers(4)] += 0.1


def drop_detection(outputs: Outputs, rng: np.random.Generator) -> None:
    """Another row twice in its place."""
    row = rng.integers(ROWS)
    for name in SELECTED:
        outputs[name][0, row] = outputs[name][0, row - 1]


def exchange_boxes(outputs: Outputs, rng: np.random.Generator) -> None:
    """The boxes of two rows, without their classes."""
    row = rng.integers(ROWS)
    outputs["boxes"][0, [row, row - 1]] = outputs["boxes"][0, [row - 1, row]]


def mix_images(outputs: Outputs, rng: np.random.Generator) -> None:
    row = rng.integers(ROWS)
    for name in SELECTED:
        outputs[name][:, row] = outputs[name][::-1, row]


ERRORS = [rename_class, move_box, drop_detection, exchange_boxes, mix_images]


@pytest.mark.parametrize("error", [None, *ERRORS], ids=lambda e: getattr(e, "__name__", "only ties"))
def test_of_200_changes_only_the_harmless_pass(error: Callable[[Outputs, np.random.Generator], None] | None) -> None:
    for seed in range(200 if error is None else 40):
        reference, rng = detections(seed), np.random.default_rng(seed)
        other = {name: value.copy() + np.float32(1e-6) for name, value in reference.items()}
        swap(other, rng)
        if error is not None:
            error(other, rng)
        parity = compare(reference, other, batch=2, selected=SELECTED)
        assert (explain_difference(parity) is None) == (error is None), seed
        assert explain_difference(compare(reference, other, batch=2)) is not None


EDGES = (Edge(rows=2, others=1), Edge(rows=0, others=0))
"""Of the first image one of the last two rows may be another; of the second image none."""


def exchange_rows(*rows: int, image: int) -> Callable[[Outputs, np.random.Generator], None]:
    """Detections that another model has in the place of these."""

    def exchange(outputs: Outputs, rng: np.random.Generator) -> None:
        for name in SELECTED:
            new = rng.standard_normal((len(rows), outputs[name].shape[-1]))
            outputs[name][image, list(rows)] = new if name == "logits" else 1 / (1 + np.exp(-new))

    return exchange


@pytest.mark.parametrize(
    ("error", "harmless"),
    [
        (exchange_rows(ROWS - 1, image=0), True),
        (exchange_rows(ROWS - 2, image=0), True),
        (exchange_rows(image=0), True),
        (exchange_rows(ROWS - 1, ROWS - 2, image=0), False),  # two rows for one that may be exchanged
        (exchange_rows(ROWS - 3, image=0), False),  # its score is no near-tie
        (exchange_rows(ROWS - 1, image=1), False),
    ],
)
def test_only_rows_at_the_edge_of_the_selection_may_be_others(
    error: Callable[[Outputs, np.random.Generator], None], harmless: bool
) -> None:
    for seed in range(20):
        reference, rng = detections(seed), np.random.default_rng(seed)
        other = {name: value.copy() + np.float32(1e-6) for name, value in reference.items()}
        error(other, rng)
        swap(other, rng)
        parity = compare(reference, other, batch=2, selected=SELECTED, edges=EDGES)
        assert (explain_difference(parity) is None) == harmless, seed


@pytest.mark.parametrize(
    ("gap", "edge"),
    [(1.0, Edge(0, 0)), (1e-7, Edge(1, 1))],
)
def test_the_edge_is_where_scores_are_nearly_equal(gap: float, edge: Edge) -> None:
    """The scores of the image's tokens are 15, 14, …; the sixteenth differs from the seventeenth by the gap."""

    class Chosen(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            tokens = x.flatten(2).transpose(1, 2)
            best = tokens[..., 0].topk(ROWS, 1).indices[..., None]
            return tokens.gather(1, best.expand(-1, -1, 3)) * 2

    scores = np.arange(64, 0, -1).astype(np.float32)
    scores[ROWS] = scores[ROWS - 1] * np.float32(1 - gap / 2)
    image = np.zeros((1, 3, 8, 8), np.float32)
    image[0, 0] = np.random.default_rng(0).permutation(scores).reshape(8, 8)
    graph = parsed(legacy(Chosen(), image))
    assert find_edges(graph, [Example(image, {})], "input") == [(edge,)]


def test_moved_rows_are_counted_and_other_outputs_keep_their_order() -> None:
    reference = detections(0)
    other = {name: value.copy() for name, value in reference.items()}
    for name in SELECTED:
        other[name][1, [2, 3]] = other[name][1, [3, 2]]
    parity = compare(reference, other, batch=2, selected=SELECTED)
    assert {o.name: (o.max_abs, o.moved_rows) for o in parity.outputs} == {
        "logits": (0.0, 2),
        "boxes": (0.0, 2),
        "features": (0.0, 0),
    }
    other["features"] = other["features"][:, ::-1]
    assert explain_difference(compare(reference, other, batch=2, selected=SELECTED)) is not None


def test_rows_behind_the_layers_of_a_decoder_and_of_one_image() -> None:
    rng = np.random.default_rng(0)
    reference = {"layers": rng.standard_normal((6, 1, ROWS, 3)), "boxes": rng.uniform(size=(ROWS, 4))}
    order = rng.permutation(ROWS)
    other = {"layers": reference["layers"][:, :, order], "boxes": reference["boxes"][order]}
    assert compare(reference, other, batch=1, selected={"layers": 2, "boxes": 0}).max_abs == 0.0
