"""COCO's mAP of masks, agreement of masks, and outputs found by their shapes."""

from __future__ import annotations

import contextlib
import io
import sys
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from vitdeploy import tasks
from vitdeploy.data.labels import InstanceMasks, Label
from vitdeploy.data.outlines import compress
from vitdeploy.errors import DataError
from vitdeploy.recipe import TaskSpec
from vitdeploy.session import Array
from vitdeploy.tasks import Task
from vitdeploy.tasks._resize import find_positive, resize_bilinear

IMAGES, QUERIES, CLASSES = 12, 8, 3
COARSE, SIZE = (12, 16), (48, 64)
ROWS, COLUMNS = np.mgrid[: SIZE[0], : SIZE[1]]


def _task(**options: object) -> Task:
    return tasks.find(TaskSpec.model_validate({"kind": "instance-segmentation", **options}))


def _label(name: str, masks: list[Array], classes: list[int], crowd: list[bool] | None = None) -> InstanceMasks:
    runs = np.array([compress(mask) for mask in masks], dtype=bytes if masks else "S1")
    return InstanceMasks(
        name, runs, np.array(classes, np.int64), np.array(crowd or [False] * len(masks), bool), SIZE
    )  # fmt: skip


def _disc(row: float, column: float, radius: float) -> Array:
    return np.asarray(np.hypot(ROWS - row, COLUMNS - column) <= radius)


def _scene(seed: int) -> tuple[dict[str, Array], list[InstanceMasks]]:
    """Images with up to four discs, crowds among them; most are found, not quite in place, among wrong masks."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(IMAGES, QUERIES, CLASSES + 1))
    rows, columns = np.mgrid[: COARSE[0], : COARSE[1]]

    def coarse(row: float, column: float, radius: float) -> Array:
        return np.asarray(radius / 4 - np.hypot(rows + 0.5 - row / 4, columns + 0.5 - column / 4))

    masks = np.empty((IMAGES, QUERIES, *COARSE), np.float32)
    truth = []
    for i in range(IMAGES):
        own = [(rng.uniform(8, 40), rng.uniform(8, 56), rng.uniform(5, 14)) for _ in range(int(rng.integers(0, 5)))]
        kinds = rng.integers(0, CLASSES - 1, len(own))  # the last class never occurs
        for query in range(QUERIES):
            row, column, radius = own[query] if query < len(own) else (rng.uniform(0, 48), rng.uniform(0, 64), 6.0)
            masks[i, query] = coarse(row + rng.normal(0, 1.5), column + rng.normal(0, 1.5), radius)
        logits[i, np.arange(len(own)), kinds] += 3
        crowd = (rng.random(len(own)) < 0.15).tolist()
        truth.append(_label(f"{i}.jpg", [_disc(*one) for one in own], kinds.tolist(), crowd))
    return {"class_queries_logits": logits, "masks_queries_logits": masks}, truth


def _coco(outputs: dict[str, Array], truth: list[InstanceMasks], scores: str, weights: list[int]) -> dict[str, float]:
    """pycocotools on everything at once, from whole masks; an image that counts twice is there twice."""
    from scipy.special import expit, softmax

    images: list[dict[str, Any]] = []
    sides: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])

    def add(side: int, runs: Any, kind: int, **more: object) -> None:
        facts = {"id": len(sides[side]) + 1, "image_id": len(images), "category_id": int(kind)}
        sides[side].append({**facts, "segmentation": runs, "area": 1.0, **more})

    for i, weight in enumerate(weights):
        logits, masks = outputs["class_queries_logits"][i], outputs["masks_queries_logits"][i]
        found = expit(logits) if scores == "sigmoid" else softmax(logits, axis=-1)[:, :-1]
        if scores == "softmax":
            found = np.where(found == found.max(axis=1, keepdims=True), found, -1)
        if scores == "product":
            found = found * np.array([expit(m)[m > 0].mean() if (m > 0).any() else 0 for m in masks])[:, None]
        large = resize_bilinear(masks, SIZE) > 0
        for _ in range(weight):
            images.append({"id": len(images) + 1, "height": SIZE[0], "width": SIZE[1]})
            for runs, kind, crowd in zip(truth[i].masks.tolist(), truth[i].classes, truth[i].crowd, strict=True):
                add(0, {"counts": runs, "size": list(SIZE)}, kind, iscrowd=int(crowd))
            for query, kind in np.argwhere(found >= 0):
                runs = coco_mask.encode(np.asfortranarray(large[query], dtype=np.uint8))
                add(1, runs, int(kind), score=float(found[query, kind]), iscrowd=0)
    with contextlib.redirect_stdout(io.StringIO()):
        both = []
        for annotations in sides:
            coco = COCO()
            categories = [{"id": kind} for kind in range(CLASSES + 1)]
            coco.dataset = {"images": images, "categories": categories, "annotations": annotations}
            coco.createIndex()
            both.append(coco)
        evaluation = COCOeval(*both, "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(("mask_map", "mask_map50", "mask_map75"), 100 * evaluation.stats[:3], strict=True))


@pytest.mark.parametrize("scores", ["product", "softmax", "sigmoid"])
@pytest.mark.parametrize("drawn", [False, True])
def test_metrics_are_those_of_pycocotools(scores: str, drawn: bool) -> None:
    task, (outputs, truth) = _task(scores=scores), _scene(1)
    weights = np.random.default_rng(2).multinomial(IMAGES, [1 / IMAGES] * IMAGES) if drawn else np.ones(IMAGES, int)
    batches = [
        task.statistics({n: v[i : i + 5] for n, v in outputs.items()}, truth[i : i + 5]) for i in range(0, IMAGES, 5)
    ]
    values = {name: np.concatenate([b.values[name] for b in batches]) for name in batches[0].values}
    metrics = task.weighted_metrics(values)(weights.astype(np.float64))
    assert metrics == pytest.approx(_coco(outputs, truth, scores, weights.tolist()), abs=1e-6)
    assert 3 < metrics["mask_map"] < 90


def test_one_object_that_is_found_by_72_percent() -> None:
    whole = np.zeros(SIZE, bool)
    whole[:40, :50] = True
    logits = np.where(whole[None, None], -1.0, -1.0)
    logits[0, 0, :36, :40] = 1.0  # 1440 of 2000 pixels: an overlap of 0.72, enough for five of the ten thresholds
    outputs = {"logits": np.array([[[5.0, 0.0]]]), "pred_masks": logits}
    metrics = _task().aggregate(_task().statistics(outputs, [_label("a", [whole], [0])]).values)
    assert metrics == pytest.approx({"mask_map": 50.0, "mask_map50": 100.0, "mask_map75": 0.0}, abs=1e-6)


def test_only_pixels_near_the_mask_are_resized_and_none_is_missed() -> None:
    rng = np.random.default_rng(3)
    for size in ((48, 64), (12, 16), (5, 7), (31, 97)):
        for share in (0.0, 1.5, 3.0):
            scores = (rng.normal(size=COARSE) - share).astype(np.float32)
            np.testing.assert_array_equal(find_positive(scores, size), resize_bilinear(scores, size) > 0)
    assert not find_positive(np.full(COARSE, -1.0), SIZE).any()
    assert not find_positive(np.full(COARSE, np.nan), SIZE).any()


def test_padding_is_cut_off() -> None:
    """A picture of 48x64 in the lower part of an input of 64x64: its mask has to come from there."""
    masks = np.full((1, 1, 64, 64), -1.0)
    masks[0, 0, 26:36, 20:30] = 1.0
    here = np.zeros(SIZE, bool)
    here[10:20, 20:30] = True
    label = _label("a", [here], [0])
    padded = InstanceMasks("a", label.masks, label.classes, label.crowd, SIZE, (-16, 0, 48, 64))
    outputs = {"logits": np.array([[[5.0, 0.0]]]), "pred_masks": masks}
    assert _task().aggregate(_task().statistics(outputs, [padded]).values)["mask_map"] == pytest.approx(100)
    answer = _task().describe(outputs, None, (-16.0, 0.0, 48.0, 64.0), SIZE)
    assert (answer.instances[0].box, answer.instances[0].area) == ((20, 10, 30, 20), 100)


def test_an_image_of_nan_finds_nothing() -> None:
    task, (outputs, truth) = _task(), _scene(4)
    broken = {name: value.copy() for name, value in outputs.items()}
    broken["masks_queries_logits"][3, 0, 0, 0] = np.nan
    seen = task.statistics(broken, truth)
    assert np.flatnonzero(~seen.finite) == [3]
    assert (seen.values["class"][3] == -1).all()
    assert seen.values["objects"][3].sum() == (~truth[3].crowd).sum()
    assert len(seen.answers[3]) == 0
    agreement = task.compare_outputs(outputs, broken)
    assert (agreement[3], agreement[2]) == (0, 1)


def _outputs(*masks: tuple[int, int, int, float]) -> dict[str, Array]:
    """One image of 8x20: first and behind last column, class and probability of each mask, two classes."""
    logits, places = np.full((1, 3, 3), -30.0), np.full((1, 3, 8, 20), -30.0)
    logits[..., 2] = 30
    for i, (left, right, kind, probability) in enumerate(masks):
        places[0, i, :, left:right] = 30
        logits[0, i] = -30
        logits[0, i, kind], logits[0, i, 2] = np.log(probability), np.log1p(-probability)
    return {"logits": logits, "pred_masks": places}


@pytest.mark.parametrize(
    ("reference", "deployed", "expected"),
    [
        ([(0, 5, 0, 0.9), (8, 14, 1, 0.8)], [(8, 14, 1, 0.9), (0, 5, 0, 0.7)], 1.0),
        ([(0, 5, 0, 0.9), (8, 14, 1, 0.8)], [(0, 5, 0, 0.9)], 2 / 3),
        ([(0, 5, 0, 0.9)], [(0, 5, 1, 0.9)], 0.0),
        ([(0, 6, 0, 0.9)], [(2, 8, 0, 0.9)], 1.0),  # an overlap of 4 in 8 columns
        ([(0, 6, 0, 0.9)], [(3, 9, 0, 0.9)], 0.0),  # an overlap of 3 in 9 columns
        ([(0, 5, 0, 0.51)], [(0, 5, 0, 0.49)], 1.0),  # the threshold lies between them, which is no difference
        ([(0, 5, 0, 0.9)], [(0, 5, 0, 0.3)], 0.0),
        ([(0, 5, 0, 0.3)], [(0, 5, 0, 0.2)], 0.9),  # neither is sure of anything
    ],
)  # fmt: skip
def test_agreement_is_the_f1_of_matched_masks(reference: list[Any], deployed: list[Any], expected: float) -> None:
    sides = _outputs(*reference), _outputs(*deployed)
    assert _task().compare_outputs(*sides)[0] == pytest.approx(expected, abs=1e-6)
    assert _task().compare_outputs(*sides[::-1])[0] == pytest.approx(expected, abs=1e-6)


def test_masks_of_two_sizes_are_not_compared() -> None:
    small = {"logits": _outputs()["logits"], "pred_masks": np.zeros((1, 3, 4, 10))}
    with pytest.raises(DataError, match="masks of two sizes"):
        _task().compare_outputs(_outputs(), small)


def test_the_confidence_of_the_mask_counts_only_for_a_product() -> None:
    outputs = _outputs((0, 5, 0, 0.8))
    outputs["pred_masks"][0, 0, :, :5] = np.log(3.0)  # a probability of 0.75 inside
    best = {scores: _task(scores=scores).read_answers(outputs)[0]["score"][0] for scores in ("product", "softmax")}
    assert best == pytest.approx({"product": 0.6, "softmax": 0.8})


def test_a_reference_that_finds_nothing_is_doubtful() -> None:
    task, (outputs, truth) = _task(), _scene(5)
    assert task.find_doubts(task.statistics(outputs, truth).values) == []
    corner = compress(_disc(0, 0, 1))
    moved = [InstanceMasks(t.name, np.array([corner] * len(t.masks), "S9"), t.classes, t.crowd, SIZE) for t in truth]
    assert "model's class indices" in task.find_doubts(task.statistics(outputs, moved).values)[0]


def test_what_is_found_at_a_threshold() -> None:
    outputs = _outputs((0, 10, 0, 0.9), (10, 20, 1, 0.4))
    half = np.zeros(SIZE, bool)
    half[:, :32] = True
    values = _task().statistics(outputs, [_label("a", [half, ~half], [0, 0])]).values
    counted = _task().at_threshold(values, 0.5)
    assert counted is not None
    assert {name: int(value[0]) for name, value in counted.items()} == {"hits": 1, "found": 1, "wanted": 2}


@pytest.mark.parametrize(
    ("outputs", "labels", "message"),
    [
        ({"logits": np.zeros((1, 4))}, [], r"no output is \(batch, queries, height, width\)"),
        ({"logits": np.zeros((1, 4, 3)), "pred_boxes": np.zeros((1, 4, 4))}, [], r"no output is \(batch, queries, h"),
        ({"logits": np.zeros((1, 3, 3)), "pred_masks": np.zeros((1, 4, 5, 5))}, [], "the scores are .* and the masks"),
        ({"pred_masks": np.zeros((1, 4, 5, 5))}, [], r"no output is \(batch, queries, classes\)"),
        (_outputs(), [], "1 predictions for 0 labels"),
        (_outputs(), [_label("a.jpg", [_disc(9, 9, 5)], [2])], "a.jpg: its classes go from 2"),
        (_outputs(), [7], "not masks of objects"),
    ],
)  # fmt: skip
def test_what_cannot_be_judged(outputs: dict[str, Array], labels: list[Label], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        _task().statistics(outputs, labels)
    assert caught.value.fix


SCORES, BOXES, MASKS = np.zeros((1, 5, 3)), np.zeros((1, 5, 4)), np.zeros((1, 5, 6, 7))


@pytest.mark.parametrize(
    ("outputs", "names"),
    [
        ({"class_queries_logits": SCORES, "masks_queries_logits": MASKS, "pixel": np.zeros((1, 8, 6, 7))},
         ["class_queries_logits", "masks_queries_logits"]),
        ({"logits": SCORES, "pred_boxes": BOXES, "pred_masks": MASKS}, ["logits", "pred_masks"]),
        ({"dets": BOXES, "labels": SCORES, "masks": MASKS}, ["labels", "masks"]),  # as RF-DETR exports them
        ({"a": MASKS, "b": SCORES}, ["b", "a"]),
        ({"a": MASKS, "hidden": np.zeros((1, 9, 16)), "b": SCORES}, ["b", "a"]),
        ({"dets": BOXES, "masks": MASKS}, ["dets", "masks"]),  # four classes
    ],
)  # fmt: skip
def test_outputs_are_found_by_names_or_shapes(outputs: dict[str, Array], names: list[str]) -> None:
    assert list(_task().select_outputs(outputs)) == names


def test_names_of_outputs_can_be_given() -> None:
    outputs = {"one": SCORES, "two": np.zeros((1, 5, 9)), "masks": MASKS, "other": np.zeros((1, 5, 3, 3))}
    assert list(_task(output="two", masks="other").select_outputs(outputs)) == ["two", "other"]
    with pytest.raises(DataError, match="several outputs may be the scores, one and two"):
        _task().select_outputs(outputs)
    with pytest.raises(DataError, match="no output 'three'"):
        _task(output="three").select_outputs(outputs)


def test_without_pycocotools_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    outputs, truth = _scene(6)
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    with pytest.raises(DataError, match=r"pip install 'vitdeploy\[detection\]'"):
        _task().statistics(outputs, truth)


def test_it_says_class_box_and_area_in_pixels_of_the_image() -> None:
    outputs = _outputs((0, 5, 1, 0.9), (8, 20, 0, 0.2), (3, 12, 0, 0.6))
    view = (10.0, 40.0, 90.0, 240.0)  # the model sees 80x200 pixels: ten for each of its own
    answer = _task().describe(outputs, ("ant", "bee"), view, (100, 300))
    first, second = answer.instances
    assert (first.label, round(first.score, 2), first.box, first.area) == ("bee", 0.9, (40, 10, 90, 90), 4000)
    assert (second.label, second.box, second.area) == ("ant", (70, 10, 160, 90), 7200)
    assert _task().format_answer(answer)[0] == " 90.0 %  bee  40,10 to 90,90, 4000 pixels"
    numbers = _task().map_pixels(outputs, view, (100, 300))
    assert numbers is not None
    assert numbers.shape == (80, 200)
    assert numbers[0].tolist() == [1] * 50 + [2] * 70 + [0] * 80  # the first lies on top of the second
    assert _task().format_answer(_task().describe(_outputs(), None, view)) == ["no object with a score of 50 % or more"]


def test_an_answer_in_a_few_words() -> None:
    (answer,) = _task().read_answers(_outputs((0, 5, 1, 0.9), (8, 20, 1, 0.6), (3, 12, 0, 0.45)))
    assert answer["score"] == pytest.approx([0.9, 0.6, 0.45])  # which may be the partner of one above the threshold
    assert _task().summarize_answer(answer, ["ant", "bee"]) == "2 bee"


def test_the_classes_are_counted_without_no_object() -> None:
    shapes = {"logits": (1, 100, 92), "pred_boxes": (1, 100, 4), "pred_masks": (1, 100, 108, 108)}
    counts = [_task(scores=scores).count_classes(shapes) for scores in ("product", "softmax", "sigmoid")]
    assert counts == [91, 91, 92]
