"""The task promptable-masks: the mask with the best score, its overlap with the object, masks on padded pictures."""

from __future__ import annotations

import numpy as np
import pytest

from vitdeploy.data.labels import InstanceMasks
from vitdeploy.data.outlines import compress
from vitdeploy.errors import DataError
from vitdeploy.session import Array
from vitdeploy.tasks.promptable_masks import (
    PromptableMasks,
    describe_mask,
    draw_mask,
    draw_padded_mask,
    measure_overlap,
)

SIZE = (32, 48)


def rectangle(top: int, left: int, bottom: int, right: int) -> Array:
    mask = np.zeros(SIZE, dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


TRUTH = rectangle(8, 8, 24, 40)
HALF = rectangle(8, 8, 24, 24)


def label(mask: Array) -> InstanceMasks:
    return InstanceMasks("a.png", np.array([compress(mask)]), np.array([0]), np.array([False]), SIZE)


def logits(*masks: Array) -> Array:
    return np.stack([np.where(mask, 1.0, -1.0) for mask in masks])[None].astype(np.float32)


def test_the_mask_with_the_best_score_counts() -> None:
    task = PromptableMasks()
    outputs = {"pred_masks": logits(TRUTH, HALF, ~TRUTH), "iou_scores": np.array([[0.2, 0.9, 0.1]], np.float32)}
    seen = task.statistics(outputs, [label(TRUTH)])
    assert task.aggregate(seen.values) == pytest.approx({"mask_iou": 50.0, "oracle_iou": 100.0})
    np.testing.assert_array_equal(seen.answers[0], HALF)


def test_a_sample_may_be_the_sum_of_several_objects() -> None:
    values = {"mask_iou": np.array([1.5, 0.2]), "oracle_iou": np.array([2.0, 0.4]), "objects": np.array([2.0, 1.0])}
    compute = PromptableMasks().weighted_metrics(values)
    assert compute(np.ones(2))["mask_iou"] == pytest.approx(100 * 1.7 / 3)
    assert compute(np.array([0.0, 1.0]))["mask_iou"] == pytest.approx(20)
    assert np.isnan(compute(np.zeros(2))["mask_iou"])


def test_outputs_of_another_model_are_named() -> None:
    with pytest.raises(DataError, match=r"no pred_masks with iou_scores among the outputs: logits \[1, 5\]"):
        PromptableMasks().read_answers({"logits": np.zeros((1, 5), np.float32)})


def test_a_reference_that_finds_nothing_is_a_doubt() -> None:
    values = {"mask_iou": np.array([0.05]), "oracle_iou": np.array([0.1]), "objects": np.ones(1)}
    assert "overlap the objects by 5.0 % only" in PromptableMasks().find_doubts(values)[0]


def test_empty_masks_are_equal_and_have_no_box() -> None:
    empty = np.zeros(SIZE, dtype=bool)
    assert measure_overlap(empty, empty) == 1
    assert measure_overlap(empty, TRUTH) == 0
    assert (describe_mask(empty, 0.5, 1).box, describe_mask(empty, 0.5, 1).area) == ((0, 0, 0, 0), 0)
    assert describe_mask(TRUTH, 0.5, 0).box == (8, 8, 40, 24)


def test_masks_of_padded_and_cropped_inputs_are_put_in_their_place() -> None:
    whole = np.where(rectangle(0, 0, 32, 24), 1.0, -1.0).astype(np.float32)
    padded = draw_padded_mask(whole, (64, 96), (slice(0, 64), slice(0, 48)), (100, 80))
    assert padded.all()  # the right half of the input is padding
    cropped = draw_mask(whole, (10.0, 20.0, 42.0, 68.0), (50, 90))
    assert describe_mask(cropped, 1.0, 0).box == (20, 10, 44, 42)
    assert cropped.shape == (50, 90)
