"""mIoU over all pixels, from counts of each image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, jaccard_score

from vitdeploy import tasks
from vitdeploy.data.labels import ClassMask, DepthMap, Label
from vitdeploy.errors import DataError
from vitdeploy.recipe import TaskSpec
from vitdeploy.session import Array
from vitdeploy.tasks import Task
from vitdeploy.tasks._resize import find_best_classes, resize_bilinear

CLASSES = 6
rng = np.random.default_rng(0)
SCORES = rng.normal(size=(5, CLASSES, 8, 9)).astype(np.float32)
# Masks of other sizes than the scores, one class (5) in none of them, a twentieth of the pixels ignored.
MASKS = [
    ClassMask(f"{i}.png", np.where(rng.random(s) < 0.05, 255, rng.integers(0, CLASSES - 1, s)))
    for i, s in enumerate([(16, 18), (8, 9), (30, 20), (5, 7), (16, 18)])
]


def _task(**options: object) -> Task:
    return tasks.find(TaskSpec.model_validate({"kind": "segmentation", **options}))


def _upsampled(scores: Array, size: tuple[int, ...]) -> Array:
    found = torch.nn.functional.interpolate(torch.tensor(scores)[None], size=size, mode="bilinear", align_corners=False)
    return found[0].numpy()


def test_maps_are_enlarged_as_torch_does() -> None:
    for size in ((16, 18), (11, 7), (8, 9), (8, 31)):
        np.testing.assert_allclose(
            resize_bilinear(SCORES[0], size), _upsampled(SCORES[0], size), atol=1e-5
        )  # its positions are float32
        np.testing.assert_array_equal(find_best_classes(SCORES[0], size), _upsampled(SCORES[0], size).argmax(0))


def test_large_masks_go_in_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = find_best_classes(SCORES[0], (50, 40))
    monkeypatch.setattr("vitdeploy.tasks._resize._STRIP_NUMBERS", 3 * CLASSES * 40)
    np.testing.assert_array_equal(find_best_classes(SCORES[0], (50, 40)), whole)


@pytest.mark.parametrize("weights", [[1, 1, 1, 1, 1], [2, 0, 1, 3, 0]])
def test_metrics_are_those_of_scikit_learn(weights: list[int]) -> None:
    task = _task()
    found = task.weighted_metrics(task.statistics({"logits": SCORES}, MASKS).values)(np.array(weights, np.float64))
    truth, predicted = [], []
    for scores, mask, weight in zip(SCORES, MASKS, weights, strict=True):
        valid = mask.classes != 255
        best = _upsampled(scores, mask.classes.shape).argmax(0)
        truth += [mask.classes[valid]] * weight
        predicted += [best[valid]] * weight
    pixels = np.concatenate(truth), np.concatenate(predicted)
    assert found["miou"] == pytest.approx(100 * jaccard_score(*pixels, average="macro"), abs=1e-6)
    assert found["pixel_accuracy"] == pytest.approx(100 * accuracy_score(*pixels), abs=1e-6)


def test_a_class_that_is_nowhere_does_not_count() -> None:
    mask = ClassMask("m", np.zeros((8, 9), np.int64))
    scores = np.zeros((1, 4, 8, 9), np.float32)
    scores[:, 0] = 1
    task = _task()
    assert task.aggregate(task.statistics({"out": scores}, [mask]).values)["miou"] == 100


def test_the_masks_of_ade20k_count_from_one() -> None:
    mask = ClassMask("m", np.array([[0, 1, 2]]))
    scores = np.zeros((1, 2, 1, 3), np.float32)
    scores[0, 1, 0, 2] = 1  # classes 0, 0, 1
    task = _task(reduce_labels=True)
    found = task.statistics({"logits": scores}, [mask])
    np.testing.assert_array_equal(found.values["counts"][0], [[1, 1, 1], [1, 1, 1]])
    assert task.aggregate(found.values) == {"miou": 100, "pixel_accuracy": 100}


def test_an_image_of_nan_is_missed_whole() -> None:
    task, scores = _task(), SCORES.copy()
    scores[1, 0, 0, 0] = np.nan
    found = task.statistics({"logits": scores}, MASKS)
    np.testing.assert_array_equal(found.finite, [True, False, True, True, True])
    assert found.values["counts"][1, :, :2].sum() == 0
    assert found.values["counts"][1, :, 2].sum() == (MASKS[1].classes != 255).sum()
    np.testing.assert_array_equal(task.compare_outputs({"logits": SCORES}, {"logits": scores}), [1, 0, 1, 1, 1])


def test_agreement_is_the_share_of_equal_pixels() -> None:
    other = SCORES.copy()
    other[0, :, :2] = -other[0, :, :2]  # the best class of two rows of eight becomes the worst
    found = _task().compare_outputs({"logits": SCORES}, {"logits": other})
    np.testing.assert_allclose(found, [0.75, 1, 1, 1, 1])


def test_maskformers_queries_become_scores() -> None:
    classes, masks = rng.normal(size=(2, 7, CLASSES + 1)), rng.normal(size=(2, 7, 4, 4))
    expected = torch.einsum(
        "bqc,bqhw->bchw", torch.tensor(classes).softmax(-1)[..., :-1], torch.tensor(masks).sigmoid()
    )
    answers = _task().read_answers({"class_queries_logits": classes, "masks_queries_logits": masks})
    np.testing.assert_array_equal(np.stack(answers), expected.argmax(1).numpy())


def test_chance_and_one_class_are_doubtful() -> None:
    task = _task()
    perfect = np.eye(CLASSES)[np.where(MASKS[1].classes == 255, 0, MASKS[1].classes)].transpose(2, 0, 1)[None]
    assert task.find_doubts(task.statistics({"logits": perfect}, [MASKS[1]]).values) == []
    shifted = np.roll(perfect, 1, axis=1)
    (doubt,) = task.find_doubts(task.statistics({"logits": shifted}, [MASKS[1]]).values)
    assert "reduce_labels" in doubt
    one = ClassMask("m", np.full((8, 9), 3))
    (doubt,) = task.find_doubts(task.statistics({"logits": perfect}, [one]).values)
    assert doubt == "every labelled pixel is class 3: a model that always gives this class would be right"


def test_masks_of_0_and_255_are_said_to_lose_their_foreground() -> None:
    mask = np.zeros((8, 10), np.int64)
    mask[:2] = 255  # a quarter of the pixels
    background = np.zeros((1, 2, 8, 10), np.float32)
    background[:, 0] = 1
    task = _task()
    values = task.statistics({"logits": background}, [ClassMask("m", mask)]).values
    assert task.aggregate(values)["miou"] == 100
    (doubt,) = task.find_doubts(values)
    assert "25 % of the pixels have the value 255, which task.ignore leaves out" in doubt
    assert "write them as 1" in doubt
    (doubt,) = task.find_doubts({"counts": values["counts"]})  # as samples of an earlier vitdeploy have it
    assert doubt.endswith("would be right")


@pytest.mark.parametrize(
    ("outputs", "labels", "message"),
    [
        ({"logits": np.zeros((1, 4))}, [MASKS[0]], r"no output is \(batch, classes, height, width\)"),
        ({"logits": SCORES}, MASKS[:2], "5 predictions for 2 labels"),
        ({"logits": SCORES[:1, :3]}, [MASKS[1]], r"1.png: class \d is none of the model's 3"),
        ({"logits": SCORES[:1]}, [DepthMap("d", np.ones((2, 2)))], "not masks"),
        ({"logits": SCORES[:1]}, [3], "not masks"),
    ],
)
def test_what_cannot_be_judged(outputs: dict[str, Array], labels: list[Label], message: str) -> None:
    with pytest.raises(DataError, match=message):
        _task().statistics(outputs, labels)


def test_masks_without_a_labelled_pixel() -> None:
    task = _task()
    values = task.statistics({"logits": SCORES[:1]}, [ClassMask("m", np.full((4, 4), 255))]).values
    with pytest.raises(DataError, match="miou is not defined"):
        task.aggregate(values)


def test_it_says_the_shares_of_the_classes() -> None:
    scores = np.zeros((1, 3, 4, 4), np.float32)
    scores[0, 0, 3], scores[0, 2, :3] = 1, 1
    answer = _task().describe({"logits": scores}, ("sky", "road", "tree"), (0.0, 0.0, 8.0, 8.0))
    assert [(r.label, round(r.share, 2)) for r in answer.regions] == [("tree", 0.75), ("sky", 0.25)]


@pytest.mark.parametrize(
    ("view", "picture", "shape"),
    [
        ((0.0, 0.0, 16.0, 18.0), (16, 18), (16, 18)),
        ((4.0, 0.0, 12.0, 18.0), (16, 18), (8, 18)),  # cropped
        ((-4.0, 0.0, 12.0, 18.0), (8, 18), (8, 18)),  # padded
    ],
)
def test_the_map_of_a_picture_is_what_the_model_saw_of_it(
    view: tuple[float, float, float, float], picture: tuple[int, int], shape: tuple[int, int]
) -> None:
    task, outputs = _task(), {"logits": SCORES[:1]}
    found = task.map_pixels(outputs, view, picture)
    assert found is not None
    assert found.shape == shape
    whole = _upsampled(SCORES[0], (round(view[2] - view[0]), 18)).argmax(axis=0)
    top = max(0, round(-view[0]))
    np.testing.assert_array_equal(found, whole[top : top + shape[0]])


def test_the_classes_are_counted() -> None:
    queries = {"class_queries_logits": (1, 100, 151), "masks_queries_logits": (1, 100, 64, 64)}
    assert _task().count_classes({"logits": (1, 150, 64, 64)}) == 150
    assert _task().count_classes({"hidden": (1, 8), "out": (1, 21, 64, 64)}) == 21
    assert _task().count_classes(queries) == 150
    assert _task(output="masks_queries_logits").count_classes({"logits": (1, 9)}) is None
