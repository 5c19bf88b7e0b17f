"""δ1, AbsRel and RMSE of each image."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import mean_absolute_percentage_error, root_mean_squared_error

from vitdeploy import tasks
from vitdeploy.data.labels import DepthMap, Label
from vitdeploy.errors import DataError, RecipeError
from vitdeploy.recipe import TaskSpec
from vitdeploy.session import Array
from vitdeploy.tasks import Task
from vitdeploy.tasks._resize import resize_bilinear

rng = np.random.default_rng(0)
TRUE = rng.uniform(1, 20, (4, 12, 16))
FOUND = (TRUE * rng.lognormal(0, 0.2, TRUE.shape)).astype(np.float32)


def _task(**options: object) -> Task:
    return tasks.find(TaskSpec.model_validate({"kind": "depth", **options}))


def _labels(values: Array) -> list[Label]:
    return [DepthMap(f"{i}.npy", value) for i, value in enumerate(values)]


def test_metrics_are_those_of_scikit_learn() -> None:
    holes = TRUE.copy()
    holes[:, 0], holes[:, 1], holes[:, 2] = 0, np.nan, 100  # no measurement, and beyond max_depth
    task = _task()
    found = task.aggregate(task.statistics({"predicted_depth": FOUND}, _labels(holes)).values)
    pairs = [(t[3:].ravel(), f[3:].ravel().astype(np.float64)) for t, f in zip(TRUE, FOUND, strict=True)]
    expected = {
        "delta1": 100 * np.mean([np.mean((f / t < 1.25) & (t / f < 1.25)) for t, f in pairs]),
        "abs_rel": 100 * np.mean([mean_absolute_percentage_error(t, f) for t, f in pairs]),
        "rmse": np.mean([root_mean_squared_error(t, f) for t, f in pairs]),
    }
    assert found == pytest.approx(expected, abs=1e-6)
    assert list(found) == list(expected)
    assert task.lower_is_better == {"abs_rel", "rmse"}


def test_predictions_take_the_size_of_the_label() -> None:
    task, coarse = _task(), FOUND[:1, ::2, ::2]
    truth = resize_bilinear(coarse[0], (12, 16)).astype(np.float64)
    found = task.aggregate(task.statistics({"depth": coarse[:, None]}, _labels(truth[None])).values)
    assert found == pytest.approx({"delta1": 100, "abs_rel": 0, "rmse": 0}, abs=1e-5)


@pytest.mark.parametrize(("dtype", "unit"), [(np.uint16, 1000), (np.int64, 256)])
def test_integers_have_a_unit(dtype: type, unit: float) -> None:
    task = _task(units_per_metre=unit)
    values = task.statistics({"predicted_depth": TRUE.astype(np.float32)}, _labels((TRUE * unit).astype(dtype))).values
    assert task.aggregate(values)["abs_rel"] < 0.5


def test_disparity_is_fitted_with_scale_and_shift() -> None:
    disparity = (7 * (1 / TRUE) - 0.3).astype(np.float32)
    task = _task(predicts="disparity", align="affine")
    found = task.aggregate(task.statistics({"predicted_depth": disparity}, _labels(TRUE)).values)
    assert found["abs_rel"] < 1e-3
    flat = task.aggregate(task.statistics({"predicted_depth": np.ones_like(disparity)}, _labels(TRUE)).values)
    assert flat["abs_rel"] > 10


def test_median_alignment_takes_away_the_scale() -> None:
    scaled = (3 * TRUE).astype(np.float32)
    aligned, plain = (_task(align=align) for align in ("median", "none"))
    assert aligned.aggregate(aligned.statistics({"d": scaled}, _labels(TRUE)).values)["abs_rel"] < 1e-3
    values = plain.statistics({"d": scaled}, _labels(TRUE)).values
    assert plain.aggregate(values)["delta1"] == 0
    (doubt,) = plain.find_doubts(values)
    assert "3 times the labels' depth" in doubt
    assert aligned.find_doubts(aligned.statistics({"d": scaled}, _labels(TRUE)).values) == []


@pytest.mark.parametrize("scale", [0.01, 1.0, 2000.0, 20_000.0])
@pytest.mark.parametrize("predicts", ["depth", "disparity"])
def test_median_alignment_does_not_depend_on_the_models_scale(scale: float, predicts: str) -> None:
    task = _task(predicts=predicts, align="median")
    values = (scale * (TRUE if predicts == "depth" else 1 / TRUE)).astype(np.float32)
    found = task.aggregate(task.statistics({"d": values}, _labels(TRUE)).values)
    assert found == pytest.approx({"delta1": 100, "abs_rel": 0, "rmse": 0}, abs=1e-3)


def test_values_without_a_median_above_zero_have_no_scale() -> None:
    task, disparity = _task(predicts="disparity", align="median"), (1 / TRUE).astype(np.float32)
    disparity[1] -= disparity[1].max()
    values = task.statistics({"d": disparity}, _labels(TRUE)).values
    np.testing.assert_array_equal(values["delta1"], [100, 0, 100, 100])
    (doubt,) = task.find_doubts(values)
    assert "not above 0 in 1 of 4 images" in doubt


def test_an_image_of_nan_is_wrong_and_its_figures_are_finite() -> None:
    task, found = _task(), FOUND.copy()
    found[2, 5, 5] = np.inf
    seen = task.statistics({"predicted_depth": found}, _labels(TRUE))
    np.testing.assert_array_equal(seen.finite, [True, True, False, True])
    assert seen.values["delta1"][2] == 0
    assert seen.values["abs_rel"][2] == pytest.approx(100, abs=0.2)
    assert np.isfinite(seen.values["rmse"]).all()
    np.testing.assert_array_equal(task.compare_outputs({"d": FOUND}, {"d": found}), [1, 1, 0, 1])


def test_agreement_is_the_share_of_close_pixels() -> None:
    other = FOUND.copy()
    other[0, :3] *= 1.2  # three of twelve rows
    other[1] *= 1.04
    np.testing.assert_allclose(_task().compare_outputs({"d": FOUND}, {"d": other}), [0.75, 1, 1, 1])


def test_agreement_near_zero_is_not_about_ratios() -> None:
    disparity = np.linspace(0, 1, 192, dtype=np.float32).reshape(1, 12, 16)
    found = _task().compare_outputs({"d": disparity}, {"d": disparity + 0.001})
    assert found[0] == 1


@pytest.mark.parametrize(
    ("outputs", "labels", "message"),
    [
        ({"d": np.zeros((1, 4))}, _labels(TRUE[:1]), "no output is"),
        ({"d": np.zeros((1, 2, 4, 4))}, _labels(TRUE[:1]), "no output is"),
        ({"d": FOUND}, _labels(TRUE[:1]), "4 predictions for 1 labels"),
        ({"d": FOUND[:1]}, _labels(1000 * TRUE[:1]), r"0.npy: no depth in it is between 0.001 and 80 m"),
        ({"d": FOUND[:1]}, [1], "not depth maps"),
    ],
)
def test_what_cannot_be_judged(outputs: dict[str, Array], labels: list[Label], message: str) -> None:
    with pytest.raises(DataError, match=message):
        _task().statistics(outputs, labels)


def test_options_are_checked() -> None:
    with pytest.raises(RecipeError, match="min_depth"):
        _task(min_depth=0)
    with pytest.raises(RecipeError, match="align"):
        _task(align="mean")


def test_it_says_the_range() -> None:
    answer = _task(predicts="disparity").describe({"d": FOUND}, None, (0, 0, 1, 1)).depth
    assert answer is not None
    assert answer.nearest == pytest.approx(FOUND[0].max())
    assert answer.farthest == pytest.approx(FOUND[0].min())


def test_the_map_of_a_picture_has_its_size_and_the_models_values() -> None:
    task, rows, columns = _task(), *FOUND.shape[1:]
    whole = (0.0, 0.0, float(rows), float(columns))
    np.testing.assert_array_equal(task.map_pixels({"d": FOUND}, whole, (rows, columns)), FOUND[0])
    enlarged = task.map_pixels({"d": FOUND}, (0.0, 0.0, 3.0 * rows, 2.0 * columns), (3 * rows, 2 * columns))
    assert enlarged is not None
    assert enlarged.shape == (3 * rows, 2 * columns)
    padded = task.map_pixels({"d": FOUND}, (-2.0, 0.0, rows - 2.0, float(columns)), (rows - 4, columns))
    np.testing.assert_array_equal(padded, FOUND[0, 2:-2])
