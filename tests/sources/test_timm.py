"""timm models: preprocessing and labels of their own, never random weights in silence."""

from __future__ import annotations

import time

import pytest
import timm
import torch

from vitdeploy.errors import SourceError
from vitdeploy.recipe import ModelSpec
from vitdeploy.sources import LoadedModel, load
from vitdeploy.sources.timm import _read_config, read_preprocess

SMALL = {"depth": 1, "embed_dim": 24, "num_heads": 2}


def _random(name: str, size: tuple[int, int] | None = None, **kwargs: object) -> LoadedModel:
    return load(ModelSpec(spec=f"timm:{name}", weights="random", kwargs={**SMALL, **kwargs}), size=size)


def test_a_vit_with_its_own_preprocessing_and_labels() -> None:
    model = _random("deit_tiny_patch16_224")
    assert model.weights == "random"
    assert model.preprocess.size == (224, 224)
    assert model.preprocess.mean == pytest.approx((0.485, 0.456, 0.406))
    assert (model.preprocess.resize, model.preprocess.crop_pct) == ("shortest", 0.9)
    assert model.labels is not None
    assert (len(model.labels), model.labels[0]) == (1000, "tench, Tinca tinca")
    assert model.digest == _random("deit_tiny_patch16_224").digest


def test_size_becomes_img_size() -> None:
    model = _random("deit_tiny_patch16_224", size=(64, 96))
    assert model.preprocess.size == (64, 96)
    assert model.module is not None
    assert model.module(torch.zeros(1, 3, 64, 96)).shape == (1, 1000)


def test_a_model_without_img_size_takes_any() -> None:
    model = load(ModelSpec(spec="timm:resnet10t", weights="random"), size=(64, 64))
    assert model.preprocess.size == (64, 64)


def test_a_size_between_patches_names_the_nearest() -> None:
    with pytest.raises(SourceError, match="Use --image-size 224x224 or 240x240"):
        _random("deit_tiny_patch16_224", size=(230, 230))
    with pytest.raises(SourceError, match="Use --image-size 224x224 or 240x224"):
        _random("vit_medium_patch16_reg4_gap_256", img_size=(230, 224))


def test_one_channel_averages_the_statistics() -> None:
    model = _random("deit_tiny_patch16_224", size=(32, 32), in_chans=1, num_classes=3)
    assert model.preprocess.channels == 1
    assert model.preprocess.mean == pytest.approx(((0.485 + 0.456 + 0.406) / 3,))
    assert model.labels is None


def test_squash_is_exact() -> None:
    module = timm.create_model("deit_tiny_patch16_224", pretrained_cfg_overlay={"crop_mode": "squash"}, **SMALL)
    assert read_preprocess(_read_config("x", module, {}, None)).resize == "exact"


@pytest.mark.parametrize("name", ["deit_tinny_patch16_224", "nothing_like_it"])
def test_an_unknown_model(name: str) -> None:
    with pytest.raises(SourceError, match="timm has no model") as error:
        _random(name)
    assert ("did you mean 'deit_tiny_patch16_224'" in str(error.value)) == (name == "deit_tinny_patch16_224")


def test_kwargs_that_timm_refuses() -> None:
    with pytest.raises(SourceError, match=r"cannot be built.*colour"):
        _random("deit_tiny_patch16_224", colour="red")
    with pytest.raises(SourceError, match="--weights"):
        _random("deit_tiny_patch16_224", checkpoint_path="x.pth")


def test_no_weights_is_an_error_that_names_random() -> None:
    with pytest.raises(SourceError, match=r"timm has none for this model.*--weights random"):
        load(ModelSpec(spec="timm:vit_giant_patch14_224"))


def test_a_random_head_on_pretrained_weights_is_refused() -> None:
    with pytest.raises(SourceError, match="the head would be random"):
        load(ModelSpec(spec="timm:deit_tiny_patch16_224", kwargs={"num_classes": 7}))


def test_offline_pretrained_fails_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HUB_CACHE", "/nonexistent")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "/nonexistent")
    started = time.perf_counter()
    with pytest.raises(SourceError, match="--weights random"):
        load(ModelSpec(spec="timm:deit_tiny_patch16_224"))
    assert time.perf_counter() - started < 15
