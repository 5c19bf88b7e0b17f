"""Keypoints from heatmaps, object keypoint similarity, and agreement of poses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from vitdeploy import tasks
from vitdeploy.data.labels import Keypoints, Label
from vitdeploy.errors import DataError
from vitdeploy.recipe import TaskSpec
from vitdeploy.session import Array
from vitdeploy.tasks import Task
from vitdeploy.tasks._heatmaps import find_peaks, refine_by_distribution, refine_by_quarter

HEIGHT, WIDTH, COUNT = 64, 48, 17
VIEW = np.array([256.0, 192.0])  # four pixels of the picture for each of a heatmap


def _task(**options: object) -> Task:
    return tasks.find(TaskSpec.model_validate({"kind": "pose", **options}))


def _heatmaps(places: Array, height: float = 1.0, sigma: float = 2.0) -> Array:
    """Gaussians around (column, row) in pixels of the heatmap: (keypoints, h, w)."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    squares = (columns - places[:, 0, None, None]) ** 2 + (rows - places[:, 1, None, None]) ** 2
    return np.asarray(height * np.exp(-squares / (2 * sigma**2)), np.float32)


def _label(points: Array, visible: Array | None = None, *, area: float = 20000.0, side: float = 200.0) -> Keypoints:
    seen = np.ones(len(points), bool) if visible is None else visible
    return Keypoints("a.jpg", points, seen, np.array([area, side]), VIEW)


def _to_picture(places: Array) -> Array:
    """From pixels of the heatmap to those of the picture, as in the post-processing of ViTPose."""
    return places * (VIEW[::-1] - 1) / (np.array([WIDTH, HEIGHT]) - 1)


def _random(seed: int, count: int = COUNT) -> Array:
    return np.random.default_rng(seed).uniform(5, [WIDTH - 6, HEIGHT - 6], (count, 2))


def test_the_step_on_the_logarithm_finds_the_middle_of_a_gaussian() -> None:
    places = _random(1, 60)
    heatmaps = _heatmaps(places)
    peaks, scores = find_peaks(heatmaps)
    np.testing.assert_array_equal(peaks, np.rint(places))
    assert (scores > 0.9).all()
    refined = refine_by_distribution(heatmaps, peaks)
    assert np.abs(refined - places).max() < 0.05
    quarter = refine_by_quarter(heatmaps, peaks)
    assert np.abs(np.abs(quarter - peaks) - 0.25).max() == 0
    assert np.abs(quarter - places).mean() < 0.75 * np.abs(peaks - places).mean()


@pytest.mark.parametrize("place", [(20.4, 30.4), (20.4, 30.1), (20.1, 30.4)])
def test_a_tilted_peak_is_found_too(place: tuple[float, float]) -> None:
    """Its slopes across and down depend on each other, so the mixed derivative counts."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    x, y = columns - place[0], rows - place[1]
    heatmaps = np.exp(-(x**2 + y**2 - 1.4 * x * y) / 8)[None]
    peaks, _ = find_peaks(heatmaps)
    assert np.abs(refine_by_distribution(heatmaps, peaks)[0] - place).max() < 0.05


def test_the_places_are_those_of_transformers() -> None:
    from transformers.models.vitpose.image_processing_vitpose import (
        get_keypoint_predictions,
        post_dark_unbiased_data_processing,
        transform_preds,
    )

    rng = np.random.default_rng(2)
    heatmaps = _heatmaps(_random(2)) + 0.02 * rng.random((COUNT, HEIGHT, WIDTH)).astype(np.float32)
    coords, _ = get_keypoint_predictions(heatmaps[None])
    dark = post_dark_unbiased_data_processing(coords, heatmaps[None], kernel=3)[0]
    expected = transform_preds(dark, (VIEW[::-1] - 1) / 2, (VIEW[::-1] - 1) / 200, np.array([HEIGHT, WIDTH]))
    answer = _task().describe({"heatmaps": heatmaps[None]}, None, (0.0, 0.0, *VIEW))
    found = np.array([(k.x, k.y) for k in answer.keypoints])
    assert np.abs(found - expected).max() < 0.2  # their mixed derivative is one-sided, ours is central


def test_a_border_and_a_plateau_stay_where_they_are() -> None:
    corner, flat = _heatmaps(np.array([[0.0, 0.0]])), np.ones((1, HEIGHT, WIDTH), np.float32)
    for heatmaps, place in ((corner, (0, 0)), (flat, (0, 0))):
        peaks, _ = find_peaks(heatmaps)
        for refine in (refine_by_quarter, refine_by_distribution):
            assert refine(heatmaps, peaks).tolist() == [list(place)]
    middle = np.array([[20, 30]])
    assert refine_by_distribution(flat, middle).tolist() == [[20, 30]]


def _oks(points: Array, label: Keypoints) -> float:
    """The similarity of pycocotools."""

    def annotation(places: Array, visible: Array) -> dict[str, Any]:
        numbers = np.column_stack([places, 2 * visible]).ravel().tolist()
        facts = {"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "keypoints": numbers, "score": 1.0}
        return {**facts, "area": label.scale[0], "bbox": [0, 0, 100, 200], "num_keypoints": int(visible.sum())}

    sides = []
    for places, visible in ((label.points, label.visible), (points, np.ones(len(points), bool))):
        coco = COCO()
        coco.dataset = {
            "images": [{"id": 1}], "categories": [{"id": 1}], "annotations": [annotation(places, visible)]
        }  # fmt: skip
        coco.createIndex()
        sides.append(coco)
    evaluation = COCOeval(*sides, "keypoints")
    evaluation.params.areaRng = [[0, 1e10]]
    evaluation._prepare()
    return float(evaluation.computeOks(1, 1)[0, 0])


def test_the_similarity_is_that_of_pycocotools(capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(3)
    places = _random(3)
    outputs = {"heatmaps": _heatmaps(places)[None]}
    points = np.array([(k.x, k.y) for k in _task().describe(outputs, None, (0.0, 0.0, *VIEW)).keypoints])
    for spread in (1.0, 5.0, 20.0):
        label = _label(points + rng.normal(0, spread, points.shape), rng.random(COUNT) < 0.7, area=9000.0)
        values = _task().statistics(outputs, [label]).values
        assert _task().aggregate(values)["oks"] == pytest.approx(100 * _oks(points, label), abs=1e-6)
    capsys.readouterr()


def test_metrics_by_hand() -> None:
    """Two of four keypoints are off: by 0.1 and by 0.3 of the side of 200 pixels."""
    places = np.array([[10.0, 10.0], [20.0, 40.0], [30.0, 30.0], [40.0, 50.0]])
    truth = _to_picture(places) + np.array([[0, 0], [20, 0], [0, 60], [0, 0]])
    sigma = 0.1
    task = _task(sigmas=[sigma] * 4)
    values = task.statistics({"heatmaps": _heatmaps(places)[None]}, [_label(truth)]).values
    metrics = task.aggregate(values)
    similarity = [1.0, *(np.exp(-(d**2) / (2 * 20000 * (2 * sigma) ** 2)) for d in (20, 60)), 1.0]
    assert metrics["oks"] == pytest.approx(100 * np.mean(similarity), abs=0.1)
    assert metrics["pck"] == 75.0
    assert metrics["nme"] == pytest.approx(100 * (0.1 + 0.3) / 4, abs=0.1)
    assert task.lower_is_better == {"nme"}


def test_pck_counts_keypoints_and_the_others_images() -> None:
    places = np.stack([_random(4), _random(5)])
    truth = [_label(_to_picture(places[0])), _label(_to_picture(places[1]) + 100, np.arange(COUNT) < 1)]
    values = _task().statistics({"heatmaps": np.stack([_heatmaps(p) for p in places])}, truth).values
    metrics = _task().weighted_metrics(values)(np.array([1.0, 1.0]))
    assert metrics["pck"] == pytest.approx(100 * 17 / 18)
    assert metrics["oks"] == pytest.approx(50, abs=1)
    assert _task().weighted_metrics(values)(np.array([2.0, 0.0]))["pck"] == 100
    assert np.isnan(_task().weighted_metrics(values)(np.zeros(2))["oks"])


def test_a_quarter_of_a_pixel_and_pixels_of_equal_size() -> None:
    heatmaps = _heatmaps(np.array([[10.3, 20.4]]))[None]
    (answer,) = _task(decode="quarter").read_answers({"heatmaps": heatmaps})
    assert answer[0, :2] == pytest.approx(np.array([10.25 + 0.5, 20.25 + 0.5]) / HEIGHT)
    (dark,) = _task().read_answers({"heatmaps": heatmaps})
    assert np.abs(dark[0, :2] - (np.array([10.3, 20.4]) + 0.5) / HEIGHT).max() < 0.01


def test_an_image_of_nan_has_its_keypoints_in_the_corner() -> None:
    places = _random(6)
    outputs = {"heatmaps": np.stack([_heatmaps(places)] * 2)}
    outputs["heatmaps"][1, 3, 5, 5] = np.nan
    label = _label(_to_picture(places))
    seen = _task().statistics(outputs, [label, label])
    assert seen.finite.tolist() == [True, False]
    assert seen.answers[1].tolist() == [[0.0, 0.0, 0.0]] * COUNT
    assert seen.values["oks"][0] > 0.99
    assert seen.values["oks"][1] < 0.1
    assert seen.values["right"][1] < COUNT / 2
    assert _task().compare_outputs(outputs, {"heatmaps": outputs["heatmaps"][:1].repeat(2, 0)}).tolist() == [1, 0]


def test_agreement_is_the_share_of_confident_keypoints_in_the_same_place() -> None:
    places = np.array([[10.0, 10.0], [20.0, 40.0], [30.0, 30.0], [40.0, 50.0]])
    moved = places + np.array([[0, 0], [3, 0], [0, 4], [20, 20]])  # 64 x 0.05 is 3.2 pixels
    outputs = [{"heatmaps": _heatmaps(p)[None]} for p in (places, moved)]
    assert _task().compare_outputs(*outputs)[0] == pytest.approx(0.5)
    for side in outputs:
        side["heatmaps"][0, 3] *= 0.1  # neither is sure of the last one
    assert _task().compare_outputs(*outputs)[0] == pytest.approx(2 / 3)
    for side in outputs:
        side["heatmaps"] *= 0.1
    assert _task().compare_outputs(*outputs)[0] == pytest.approx(0.5)
    with pytest.raises(DataError, match="two numbers of keypoints"):
        _task().compare_outputs(outputs[0], {"heatmaps": outputs[0]["heatmaps"][:, :3]})


def test_keypoints_no_better_than_the_middle_are_doubtful() -> None:
    places = _random(7)
    outputs, right = {"heatmaps": _heatmaps(places)[None]}, _label(_to_picture(places))
    assert _task().find_doubts(_task().statistics(outputs, [right]).values) == []
    (doubt,) = _task().find_doubts(_task().statistics(outputs, [_label(_to_picture(places)[::-1])]).values)
    assert "are they in the model's order" in doubt


@pytest.mark.parametrize(
    ("outputs", "labels", "options", "message"),
    [
        ({"heatmaps": np.zeros((1, 17))}, [], {}, r"no output is \(batch, keypoints, height, width\)"),
        ({"heatmaps": np.zeros((1, 3, 8, 6))}, [], {}, "1 predictions for 0 labels"),
        ({"heatmaps": np.zeros((1, 3, 8, 6))}, [7], {}, "the labels are not keypoints"),
        ({"heatmaps": np.zeros((1, 3, 8, 6))}, [_label(np.zeros((17, 2)))], {}, "17 keypoints, the model has 3"),
        ({"heatmaps": np.zeros((1, 3, 8, 6))}, [_label(np.zeros((3, 2)))], {"sigmas": [0.1]}, "sigmas has 1 numbers"),
        ({"heatmaps": np.zeros((1, 3, 8, 6))}, [], {"output": "maps"}, "no output 'maps'"),
    ],
)  # fmt: skip
def test_what_cannot_be_judged(
    outputs: dict[str, Array], labels: list[Label], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        _task(**options).statistics(outputs, labels)
    assert caught.value.fix


def test_it_names_the_keypoints_of_coco_and_says_where_they_are() -> None:
    places = _random(8)
    heatmaps = _heatmaps(places)
    heatmaps[4] *= 0.1
    answer = _task().describe({"heatmaps": heatmaps[None]}, None, (10.0, 20.0, 266.0, 212.0))
    first = answer.keypoints[0]
    assert [k.label for k in answer.keypoints[:2]] == ["nose", "left eye"]
    assert [k.confident for k in answer.keypoints].count(False) == 1
    assert np.array([first.x, first.y]) == pytest.approx(_to_picture(places)[0] + [20, 10], abs=0.3)
    line = _task().format_answer(answer)[0]
    assert line.endswith(f"%  nose  {first.x:.1f},{first.y:.1f}")
    (own,) = _task().read_answers({"heatmaps": heatmaps[None]})
    assert _task().summarize_answer(own, None) == "16 of 17 keypoints"
    three = {"heatmaps": heatmaps[None, :3]}
    assert [k.label for k in _task().describe(three, None, (0.0, 0.0, 1.0, 1.0)).keypoints] == ["0", "1", "2"]
    named = _task().describe(three, ("a", "b", "c"), (0.0, 0.0, 1.0, 1.0))
    assert [k.label for k in named.keypoints] == ["a", "b", "c"]
    assert "left ankle" in _task().describe_output((1, 17, 64, 48), None)
    assert _task().describe_output((1, 5, 64, 48), None) == "a heatmap for each keypoint"
