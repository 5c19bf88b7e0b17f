"""What every task promises to the commands that use it, whatever it is for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from inspect import getdoc
from typing import Any, get_args

import numpy as np
import pytest

from vitdeploy import plugins, tasks
from vitdeploy.data.dataset import Form
from vitdeploy.data.labels import Boxes, ClassMask, DepthMap, InstanceMasks, Keypoints, Label
from vitdeploy.data.outlines import compress
from vitdeploy.errors import DataError
from vitdeploy.recipe import TaskSpec
from vitdeploy.session import Array

COUNT = 6
VIEW = (0.0, 0.0, 48.0, 64.0)
_RNG = np.random.default_rng(0)
_SIZE = (48, 64)
_DEPTHS = 1.0 + np.arange(48 * 64).reshape(_SIZE) / 999
_LEFT = np.arange(64)[None].repeat(48, 0) < 32


@dataclass(frozen=True)
class Example:
    """Outputs for six images, the label of each, and options of the task."""

    outputs: dict[str, Array]
    label: Callable[[int], Label]
    options: dict[str, Any] = field(default_factory=dict)


def _noise(*shape: int) -> Array:
    return _RNG.normal(size=(COUNT, *shape)).astype(np.float32)


_CENTRED = {"logits": _noise(7, 4), "pred_boxes": _RNG.uniform(0.2, 0.5, (COUNT, 7, 4)).astype(np.float32)}
_PLACES = _RNG.uniform(5, 40, (17, 2))
EXAMPLES = {
    "classification": Example({"logits": _noise(5)}, lambda i: i % 5),
    "embedding": Example({"image_embeds": _noise(16)}, lambda i: i % 2, {"k": 2}),
    "segmentation": Example({"logits": _noise(3, 12, 16)}, lambda i: ClassMask(str(i), _LEFT.astype(np.int64))),
    "depth": Example({"predicted_depth": 2 + np.abs(_noise(12, 16))}, lambda i: DepthMap(str(i), _DEPTHS)),
    "detection": Example(
        _CENTRED, lambda i: Boxes(str(i), np.array([[0.1, 0.1, 0.5, 0.5]]), np.array([i % 3]), np.array([False]))
    ),
    "instance-segmentation": Example(
        {"class_queries_logits": _noise(7, 4), "masks_queries_logits": _noise(7, 12, 16)},
        lambda i: InstanceMasks(str(i), np.array([compress(_LEFT)]), np.array([i % 3]), np.array([False]), _SIZE),
    ),
    "promptable-masks": Example(
        {"pred_masks": _noise(3, 12, 16), "iou_scores": _noise(3)},
        lambda i: InstanceMasks(str(i), np.array([compress(_LEFT)]), np.array([i % 3]), np.array([False]), _SIZE),
    ),
    "pose": Example(
        {"heatmaps": _noise(17, 16, 12)},
        lambda i: Keypoints(str(i), _PLACES + i, np.ones(17, bool), np.array([900.0, 50.0]), np.array([48.0, 64.0])),
    ),
}  # fmt: skip
NAMES = plugins.names(tasks)


def _find(name: str) -> tasks.Task:
    return tasks.find(TaskSpec.model_validate({"kind": name, **EXAMPLES[name].options}))


def _labels(name: str) -> list[Label]:
    return [EXAMPLES[name].label(i) for i in range(COUNT)]


@pytest.mark.parametrize("name", NAMES)
def test_what_it_says_of_itself_agrees(name: str) -> None:
    kind = tasks.kind_of(name)
    assert kind is not None
    assert kind.data in get_args(Form)
    assert (getdoc(kind) or "").strip()
    assert kind.metric_names.keys() <= kind.units.keys()
    assert kind.binary | kind.lower_is_better <= kind.units.keys()
    assert tasks.find(TaskSpec(kind=name)).name == name
    assert 0 < kind.flip_below <= 1


def test_no_two_tasks_call_a_metric_differently() -> None:
    kinds = [kind for kind in map(tasks.kind_of, NAMES) if kind is not None]
    named = {(metric, title) for kind in kinds for metric, title in kind.metric_names.items()}
    assert len({metric for metric, _ in named}) == len(named)


@pytest.mark.parametrize("name", list(EXAMPLES))
def test_metrics_are_named_finite_and_weighted(name: str) -> None:
    task, outputs = _find(name), EXAMPLES[name].outputs
    seen = task.statistics(outputs, _labels(name))
    assert len(seen.answers) == len(seen.finite) == COUNT
    assert seen.finite.all()
    assert all(len(value) == COUNT and value.dtype.kind in "biuf" for value in seen.values.values())
    reference, _ = task.pair_statistics(seen.values, seen.values)
    metrics = task.aggregate(reference)
    assert list(metrics) == [metric for metric in task.units if metric in metrics]
    assert all(np.isfinite(value) for value in metrics.values())
    compute = task.weighted_metrics(reference)
    assert compute(np.ones(COUNT)) == pytest.approx(metrics)
    assert compute(np.full(COUNT, 3.0)) == pytest.approx(metrics)
    assert all(isinstance(doubt, str) for doubt in task.find_doubts(reference))


@pytest.mark.parametrize("name", list(EXAMPLES))
def test_an_answer_agrees_with_itself_and_not_with_nan(name: str) -> None:
    task, outputs = _find(name), EXAMPLES[name].outputs
    assert task.compare_outputs(outputs, outputs) == pytest.approx(np.ones(COUNT))
    broken = {key: value.copy() for key, value in outputs.items()}
    for value in broken.values():
        value[2] = np.nan
    assert task.find_finite_answers(broken).tolist() == [True, True, False, True, True, True]
    assert task.compare_outputs(outputs, broken)[2] == 0
    seen = task.statistics(broken, _labels(name))
    assert seen.finite.tolist() == [True, True, False, True, True, True]
    assert all(
        np.isfinite(np.asarray(v[2], np.float64)).all() for k, v in seen.values.items() if k not in task.ranking_only
    )


@pytest.mark.parametrize("name", list(EXAMPLES))
def test_batches_give_what_all_give(name: str) -> None:
    task, outputs = _find(name), EXAMPLES[name].outputs
    whole = task.statistics(outputs, _labels(name)).values
    parts = [
        task.statistics({k: v[i : i + 4] for k, v in outputs.items()}, _labels(name)[i : i + 4]).values for i in (0, 4)
    ]
    for key, value in whole.items():
        np.testing.assert_allclose(np.concatenate([part[key] for part in parts]), value, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", list(EXAMPLES))
def test_it_describes_an_answer_and_writes_it(name: str) -> None:
    task, outputs = _find(name), EXAMPLES[name].outputs
    answer = task.describe({k: v[:1] for k, v in outputs.items()}, None, VIEW, _SIZE)
    lines = task.format_answer(answer)
    assert lines
    assert all(line.strip() and "\n" not in line for line in lines)
    assert type(answer).model_validate_json(answer.model_dump_json()) == answer
    pixels = task.map_pixels({k: v[:1] for k, v in outputs.items()}, VIEW, _SIZE)
    assert pixels is None or pixels.shape == _SIZE


@pytest.mark.parametrize("name", list(EXAMPLES))
def test_what_is_not_of_the_task_is_refused_in_one_line(name: str) -> None:
    task, outputs = _find(name), EXAMPLES[name].outputs
    wrong: list[tuple[dict[str, Array], list[Label]]] = [
        ({"out": np.zeros(COUNT)}, _labels(name)),
        (outputs, _labels(name)[:-1]),
    ]
    if task.data != "classes":
        wrong.append((outputs, [0] * COUNT))
    for bad, labels in wrong:
        with pytest.raises(DataError) as caught:
            task.statistics(bad, labels)
        assert caught.value.fix
        assert "\n" not in caught.value.message
