"""COCO's mAP, computed from matches of each image."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from vitdeploy import tasks
from vitdeploy.data.labels import Boxes, Label
from vitdeploy.errors import DataError
from vitdeploy.recipe import TaskSpec
from vitdeploy.session import Array
from vitdeploy.tasks import Task

IMAGES, QUERIES, CLASSES = 30, 25, 5
NOTHING = np.zeros((0, 4))


def _task(**options: object) -> Task:
    return tasks.find(TaskSpec.model_validate({"kind": "detection", **options}))


def _corners(boxes: Array) -> Array:
    return np.concatenate([boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2], axis=-1)


def _scene(seed: int, *, background: bool = True) -> tuple[dict[str, Array], list[Boxes]]:
    """Images with up to five objects, crowds among them; most found, not quite in place, among many wrong boxes."""
    rng = np.random.default_rng(seed)
    boxes = np.concatenate(
        [rng.uniform(0.2, 0.8, (IMAGES, QUERIES, 2)), rng.uniform(0.05, 0.4, (IMAGES, QUERIES, 2))], -1
    )
    logits = rng.normal(size=(IMAGES, QUERIES, CLASSES + background))
    truth = []
    for i in range(IMAGES):
        count = int(rng.integers(0, 6))
        own = np.concatenate([rng.uniform(0.2, 0.8, (count, 2)), rng.uniform(0.05, 0.4, (count, 2))], -1)
        kinds = rng.integers(0, CLASSES - 1, count)  # the last class never occurs
        boxes[i, :count] = own * rng.uniform(0.85, 1.15, (count, 4))
        logits[i, np.arange(count), kinds] += 3
        truth.append(Boxes(f"{i}.jpg", _corners(own), kinds, rng.random(count) < 0.1))
    return {"logits": logits, "pred_boxes": boxes}, truth


def _coco(answers: Sequence[Array], truth: Sequence[Boxes], weights: Sequence[int]) -> dict[str, float]:
    """pycocotools on everything at once; an image that counts twice is there twice."""
    images: list[dict[str, Any]] = []
    sides: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])

    def add(side: int, box: Array, kind: int, **more: object) -> None:
        place = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
        facts = {"id": len(sides[side]) + 1, "image_id": len(images), "category_id": int(kind), "bbox": place}
        sides[side].append({**facts, "area": place[2] * place[3], **more})

    for i, weight in enumerate(weights):
        for _ in range(weight):
            images.append({"id": len(images) + 1})
            for box, kind, crowd in zip(truth[i].boxes, truth[i].classes, truth[i].crowd, strict=True):
                add(0, box, kind, iscrowd=int(crowd))
            for found in answers[i]:
                add(1, found[:4], found[5], score=found[4], iscrowd=0)
    with contextlib.redirect_stdout(io.StringIO()):
        both = []
        for annotations in sides:
            coco = COCO()
            categories = [{"id": kind} for kind in range(CLASSES)]
            coco.dataset = {"images": images, "categories": categories, "annotations": annotations}
            coco.createIndex()
            both.append(coco)
        evaluation = COCOeval(*both, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(("map", "map50", "map75"), 100 * evaluation.stats[:3], strict=True))


@pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
@pytest.mark.parametrize("drawn", [False, True])
def test_metrics_are_those_of_pycocotools(scores: str, drawn: bool) -> None:
    task = _task(scores=scores)
    outputs, truth = _scene(1, background=scores == "softmax")
    weights = np.random.default_rng(2).multinomial(IMAGES, [1 / IMAGES] * IMAGES) if drawn else [1] * IMAGES
    seen = [task.statistics({n: v[i : i + 4] for n, v in outputs.items()}, truth[i : i + 4]) for i in range(0, 30, 4)]
    values = {name: np.concatenate([s.values[name] for s in seen]) for name in seen[0].values}
    answers = [answer for s in seen for answer in s.answers]
    found = task.weighted_metrics(values)(np.array(weights, np.float64))
    assert found == pytest.approx(_coco(answers, truth, [int(w) for w in weights]), abs=1e-6)
    assert 3 < found["map"] < 60


def test_only_the_best_boxes_of_an_image_count() -> None:
    outputs, truth = _scene(3)
    task = _task(max_detections=2)
    answers = task.read_answers(outputs)
    assert all(len(a) == 2 and a[0, 4] >= a[1, 4] for a in answers)
    found = task.aggregate(task.statistics(outputs, truth).values)
    assert found == pytest.approx(_coco(answers, truth, [1] * IMAGES), abs=1e-6)


def test_an_image_of_nan_finds_nothing() -> None:
    task, (outputs, truth) = _task(), _scene(4)
    broken = {"logits": outputs["logits"], "pred_boxes": outputs["pred_boxes"].copy()}
    broken["pred_boxes"][3, 0, 0] = np.nan
    seen = task.statistics(broken, truth)
    assert np.flatnonzero(~seen.finite) == [3]
    assert (seen.values["class"][3] == -1).all()
    assert seen.values["objects"][3].sum() == (~truth[3].crowd).sum()
    assert task.compare_outputs(outputs, broken)[3] == 0


def _outputs(*boxes: tuple[float, float, float, float, int, float]) -> dict[str, Array]:
    """One image: centre, size, class and probability of each box, three classes."""
    logits = np.full((1, 4, 4), -10.0)
    logits[..., 3] = 10
    places = np.full((1, 4, 4), 0.1)
    for i, (x, y, w, h, kind, probability) in enumerate(boxes):
        places[0, i] = x, y, w, h
        logits[0, i] = -20
        logits[0, i, kind], logits[0, i, 3] = np.log(probability), np.log1p(-probability)
    return {"logits": logits, "pred_boxes": places}


A, B = (0.3, 0.3, 0.2, 0.2), (0.7, 0.7, 0.2, 0.2)


@pytest.mark.parametrize(
    ("reference", "deployed", "expected"),
    [
        ([(*A, 0, 0.9), (*B, 1, 0.8)], [(*B, 1, 0.9), (*A, 0, 0.7)], 1.0),
        ([(*A, 0, 0.9), (*B, 1, 0.8)], [(*A, 0, 0.9)], 2 / 3),
        ([(*A, 0, 0.9)], [(*A, 1, 0.9)], 0.0),
        ([(*A, 0, 0.9)], [(*B, 0, 0.9)], 0.0),
        ([(*A, 0, 0.51)], [(*A, 0, 0.49)], 1.0),  # the threshold lies between them, which is no difference
        ([(*A, 0, 0.9)], [(*A, 0, 0.3)], 0.0),
        ([(*A, 0, 0.3)], [(*A, 0, 0.2)], 0.9),  # neither is sure of anything
    ],
)
def test_agreement_is_the_f1_of_matched_boxes(reference: list[Any], deployed: list[Any], expected: float) -> None:
    sides = _outputs(*reference), _outputs(*deployed)
    assert _task().compare_outputs(*sides)[0] == pytest.approx(expected)
    assert _task().compare_outputs(*sides[::-1])[0] == pytest.approx(expected)


def test_a_reference_that_finds_nothing_is_doubtful() -> None:
    task, (outputs, truth) = _task(), _scene(5)
    assert task.find_doubts(task.statistics(outputs, truth).values) == []
    moved = [Boxes(b.name, b.boxes, (b.classes + 1) % 4, b.crowd) for b in truth]
    assert "model's class indices" in task.find_doubts(task.statistics(outputs, moved).values)[0]


@pytest.mark.parametrize(
    ("outputs", "labels", "message"),
    [
        ({"logits": np.zeros((1, 4))}, [], "no output is"),
        (
            {"logits": np.zeros((1, 4, 3)), "pred_boxes": np.zeros((1, 5, 4))},
            [],
            r"scores are \(1, 4, 3\) and the boxes",
        ),
        (_outputs(), [], "1 predictions for 0 labels"),
        (
            _outputs(),
            [Boxes("a.jpg", np.zeros((1, 4)), np.array([3]), np.array([False]))],
            "a.jpg: its classes go from 3",
        ),
        (_outputs(), [7], "not boxes"),
    ],
)
def test_what_cannot_be_judged(outputs: dict[str, Array], labels: list[Label], message: str) -> None:
    with pytest.raises(DataError, match=message):
        _task().statistics(outputs, labels)


LOGITS, PLACES = np.zeros((1, 5, 3)), np.full((1, 5, 4), 0.5)


@pytest.mark.parametrize(
    ("outputs", "names"),
    [
        ({"output_0": PLACES, "output_1": LOGITS}, ["output_1", "output_0"]),  # as RF-DETR exports them
        ({"output_0": LOGITS, "output_1": PLACES}, ["output_0", "output_1"]),
        ({"dets": PLACES, "labels": LOGITS}, ["labels", "dets"]),
        ({"output_0": PLACES.transpose(0, 2, 1), "output_1": LOGITS}, ["output_1", "output_0"]),
        (
            {"hidden": np.zeros((2, 1, 5, 8)), "pred_boxes": PLACES, "output_1": LOGITS},
            ["output_1", "pred_boxes"],
        ),
        ({"output_0": np.zeros((1, 5, 4)), "pred_boxes": PLACES}, ["output_0", "pred_boxes"]),  # four classes
    ],
)
def test_boxes_are_found_by_their_four_numbers(outputs: dict[str, Array], names: list[str]) -> None:
    assert list(_task().select_outputs(outputs)) == names


def test_two_outputs_that_may_both_be_boxes_are_refused() -> None:
    with pytest.raises(DataError, match="several outputs may be the boxes, output_0 and output_1"):
        _task().select_outputs({"output_0": PLACES, "output_1": np.zeros((1, 5, 4))})


def test_data_without_an_object() -> None:
    task, empty = _task(), Boxes("a", NOTHING, np.zeros(0, np.int64), np.zeros(0, bool))
    with pytest.raises(DataError, match="map is not defined"):
        task.aggregate(task.statistics(_outputs((*A, 0, 0.9)), [empty]).values)


def test_without_pycocotools_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    outputs, truth = _scene(6)
    with pytest.raises(DataError, match=r"pip install 'vitdeploy\[detection\]'"):
        _task().statistics(outputs, truth)


def test_it_says_the_boxes_in_pixels_of_the_image() -> None:
    answer = _task().describe(_outputs((*A, 1, 0.9), (*B, 0, 0.2)), ("ant", "bee", "cat"), (10.0, 0.0, 110.0, 200.0))
    (box,) = answer.boxes
    assert (box.label, round(box.score, 2)) == ("bee", 0.9)
    assert box.box == pytest.approx((40, 30, 80, 50))


def test_the_classes_are_counted_without_no_object() -> None:
    shapes = {"logits": (1, 100, 92), "pred_boxes": (1, 100, 4)}
    assert (_task().count_classes(shapes), _task(scores="sigmoid").count_classes(shapes)) == (91, 92)
    assert _task().count_classes({"logits": (1, 100, "classes")}) is None


def test_it_says_in_numbers_how_boxes_are_read() -> None:
    shapes: dict[str, tuple[int | str, ...]] = {"logits": ("batch", 100, 92), "pred_boxes": ("batch", 100, 4)}
    detr = _task(max_detections=50, confident=0.7).describe_reading(shapes)
    assert detr is not None
    assert (detr.scores, detr.boxes, detr.boxes_layout) == ("logits", "pred_boxes", "queries, 4")
    assert (detr.activation, detr.candidates, detr.no_object) == ("softmax", "best class", 91)
    assert (detr.top_k, detr.threshold) == (50, 0.7)
    assert (detr.box_form, detr.box_unit) == ("centre x, centre y, width, height", "share of the input")
    rtdetr = _task(scores="sigmoid").describe_reading({"a": (1, 300, 80), "b": (1, 4, 300)})
    assert rtdetr is not None
    assert (rtdetr.scores, rtdetr.boxes, rtdetr.boxes_layout) == ("a", "b", "4, queries")
    assert (rtdetr.activation, rtdetr.candidates, rtdetr.no_object) == ("sigmoid", "every class", None)


def test_outputs_of_another_task_have_no_reading() -> None:
    assert _task().describe_reading({"logits": (1, 10)}) is None
    assert _task().describe_reading({"output_0": (1, 5, 4), "output_1": (1, 5, 4)}) is None
