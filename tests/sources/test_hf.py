"""transformers models from a local folder and, when the hub is away, an error in seconds."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

transformers = pytest.importorskip("transformers")

from vitdeploy.data.preprocess import apply  # noqa: E402
from vitdeploy.errors import SourceError  # noqa: E402
from vitdeploy.recipe import ModelSpec  # noqa: E402
from vitdeploy.runtime.torch_session import named_outputs  # noqa: E402
from vitdeploy.sources import LoadedModel, load  # noqa: E402
from vitdeploy.sources._hf_preprocess import preprocess_of  # noqa: E402

SMALL = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    labels = {0: "ant", 1: "bee", 2: "cat"}
    config = transformers.ViTConfig(image_size=32, patch_size=8, id2label=labels, **SMALL)
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path)
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": 32, "width": 32},
        "resample": 2,
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.5, 0.5, 0.2],
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    return tmp_path


def _load(
    folder: Path, weights: str | None = None, size: tuple[int, int] | None = None, **kwargs: object
) -> LoadedModel:
    return load(ModelSpec(spec=f"hf:{folder}", weights=weights, kwargs=kwargs), size=size)


def test_a_folder_with_weights(folder: Path) -> None:
    model = _load(folder)
    assert (model.weights, model.input_name, model.labels) == ("pretrained", "pixel_values", ("ant", "bee", "cat"))
    assert (model.preprocess.resize, model.preprocess.interpolation) == ("exact", "bilinear")
    assert model.preprocess.mean == (0.5, 0.4, 0.3)
    assert model.module is not None
    outputs = named_outputs(model.module(torch.zeros(2, 3, 32, 32)))
    assert {name: tuple(value.shape) for name, value in outputs.items()} == {"logits": (2, 3)}
    file = _load(folder, weights=str(folder / "model.safetensors"))
    assert (file.weights, file.digest) == ("file", model.digest)


def test_a_file_that_does_not_fit(folder: Path, tmp_path: Path) -> None:
    state = load_file(folder / "model.safetensors")
    state["classifier.weight"] = torch.ones(7, 24)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(SourceError, match=r"1 keys of another shape, first 'classifier.weight' \[7, 24\] instead of"):
        _load(folder, weights=str(tmp_path / "w.safetensors"))
    del state["classifier.weight"]
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(SourceError, match=r"1 missing keys, first 'classifier.weight'"):
        _load(folder, weights=str(tmp_path / "w.safetensors"))


def test_a_fine_tuned_head_has_its_own_number_of_classes(folder: Path, tmp_path: Path) -> None:
    state = load_file(folder / "model.safetensors")
    state |= {"classifier.weight": torch.ones(7, 24), "classifier.bias": torch.ones(7)}
    names = {f"class {n}": n for n in range(7)}
    torch.save(
        {"state_dict": {f"model.{key}": value for key, value in state.items()}, "class_to_idx": names},
        tmp_path / "w.ckpt",
    )
    model = _load(folder, weights=str(tmp_path / "w.ckpt"))
    assert model.labels == tuple(names)
    assert model.checkpoint is not None
    assert (model.checkpoint.classes, model.checkpoint.prefix) == (7, "model.")
    with pytest.raises(SourceError, match="the head would be random"):
        load(ModelSpec(spec=f"hf:{folder}", num_classes=7))


def test_preprocessing_has_the_numbers_of_the_processor(folder: Path) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8))
    processor = (
        transformers.ViTImageProcessorPil.from_pretrained(folder)
        if hasattr(transformers, "ViTImageProcessorPil")
        else transformers.ViTImageProcessor.from_pretrained(folder, use_fast=False)
    )
    theirs = np.asarray(processor(image, return_tensors="np")["pixel_values"][0])
    assert np.abs(apply(image, _load(folder).preprocess) - theirs).max() < 1e-5


def test_random_weights_are_reproducible(folder: Path) -> None:
    first, second = _load(folder, "random"), _load(folder, "random")
    assert (first.weights, first.digest) == ("random", second.digest)
    assert first.digest != _load(folder).digest
    assert _load(folder, "random", size=(64, 64)).preprocess.size == (64, 64)


def test_no_weights_is_an_error_that_names_random(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(SourceError, match="--weights random"):
        _load(folder)
    assert _load(folder, "random").weights == "random"


def test_a_head_that_would_be_random_is_refused(tmp_path: Path) -> None:
    config = transformers.ViTConfig(image_size=32, patch_size=8, **SMALL)
    transformers.ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**raw, "architectures": ["ViTForImageClassification"]}))
    with pytest.raises(SourceError, match=r"leave 2 tensors.*random.*classifier"):
        _load(tmp_path)


def test_generic_labels_and_missing_preprocessing(tmp_path: Path) -> None:
    config = transformers.ViTConfig(image_size=32, patch_size=8, num_labels=4, **SMALL)
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path)
    model = _load(tmp_path)
    assert model.labels is None
    assert model.preprocess.size == (32, 32)


def test_sizes_that_do_not_fit(folder: Path) -> None:
    with pytest.raises(SourceError, match="Use --image-size 32x32 or 40x40"):
        _load(folder, size=(33, 33))
    with pytest.raises(SourceError, match="does not take images of 64x64"):
        _load(folder, size=(64, 64))


def test_attention_implementation_is_passed_on(folder: Path) -> None:
    model = _load(folder, attn_implementation="eager")
    assert model.module is not None
    assert model.module.config._attn_implementation == "eager"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"trust_remote_code": True}, "Only python:"),
        ({"hiden_size": 3}, "no 'hiden_size'"),
        ({"dtype": "x"}, "--precision"),
    ],
)
def test_kwargs_that_are_refused(folder: Path, kwargs: dict[str, object], message: str) -> None:
    with pytest.raises(SourceError, match=message):
        _load(folder, **kwargs)


def test_folders_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no config\.json"):
        _load(tmp_path)
    with pytest.raises(SourceError, match="there is no folder"):
        _load(tmp_path / "missing")


def test_code_in_the_folder_is_not_run(folder: Path) -> None:
    marker = folder / "marker"
    (folder / "evil.py").write_text(f"open({str(marker)!r}, 'w')\n")
    raw = json.loads((folder / "config.json").read_text())
    raw.update(model_type="evil", auto_map={"AutoConfig": "evil.C", "AutoModelForImageClassification": "evil.M"})
    (folder / "config.json").write_text(json.dumps(raw))
    with pytest.raises(SourceError):
        _load(folder)
    assert not marker.exists()


def test_a_folder_never_asks_the_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(endpoint: str) -> bool:
        raise AssertionError(endpoint)

    monkeypatch.setattr("vitdeploy.sources._hub._answers", asked)
    assert _load(folder).weights == "pretrained"


def test_offline_pretrained_fails_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    started = time.perf_counter()
    with pytest.raises(SourceError, match="hub does not answer"):
        load(ModelSpec(spec="hf:google/vit-no-such-model"))
    assert time.perf_counter() - started < 15


@pytest.mark.parametrize(
    ("processor", "size", "resize", "crop_pct"),
    [
        ({"size": {"height": 256, "width": 256}, "crop_size": {"height": 224, "width": 224}, "do_center_crop": True},
         (224, 224), "exact", 0.875),
        ({"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}, "do_center_crop": True},
         (224, 224), "shortest", 0.875),
        ({"size": {"shortest_edge": 224}, "crop_pct": 0.875}, (224, 224), "shortest", 0.875),
        ({"size": {"shortest_edge": 384}}, (384, 384), "letterbox", 1.0),
        ({"size": {"shortest_edge": 384}, "crop_pct": 0.875}, (384, 384), "exact", 1.0),
    ],
)  # fmt: skip
def test_all_forms_of_size(processor: dict[str, object], size: tuple[int, int], resize: str, crop_pct: float) -> None:
    found = preprocess_of("x", processor, object(), None)
    assert (found.size, found.resize, found.crop_pct) == (size, resize, crop_pct)


def test_rescaling_is_folded_into_the_statistics() -> None:
    found = preprocess_of(
        "x", {"rescale_factor": 1 / 127.5, "image_mean": [1, 1, 1], "image_std": [1, 1, 1]}, object(), (8, 8)
    )
    assert found.mean == pytest.approx((0.5,) * 3)
    assert found.std == pytest.approx((0.5,) * 3)


def test_loading_draws_nothing_over_what_vitdeploy_says(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from transformers.utils import logging

    logging.enable_progress_bar()
    load(ModelSpec(spec=f"hf:{folder}"))
    assert "%" not in capfd.readouterr().err
    assert logging.is_progress_bar_enabled(), "whoever else uses transformers here keeps its bars"
