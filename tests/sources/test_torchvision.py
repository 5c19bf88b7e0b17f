"""torchvision models: preprocessing of their default weights, and no silent randomness."""

from __future__ import annotations

import time

import pytest
import torch

from vitdeploy.errors import SourceError
from vitdeploy.recipe import ModelSpec, TaskSpec
from vitdeploy.sources import load


def test_a_vit() -> None:
    model = load(ModelSpec(spec="torchvision:vit_b_32", weights="random"), size=(64, 64))
    assert (model.weights, model.preprocess.size, model.preprocess.crop_pct) == ("random", (64, 64), 224 / 256)
    assert model.labels is not None
    assert (len(model.labels), model.labels[0]) == (1000, "tench")
    assert model.module is not None
    assert model.module(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)


def test_a_swin_takes_any_size_and_other_classes_have_no_labels() -> None:
    kwargs = {"num_classes": 5}
    model = load(ModelSpec(spec="torchvision:swin_t", weights="random", kwargs=kwargs), size=(64, 96))
    assert model.preprocess.size == (64, 96)
    assert model.preprocess.interpolation == "bicubic"
    assert model.labels is None
    again = load(ModelSpec(spec="torchvision:swin_t", weights="random", kwargs=kwargs), size=(64, 96))
    assert again.digest == model.digest


@pytest.mark.parametrize("name", ["lraspp_mobilenet_v3_large", "fcn_resnet50"])
def test_segmentation_models_say_so_and_have_one_output(name: str) -> None:
    model = load(ModelSpec(spec=f"torchvision:{name}", weights="random", kwargs={"num_classes": 21}), size=(64, 96))
    assert model.task == TaskSpec(kind="segmentation")
    assert (model.preprocess.size, model.preprocess.resize, model.preprocess.padding) == ((64, 96), "letterbox", "end")
    assert model.labels is not None
    assert model.labels[:2] == ("__background__", "aeroplane")
    assert model.module is not None
    outputs = model.module(torch.zeros(1, 3, 64, 96))
    assert {name: tuple(value.shape) for name, value in outputs.items()} == {"out": (1, 21, 64, 96)}
    assert load(ModelSpec(spec=f"torchvision:{name}", weights="random")).preprocess.size == (520, 520)


@pytest.mark.parametrize(
    ("spec", "size", "message"),
    [
        ("vit_b_17", None, "did you mean 'vit_b_16'"),
        ("vit_b_16", (230, 230), "Use --image-size 224x224 or 240x240"),
        ("vit_b_16", (224, 240), "square images only"),
        ("fcos_resnet50_fpn", None, "neither classification nor segmentation"),
    ],
)
def test_what_is_refused(spec: str, size: tuple[int, int] | None, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        load(ModelSpec(spec=f"torchvision:{spec}", weights="random"), size=size)


def test_kwargs_that_are_refused() -> None:
    with pytest.raises(SourceError, match="cannot be built"):
        load(ModelSpec(spec="torchvision:swin_t", weights="random", kwargs={"colour": 1}))
    with pytest.raises(SourceError, match="--weights"):
        load(ModelSpec(spec="torchvision:swin_t", weights="random", kwargs={"weights": "DEFAULT"}))


def test_offline_pretrained_fails_fast(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    started = time.perf_counter()
    with pytest.raises(SourceError, match="--weights random"):
        load(ModelSpec(spec="torchvision:swin_t"))
    assert time.perf_counter() - started < 15
