"""What a transformers model says it is for."""

from __future__ import annotations

from typing import Any

import pytest

transformers = pytest.importorskip("transformers")

from vitdeploy.recipe import TaskSpec  # noqa: E402
from vitdeploy.sources._hf_task import labels_of, task_of  # noqa: E402
from vitdeploy.tasks import find  # noqa: E402


def _config(family: str = "", **values: object) -> Any:
    return type("Config", (), {"model_type": family, **values})()


@pytest.mark.parametrize(
    ("kind", "config", "processor", "expected"),
    [
        ("ViTForImageClassification", _config("vit"), {}, {"kind": "classification"}),
        ("DeiTForImageClassificationWithTeacher", _config("deit"), None, {"kind": "classification"}),
        ("SegformerForSemanticSegmentation", _config("segformer"), {}, {"kind": "segmentation"}),
        ("BeitForSemanticSegmentation", _config("beit"), {"do_reduce_labels": True},
         {"kind": "segmentation", "reduce_labels": True}),
        ("Mask2FormerForUniversalSegmentation", _config(), {"do_reduce_labels": False}, {"kind": "segmentation"}),
        ("MaskFormerForInstanceSegmentation", _config("maskformer"), {}, {"kind": "instance-segmentation"}),
        ("MaskFormerForInstanceSegmentation", _config("maskformer"), {"do_reduce_labels": True},
         {"kind": "segmentation", "reduce_labels": True}),
        ("RfDetrForInstanceSegmentation", _config("rf_detr"), {},
         {"kind": "instance-segmentation", "scores": "sigmoid"}),
        ("DetrForSegmentation", _config("detr"), {}, {"kind": "instance-segmentation", "scores": "softmax"}),
        ("ConditionalDetrForSegmentation", _config("conditional_detr"), {},
         {"kind": "instance-segmentation", "scores": "sigmoid"}),
        ("VitPoseForPoseEstimation", _config("vitpose"), {}, {"kind": "pose"}),
        ("GLPNForDepthEstimation", _config("glpn"), {}, {"kind": "depth"}),
        ("DPTForDepthEstimation", _config("dpt"), {}, {"kind": "depth", "predicts": "disparity", "align": "affine"}),
        ("DepthAnythingForDepthEstimation", _config("depth_anything", depth_estimation_type="metric"), {},
         {"kind": "depth"}),
        ("YolosForObjectDetection", _config("yolos"), {}, {"kind": "detection"}),
        ("RTDetrForObjectDetection", _config("rt_detr"), {}, {"kind": "detection", "scores": "sigmoid"}),
        ("Dinov2Model", _config("dinov2"), {}, {"kind": "embedding"}),
        ("CLIPVisionModelWithProjection", _config("clip_vision_model"), {}, {"kind": "embedding"}),
        ("ViTMAEForPreTraining", _config("vit_mae"), {}, None),
    ],
)  # fmt: skip
def test_the_class_tells(
    kind: str, config: Any, processor: dict[str, Any] | None, expected: dict[str, Any] | None
) -> None:
    assert hasattr(transformers, kind)
    found = task_of(kind, config, processor)
    assert found == (None if expected is None else TaskSpec.model_validate(expected))
    if found is not None:
        find(found)  # its options are the task's


def test_labels_are_those_of_a_task_with_classes() -> None:
    names = _config(id2label={0: "floor", 1: "disc"})
    for kind in ("classification", "segmentation", "detection", "instance-segmentation"):
        assert labels_of(TaskSpec(kind=kind), names) == ("floor", "disc")
    assert labels_of(TaskSpec(kind="depth"), names) is None
    assert labels_of(None, names) is None
    assert labels_of(TaskSpec(kind="detection"), _config(id2label={0: "LABEL_0", 1: "LABEL_1"})) is None
    assert labels_of(TaskSpec(kind="detection"), _config(id2label={1: "a", 5: "b"})) is None
