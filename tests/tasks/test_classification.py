"""Top-1 and top-5, sample by sample."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import top_k_accuracy_score

from vitdeploy import tasks
from vitdeploy.errors import DataError, RecipeError
from vitdeploy.recipe import TaskSpec
from vitdeploy.session import Array
from vitdeploy.tasks import Task, resolve


@pytest.fixture
def task() -> Task:
    return tasks.find(TaskSpec(kind="classification"))


def test_ranks(task: Task) -> None:
    scores = np.tile(np.arange(10, dtype=np.float32), (4, 1))
    found = task.statistics({"output": scores}, np.array([9, 8, 5, 4]))
    np.testing.assert_array_equal(found.values["top1"], [1, 0, 0, 0])
    np.testing.assert_array_equal(found.values["top5"], [1, 1, 1, 0])
    np.testing.assert_array_equal(found.answers, [9] * 4)
    assert task.aggregate(found.values) == {"top1": 25.0, "top5": 75.0}
    assert task.units["top1"] == "points"


@pytest.mark.parametrize("classes", [2, 5, 6])
def test_top5_needs_more_than_five_classes(task: Task, classes: int) -> None:
    found = task.statistics({"output": np.zeros((1, classes), np.float32)}, np.array([0]))
    assert ("top5" in found.values) == (classes > 5)


def test_equal_scores_agree_with_the_prediction(task: Task) -> None:
    found = task.statistics({"output": np.ones((2, 3), np.float32)}, np.array([0, 1]))
    np.testing.assert_array_equal(found.values["top1"], [1, 0])
    np.testing.assert_array_equal(found.answers, [0, 0])


def test_a_sample_of_nan_is_wrong(task: Task) -> None:
    scores = np.full((1, 10), np.nan, np.float32)
    found = task.statistics({"output": scores}, np.array([0]))
    assert found.values["top1"][0] == found.values["top5"][0] == 0
    assert not found.finite[0]


def test_the_confidence_of_an_image_does_not_depend_on_its_batch(task: Task) -> None:
    rounded = [0.9, 0.04, 0.03]  # of an INT8 softmax: the sum is 0.97
    rows = np.array([[0.7, 0.2, 0.1], rounded, [np.nan, 0, 0], [4, 0, 0], [np.inf, 0, 0]], np.float32)
    confidence = task.statistics({"logits": rows}, [0] * len(rows)).values["confidence"]
    np.testing.assert_allclose(confidence, [0.7, 0.9, 0, 1 / (1 + 2 * np.exp(-4)), 0], rtol=1e-6)


def test_one_class_alone_says_that_its_share_means_nothing(task: Task) -> None:
    view = (0.0, 0.0, 1.0, 1.0)
    lines = task.format_answer(task.describe({"logits": np.array([[-3.0]])}, ("dog",), view))
    assert lines[0] == "100.0 %  dog"
    assert "always 100 %" in lines[1]
    assert len(task.format_answer(task.describe({"logits": np.zeros((1, 2))}, ("dog", "cat"), view))) == 2


def test_metrics_are_those_of_scikit_learn(task: Task) -> None:
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=(300, 12)), rng.integers(0, 12, 300)
    scores[np.arange(300), labels] += 1
    found = task.aggregate(task.statistics({"logits": scores}, labels).values)
    classes = np.arange(12)
    assert found["top1"] == pytest.approx(100 * top_k_accuracy_score(labels, scores, k=1, labels=classes), abs=1e-6)
    assert found["top5"] == pytest.approx(100 * top_k_accuracy_score(labels, scores, k=5, labels=classes), abs=1e-6)


def test_one_class_and_another_order_are_doubtful(task: Task) -> None:
    labels = np.repeat(np.arange(5), 20)
    scores = np.random.default_rng(0).normal(size=(100, 5))
    scores[np.arange(100), labels] += 4

    def doubts(order: list[int]) -> list[str]:
        return task.find_doubts(task.statistics({"logits": scores}, np.array(order)[labels]).values)

    assert doubts([0, 1, 2, 3, 4]) == []
    (doubt,) = doubts([0, 2, 1, 4, 3])
    assert "another order" in doubt
    assert "if 1 were the model's 2, 2 were the model's 1" in doubt
    bad = np.random.default_rng(1).normal(size=(100, 5))  # in no order at all
    (doubt,) = task.find_doubts(task.statistics({"logits": np.where(bad == bad.max(), 0, bad)}, labels).values)
    assert "no more than a guess among the 5 classes" in doubt
    few = task.statistics({"logits": scores[::10]}, np.array([1, 2, 3, 4, 0])[labels[::10]])  # two images of a class
    assert "are the labels in the model's order" in task.find_doubts(few.values)[0]
    (doubt,) = task.find_doubts(task.statistics({"logits": scores[:20]}, labels[:20]).values)
    assert "every label is class 0" in doubt


def test_the_task_of_a_model_is_taken_unless_another_is_asked_for() -> None:
    own = TaskSpec.model_validate({"kind": "detection", "scores": "sigmoid"})
    assert resolve(TaskSpec(), None) == TaskSpec(kind="classification")
    assert resolve(TaskSpec(), own) == own
    assert resolve(TaskSpec(kind="detection"), own) == own
    assert resolve(TaskSpec.model_validate({"scores": "softmax"}), own).options == {"scores": "softmax"}
    assert resolve(TaskSpec(kind="embedding"), own) == TaskSpec(kind="embedding")
    with pytest.raises(RecipeError, match="did you mean 'segmentation'"):
        resolve(TaskSpec(kind="segmentatoin"), own)


def test_logits_win_over_other_outputs(task: Task) -> None:
    outputs = {"pooled": np.eye(2, 8), "logits": np.eye(2, 3), "tokens": np.zeros((2, 4, 8))}
    assert task.statistics(outputs, np.array([0, 1])).values["top1"].all()
    named = tasks.find(TaskSpec.model_validate({"kind": "classification", "output": "pooled"}))
    assert "top5" in named.statistics(outputs, np.array([0, 1])).values


@pytest.mark.parametrize(
    ("outputs", "labels", "message"),
    [
        ({"tokens": np.zeros((1, 4, 8))}, [0], "no output is"),
        ({}, [0], "gives nothing"),
        ({"output": np.zeros((1, 3))}, [3], "labels go from 3 to 3, the model has 3 classes"),
        ({"output": np.zeros((1, 3))}, [-1], "labels go from -1"),
        ({"output": np.zeros((2, 3))}, [0], "2 predictions for 1 labels"),
    ],
)
def test_what_cannot_be_judged(task: Task, outputs: dict[str, Array], labels: list[int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        task.statistics(outputs, np.array(labels))


def test_no_samples_is_an_error(task: Task) -> None:
    with pytest.raises(DataError, match="no samples"):
        task.aggregate({"top1": np.zeros(0)})


def test_unknown_tasks_and_options() -> None:
    with pytest.raises(RecipeError, match="did you mean 'classification'"):
        tasks.find(TaskSpec(kind="clasification"))
    with pytest.raises(RecipeError, match="did you mean 'output'"):
        tasks.find(TaskSpec.model_validate({"kind": "classification", "ouput": "x"}))


def test_two_models_agree_where_they_name_the_same_class(task: Task) -> None:
    reference, deployed = np.eye(4, 6, dtype=np.float32), np.eye(4, 6, dtype=np.float32)
    deployed[1] = reference[2]
    deployed[3, 5] = np.nan
    np.testing.assert_array_equal(task.compare_outputs({"logits": reference}, {"logits": deployed}), [1, 0, 1, 0])
    np.testing.assert_array_equal(task.compare_outputs({"logits": deployed}, {"logits": reference}), [1, 0, 1, 0])
    with pytest.raises(DataError, match="4 and 2 answers are not pairs"):
        task.compare_outputs({"logits": reference}, {"logits": deployed[:2]})


def test_it_says_in_numbers_how_classes_are_read(task: Task) -> None:
    reading = task.describe_reading({"hidden": ("batch", 5, 8), "scores": ("batch", 10)})
    assert reading is not None
    assert (reading.scores, reading.activation, reading.top_k, reading.threshold) == ("scores", "softmax", 5, 0)
    assert (reading.boxes, reading.candidates, reading.no_object) == (None, None, None)
    assert task.describe_reading({"hidden": (1, 5, 8)}) is None
