"""The models of `side_by_side.py`: their folders, images, and the graphs that PyTorch exports."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import as_transformers
from benchmarks.fashion_mnist import data as fashion
from benchmarks.fashion_mnist import hostile
from benchmarks.fashion_mnist.model import MEAN, STD, FashionVit
from benchmarks.images import make_input, save_made_up
from benchmarks.quantization import CALIBRATION_IMAGES, Subject
from vitdeploy.session import Array, Feeds

INPUT = "pixel_values"
_SPEED_IMAGES = 32
"""Calibration images where only speed is measured: their content changes scales, not time."""


@dataclass(frozen=True)
class Case:
    """A model and its folder, which holds the model as transformers saves it (`hf`), images, and what is made of it.

    Attributes:
        title: its name in the table.
        folder: where it lies.
        build: saves it as transformers does.
        trained: whether its accuracy means something.
        outputs: the outputs that its task reads, by transformers' names.
        merging: the tokens to merge, as --merge-tokens takes them; empty for none.
    """

    title: str
    folder: Path
    build: Callable[[Path], None]
    trained: bool = False
    outputs: tuple[str, ...] = ("logits",)
    merging: str = ""

    @cached_property
    def subject(self) -> Subject:
        """The model as vitdeploy takes it, with its images."""
        calibration, test = (str(self.folder / f"{name}.npz") for name in ("calibration", "test"))
        return Subject(self.title, f"hf:{self.folder / 'hf'}", calibration, test)

    @property
    def module(self) -> Any:
        """PyTorch's module."""
        return self.subject.module

    @property
    def is_vit(self) -> bool:
        """Whether it is transformers' plain ViT."""
        return bool(self.module.config.model_type == "vit")

    @property
    def is_classifier(self) -> bool:
        """Whether it gives a score for each class of the whole image."""
        return type(self.module).__name__.endswith("ForImageClassification")

    @cached_property
    def feeds(self) -> Feeds:
        """The one image that is used for timing."""
        return {INPUT: np.load(self.folder / "images.npz")["calibration"][:1]}

    def prepare(self) -> None:
        """Save the model, its images, and the graphs that torch exports, unless that was done before."""
        if (self.folder / "images.npz").exists():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self.build(self.folder / "hf")
        calibration = self._calibration()
        for opset in (20, 23):  # torch's default, and the first one that has an operator for attention
            path = self.folder / f"opset{opset}" / "model.onnx"
            path.parent.mkdir(exist_ok=True)
            torch.onnx.export(
                _Outputs(self.module, self.outputs).eval(), (torch.from_numpy(calibration[:1]),), path, dynamo=True,
                opset_version=opset, input_names=[INPUT], external_data=False, verbose=False,
            )  # fmt: skip
            np.savez(path.with_name("images.npz"), calibration=calibration)
        np.savez(self.folder / "images.npz", calibration=calibration)

    def _calibration(self) -> Array:
        """Save the images; return those to calibrate on, as the model takes them."""
        if self.trained:
            fashion.save_sets(self.folder)
            return self.subject.read_images("calibration", CALIBRATION_IMAGES)[0]
        preprocess = self.subject.model.preprocess
        save_made_up(self.folder / "calibration.npz", preprocess, _SPEED_IMAGES)
        return make_input(preprocess, _SPEED_IMAGES)


class _Outputs(torch.nn.Module):
    """A model of transformers that returns some of its outputs and nothing else."""

    def __init__(self, module: Any, names: tuple[str, ...]) -> None:
        super().__init__()
        self.module = module
        self.names = names

    def forward(self, pixel_values: torch.Tensor) -> Any:
        outputs = self.module(pixel_values)
        return tuple(getattr(outputs, name) for name in self.names)


def all_cases(work: Path) -> Iterator[Case]:
    """Yield eight models for speed, then a trained one and its twin that is hostile to INT8."""

    def random(model: as_transformers.Random) -> Callable[[Path], None]:
        return lambda folder: as_transformers.save_random(folder, model)

    def copy(model: Callable[[], FashionVit]) -> Callable[[Path], None]:
        return lambda folder: as_transformers.save_copy(folder, model(), MEAN, STD)

    # Half of the patches behind the second block, half of the rest behind the seventh: the depths and shares with which
    # the trained model of fewer_tokens.md loses 0.2 points.
    merged, merged_at_518 = "1:98,6:49", "1:684,6:342"
    boxes = ("logits", "pred_boxes")
    yield Case("DeiT-Tiny", work / "deit-tiny", random(as_transformers.DEIT_TINY), merging=merged)
    yield Case("DeiT-Small", work / "deit-small", random(as_transformers.DEIT_SMALL), merging=merged)
    yield Case("ViT-Base", work / "vit-base", random(as_transformers.VIT_BASE), merging=merged)
    yield Case("Swin-Tiny", work / "swin-tiny", random(as_transformers.SWIN_TINY))
    yield Case(
        "DINOv2-Small, 518 px", work / "dinov2-small", random(as_transformers.DINOV2_SMALL), merging=merged_at_518
    )
    yield Case("SegFormer-B0, 512 px", work / "segformer-b0", random(as_transformers.SEGFORMER_B0))
    yield Case(
        "Depth-Anything-Small (DPT), 518 px", work / "depth-small", random(as_transformers.DEPTH_SMALL),
        outputs=("predicted_depth",),
    )  # fmt: skip
    yield Case("RF-DETR-Nano, 384 px", work / "rf-detr-nano", random(as_transformers.RF_DETR_NANO), outputs=boxes)
    yield Case("Fashion-MNIST", work / "fashion", copy(hostile.load_trained), trained=True)
    yield Case("Fashion-MNIST, INT8-hostile", work / "hostile", copy(hostile.int8_hostile), trained=True)
