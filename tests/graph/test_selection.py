"""Rows that a model selects by score are compared as sets, and real errors in them still show."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from tests.graphs import dynamo, legacy, parsed, redrawn
from tests.two_stages import CLASSES, ROWS, TwoStages
from vitdeploy.graph.parity import compare, explain_difference
from vitdeploy.graph.selection import find_selected
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
