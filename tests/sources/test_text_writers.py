"""Image encoders of models that write text: what the decoder reads, and no decoder."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

transformers = pytest.importorskip("transformers")

from tests.cli.conftest import run  # noqa: E402
from tests.toys import text_writers, two_towers  # noqa: E402
from vitdeploy.errors import SourceError  # noqa: E402
from vitdeploy.recipe import ModelSpec  # noqa: E402
from vitdeploy.sources import LoadedModel, load  # noqa: E402

GRID = (64, 96)
SIZES = {"florence2": (64, 64), "qwen2_vl": GRID, "qwen2_5_vl": GRID}
ALL = ("trocr", "donut", "blip", "llava", "florence2", "qwen2_vl", "qwen2_5_vl")


def _save(name: str, folder: Path) -> Path:
    return text_writers.save(getattr(text_writers, name), folder)


def _load(folder: Path, name: str, **spec: Any) -> LoadedModel:
    return load(ModelSpec(spec=f"hf:{folder}", **{"part": "encoder", **spec}), size=SIZES.get(name))


def _expected(name: str, folder: Path, pixels: torch.Tensor) -> torch.Tensor:
    """What the model's own code gives its decoder."""
    kind: Any = getattr(transformers, json.loads((folder / "config.json").read_text())["architectures"][0])
    whole = kind.from_pretrained(folder).eval()
    with torch.inference_mode():
        if name in ("trocr", "donut"):
            features: Any = whole.encoder(pixels).last_hidden_state
        elif name == "blip":
            features = whole.vision_model(pixels).last_hidden_state
        else:
            features = whole.get_image_features(pixels).pooler_output
    return features if isinstance(features, torch.Tensor) else torch.stack(list(features))


@pytest.mark.parametrize("name", [name for name in ALL if not name.startswith("qwen")])
def test_the_encoder_gives_what_its_decoder_reads(name: str, tmp_path: Path) -> None:
    model = _load(_save(name, tmp_path), name)
    assert model.module is not None and model.task is not None and model.task.kind == "raw"
    images = torch.randn(2, 3, *model.preprocess.size, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        features = model.module(images)["image_features"]
    torch.testing.assert_close(features, _expected(name, tmp_path, images), rtol=1e-5, atol=1e-5)
    names = [name for name, _ in model.module.named_parameters()]
    assert not [name for name in names if re.search(r"decoder|language_model|text|lm_head|shared", name)]


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl"])
def test_patches_are_cut_as_the_processor_cuts_them(name: str, tmp_path: Path) -> None:
    """The processor of Qwen2-VL makes patches and their grid of two images; here the model gets the images."""
    model = _load(_save(name, tmp_path), name)
    assert model.module is not None
    pictures = np.random.default_rng(0).integers(0, 256, (2, *GRID, 3), np.uint8)
    processor: Any = transformers.Qwen2VLImageProcessor(patch_size=8, merge_size=2, min_pixels=64, max_pixels=1 << 20)
    own = processor(images=list(pictures), return_tensors="pt")
    assert own["image_grid_thw"].tolist() == [[1, 8, 12]] * 2
    kind: Any = getattr(transformers, json.loads((tmp_path / "config.json").read_text())["architectures"][0])
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (processor.image_mean, processor.image_std))
    images = (torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255 - mean) / std
    with torch.inference_mode():
        whole = kind.from_pretrained(tmp_path).eval()
        expected = torch.stack(list(whole.get_image_features(own["pixel_values"], own["image_grid_thw"]).pooler_output))
        features = model.module(images)["image_features"]
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "target", "sites"),
    [
        ("trocr", "openvino", 2),
        ("qwen2_5_vl", "openvino", 7),  # six windows, and all of the image
        pytest.param("qwen2_vl", "onnxruntime", 2, marks=pytest.mark.slow),
        pytest.param("llava", "onnxruntime", 1, marks=pytest.mark.slow),  # it reads the layer before the last
        pytest.param("florence2", "onnxruntime", 8, marks=pytest.mark.slow),
    ],
)
def test_an_encoder_is_exported_with_all_of_its_attention(name: str, target: str, sites: int, tmp_path: Path) -> None:
    folder, out = _save(name, tmp_path / "model"), tmp_path / "out"
    size = SIZES.get(name)
    sized = [] if size is None else ["--image-size", f"{size[0]}x{size[1]}"]
    ended = run("export", f"hf:{folder}", "--part", "encoder", "--target", target, *sized, "-o", out, "--json",
                "--no-cache")  # fmt: skip
    assert ended.code == 0, ended.err
    parity = json.loads(ended.out)["parity"]
    assert [(o["name"], o["cosine"] > 0.9999) for o in parity["outputs"]] == [("image_features", True)]
    attention = json.loads((out / "audit.json").read_text())["attention"]
    assert (attention["sites"], attention["fused"]) == (sites, sites)


def test_a_model_that_writes_text_is_refused_whole(tmp_path: Path) -> None:
    for name, part in (("trocr", None), ("llava", None), ("blip", "decoder")):
        folder = _save(name, tmp_path / name)
        with pytest.raises(SourceError, match=r"writes text word by word.*--part encoder"):
            _load(folder, name, part=part)


def test_models_without_parts(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"\(CLIPModel\) has no parts: it is exported whole. Leave out --part"):
        _load(two_towers.save_clip(tmp_path), "clip")
    with pytest.raises(SourceError, match="demo:digits has no parts"):
        load(ModelSpec(spec="demo:digits", part="encoder"))


def test_an_encoder_of_a_grid_needs_a_size_that_fits(tmp_path: Path) -> None:
    spec = ModelSpec(spec=f"hf:{_save('qwen2_vl', tmp_path)}", part="encoder")
    with pytest.raises(SourceError, match="Give --image-size HxW, multiples of 16"):
        load(spec)
    with pytest.raises(SourceError, match="squares of 16 pixels, and 64x88 is no multiple"):
        load(spec, size=(64, 88))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("llava_next", "takes image_sizes beside the image"),
        ("qwen3_vl", "takes patches and their grid, in a form that vitdeploy does not know"),
        ("idefics3", "fails on one image of 32x32: ValueError: not enough values to unpack"),
    ],
)
def test_an_encoder_that_needs_more_than_an_image_is_refused(name: str, reason: str, tmp_path: Path) -> None:
    folder = _save(name, tmp_path)
    with pytest.raises(SourceError, match=f"the image encoder of hf:.*ForConditionalGeneration. {reason}.*FACTORY"):
        _load(folder, name)
