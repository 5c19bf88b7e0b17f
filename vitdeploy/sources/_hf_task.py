"""The task of a transformers model, from its class, its config and its processor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vitdeploy.recipe import TaskSpec

_KINDS = {
    "ImageClassification": "classification",
    "VideoClassification": "classification",
    "SemanticSegmentation": "segmentation",
    "UniversalSegmentation": "segmentation",
    "InstanceSegmentation": "instance-segmentation",
    "ForSegmentation": "instance-segmentation",  # DETR with a head for masks
    "DepthEstimation": "depth",
    "ObjectDetection": "detection",
    "PoseEstimation": "pose",
}
_BACKBONE = ("Model", "ModelWithProjection")
_SOFTMAX = ("detr", "yolos", "table-transformer")
"""Detectors with a softmax over the classes and "no object". Later families have a sigmoid for each class."""
_PRODUCT = ("maskformer",)
"""Families whose score is that of the class times the confidence of the mask."""
_WITH_CLASSES = ("classification", "segmentation", "detection", "instance-segmentation")
_AFFINE = ("dpt", "depth_anything")
"""Families trained on inverse depth up to scale and shift, like MiDaS, unless the config says that it is metric."""


def task_of(kind: str, config: Any, processor: Mapping[str, Any] | None) -> TaskSpec | None:
    """Return the task of the model class `kind`, with the options in its config and processor; None if unknown."""
    name = next((task for part, task in _KINDS.items() if part in kind), None)
    if name is None:
        return TaskSpec(kind="embedding") if kind.endswith(_BACKBONE) else None
    options: dict[str, Any] = {}
    family = str(getattr(config, "model_type", ""))
    if name == "detection" and family not in _SOFTMAX:
        options["scores"] = "sigmoid"
    if name == "instance-segmentation" and (processor or {}).get("do_reduce_labels"):
        name = "segmentation"  # a map whose 0 is "no class" is a semantic one: MaskFormer for ADE20K
    if name == "instance-segmentation" and family not in _PRODUCT:
        options["scores"] = "softmax" if family in _SOFTMAX else "sigmoid"
    if name == "depth" and family in _AFFINE and getattr(config, "depth_estimation_type", "relative") == "relative":
        options.update(predicts="disparity", align="affine")
    if name == "segmentation" and (processor or {}).get("do_reduce_labels"):
        options["reduce_labels"] = True
    return TaskSpec.model_validate({"kind": name, **options})


def labels_of(task: TaskSpec | None, config: Any) -> tuple[str, ...] | None:
    """Return the class names in the config; None if the task has no classes, or they are only LABEL_0, LABEL_1, …."""
    names = getattr(config, "id2label", None) or {}
    if task is None or task.kind not in _WITH_CLASSES:
        return None
    if not names or str(names.get(0, "LABEL_0")) == "LABEL_0" or sorted(names) != list(range(len(names))):
        return None
    return tuple(str(names[index]) for index in range(len(names)))
