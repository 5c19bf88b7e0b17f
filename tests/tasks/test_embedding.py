"""Recall among all other images, and what two models make of the same neighbourhood."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.neighbors import NearestNeighbors

from vitdeploy import tasks
from vitdeploy.errors import DataError
from vitdeploy.recipe import TaskSpec
from vitdeploy.session import Array
from vitdeploy.tasks import Task

K = 5
rng = np.random.default_rng(0)
LABELS = rng.integers(0, 8, 90)
VECTORS = (rng.normal(size=(8, 16))[LABELS] + rng.normal(size=(90, 16))).astype(np.float32)
OTHER = VECTORS + rng.normal(scale=0.3, size=VECTORS.shape).astype(np.float32)


def _task(**options: object) -> Task:
    return tasks.find(TaskSpec.model_validate({"kind": "embedding", **options}))


def _neighbours(vectors: Array) -> Array:
    found = NearestNeighbors(n_neighbors=K, metric="cosine", algorithm="brute").fit(vectors.astype(np.float64))
    return np.asarray(found.kneighbors(return_distance=False))  # of the fitted points themselves, each without itself


def test_metrics_are_those_of_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitdeploy.tasks.embedding._ROWS", 32)  # 90 rows in three pieces
    task = _task()
    seen = [task.statistics({"output": v}, LABELS).values for v in (VECTORS, OTHER)]
    reference, deployed = task.pair_statistics(*seen)
    near = [_neighbours(v) for v in (VECTORS, OTHER)]
    for side, ours in zip(near, (task.aggregate(reference), task.aggregate(deployed)), strict=True):
        same = LABELS[side] == LABELS[:, None]
        assert ours["recall1"] == pytest.approx(100 * same[:, 0].mean(), abs=1e-6)
        assert ours["recall_k"] == pytest.approx(100 * same.any(axis=1).mean(), abs=1e-6)
    shared = [len(set(a) & set(b)) / K for a, b in zip(*near, strict=True)]
    found = task.aggregate(deployed)
    assert found["knn_agreement"] == pytest.approx(100 * np.mean(shared), abs=1e-6)
    cosine = np.diag(cosine_similarity(VECTORS.astype(np.float64), OTHER.astype(np.float64)))
    assert found["cosine"] == pytest.approx(100 * cosine.mean(), abs=1e-6)
    assert task.aggregate(reference)["knn_agreement"] == task.aggregate(reference)["cosine"] == 100
    assert 30 < found["recall1"] < 100


def test_agreement_is_the_cosine() -> None:
    first = np.array([[1.0, 0], [1, 0], [1, 0], [0, 0]])
    second = np.array([[3.0, 0], [1, 1], [-1, 0], [1, 0]])
    np.testing.assert_allclose(_task().compare_outputs({"output": first}, {"output": second}), [1, np.sqrt(0.5), 0, 0])


def test_a_vector_of_nan_finds_nothing() -> None:
    task, broken = _task(), OTHER.copy()
    broken[7, 3] = np.nan
    seen = task.statistics({"output": broken}, LABELS)
    assert np.flatnonzero(~seen.finite) == [7]
    _, deployed = task.pair_statistics(task.statistics({"output": VECTORS}, LABELS).values, seen.values)
    assert deployed["recall1"][7] == deployed["recall_k"][7] == deployed["cosine"][7] == 0
    assert task.compare_outputs({"output": VECTORS}, {"output": broken})[7] == 0


def test_which_output_it_reads() -> None:
    tokens = rng.normal(size=(2, 4, 3))
    pooled = rng.normal(size=(2, 3))
    both = {"last_hidden_state": tokens, "pooler_output": pooled}

    def unit(values: Array) -> Array:
        return values / np.linalg.norm(values, axis=1, keepdims=True)

    np.testing.assert_allclose(_task().read_answers(both), unit(pooled))
    np.testing.assert_allclose(_task(output="last_hidden_state").read_answers(both), unit(tokens[:, 0]))
    np.testing.assert_allclose(
        _task(pool="mean").read_answers({"last_hidden_state": tokens}), unit(tokens.mean(axis=1))
    )
    with pytest.raises(DataError, match="num_classes: 0"):
        _task().read_answers({"map": np.zeros((1, 3, 4, 4))})


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0] * 10, "all images have the same class"),
        (list(range(10)), "no two images"),
        ([0, 0, 1, 1], "4 images are too few for 5 neighbours"),
    ],
)
def test_sets_without_neighbours(labels: list[int], message: str) -> None:
    task = _task()
    values = task.statistics({"output": VECTORS[: len(labels)]}, labels).values
    with pytest.raises(DataError, match=message):
        task.pair_statistics(values, values)


def test_no_better_than_chance_is_doubtful() -> None:
    task = _task()
    good, _ = task.pair_statistics(*[task.statistics({"output": VECTORS}, LABELS).values] * 2)
    assert task.find_doubts(good) == []
    apart = np.arange(90) % 2  # each image's neighbour is of the other class
    line = np.stack([np.ones(90), np.repeat(np.arange(45), 2) + 0.01 * apart], axis=1)
    bad, _ = task.pair_statistics(*[task.statistics({"output": line}, apart).values] * 2)
    assert "no more than chance" in task.find_doubts(bad)[0]


def test_it_says_the_vector() -> None:
    answer = _task().describe({"output": np.array([[3.0, 4.0]])}, None, (0, 0, 1, 1))
    assert answer.embedding == pytest.approx((0.6, 0.8))
