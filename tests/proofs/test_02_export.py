"""The comparison of pixels in export, manifest and inspect; masks and maps of letterboxed pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vitdeploy.data.opening import open_dataset
from vitdeploy.data.preprocess import apply, normalize, to_pixels
from vitdeploy.recipe import ModelSpec, Preprocess, compose
from vitdeploy.session import Array

transformers = pytest.importorskip("transformers")

from vitdeploy import sources  # noqa: E402
from vitdeploy.artifact import load as load_artifact  # noqa: E402
from vitdeploy.commands.export import export  # noqa: E402
from vitdeploy.commands.inspect.inspect import inspect  # noqa: E402
from vitdeploy.errors import SourceError  # noqa: E402
from vitdeploy.frozen import replace  # noqa: E402
from vitdeploy.progress import Silent  # noqa: E402
from vitdeploy.tasks.depth import Depth  # noqa: E402
from vitdeploy.tasks.segmentation import Segmentation  # noqa: E402

SMALL = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
HALF = [0.5, 0.5, 0.5]


def _save_vit(folder: Path, processor: dict[str, Any]) -> str:
    config = transformers.ViTConfig(image_size=32, patch_size=8, num_labels=3, **SMALL)
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return f"hf:{folder}"


def test_the_result_is_in_the_manifest_and_shown(tmp_path: Path) -> None:
    size = {"height": 32, "width": 32}
    spec = _save_vit(tmp_path / "m", {"image_processor_type": "ViTImageProcessor", "size": size, "do_normalize": False})
    summary = export(compose(spec, target="onnxruntime"), tmp_path / "a", Silent()).summary
    artifact = load_artifact(tmp_path / "a")
    pixels = artifact.manifest.pixels
    assert pixels is not None
    assert pixels.equal
    assert pixels.processor.startswith("ViTImageProcessor of transformers")
    assert inspect(artifact).pixels == summary.pixels == pixels
    assert artifact.manifest.preprocess.mean == (0, 0, 0)


def test_another_preprocessing_is_refused_or_requested(tmp_path: Path) -> None:
    owl = {"image_processor_type": "Owlv2ImageProcessor", "size": {"height": 32, "width": 32}}
    recipe = compose(_save_vit(tmp_path / "m", owl), target="onnxruntime")
    with pytest.raises(SourceError, match="cannot give the pixels of Owlv2ImageProcessor") as error:
        export(recipe, tmp_path / "a", Silent())
    assert "preprocess:" in str(error.value.fix)
    assert "\n" not in error.value.message
    assert not (tmp_path / "a").exists()
    requested = replace(recipe, preprocess=Preprocess(size=(32, 32), resize="letterbox", padding="end"))
    summary = export(requested, tmp_path / "a", Silent()).summary
    assert summary.pixels is not None
    assert summary.pixels.equal is False
    assert any("as requested, not the pixels of Owlv2ImageProcessor" in note for note in summary.notes)


def test_a_damaged_processor_is_not_replaced_by_imagenet(tmp_path: Path) -> None:
    spec = _save_vit(tmp_path, {"image_processor_type": "NoSuchImageProcessor"})
    with pytest.raises(SourceError, match=r"image processor of hf:.* cannot be loaded"):
        sources.load(ModelSpec(spec=spec))


@pytest.mark.parametrize("size", [(64, 64), (48, 48)])
def test_another_size_is_asked_of_the_processor_too(tmp_path: Path, size: tuple[int, int]) -> None:
    crop = {"shortest_edge": 36}, {"height": 32, "width": 32}
    spec = _save_vit(tmp_path, {"image_processor_type": "CLIPImageProcessor", "size": crop[0], "crop_size": crop[1]})
    model = sources.load(ModelSpec(spec=spec, weights="random"), size=size)
    assert model.preprocess.size == size
    assert model.processor is not None
    from vitdeploy.data.pixel_check import compare_pixels

    assert compare_pixels(model.processor, model.preprocess).equal


@pytest.fixture(scope="module")
def detr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DETR with a small backbone, and a processor that pads and gives a mask."""
    folder = tmp_path_factory.mktemp("detr")
    backbone = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], layer_type="basic", out_features=["stage4"]
    )
    config = transformers.DetrConfig(
        backbone_config=backbone, use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, num_queries=5,
        d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=16, decoder_ffn_dim=16, num_labels=3,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.DetrForObjectDetection(config).save_pretrained(folder)
    edges = {"shortest_edge": 64, "longest_edge": 96}
    processor = {"image_processor_type": "DetrImageProcessor", "size": edges}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def _picture(height: int, width: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height))


@pytest.mark.parametrize(("height", "width"), [(80, 120), (120, 80), (51, 33)])
def test_the_mask_of_the_padding_reaches_the_model(detr: Path, height: int, width: int) -> None:
    """The letterboxed model gives what transformers gives for the picture, padded to the same size with its mask."""
    model = sources.load(ModelSpec(spec=f"hf:{detr}"))
    assert (model.preprocess.size, model.preprocess.mask, model.preprocess.planes) == ((96, 96), True, 4)
    picture = _picture(height, width)
    own = transformers.DetrImageProcessor.from_pretrained(detr)
    theirs = own(picture, return_tensors="pt", pad_size={"height": 96, "width": 96})
    plain = transformers.DetrForObjectDetection.from_pretrained(detr).eval()
    assert model.module is not None
    with torch.inference_mode():
        expected = plain(**theirs)
        found = model.module(torch.tensor(apply(picture, model.preprocess))[None])
        unmasked = plain(pixel_values=theirs["pixel_values"])
    assert torch.allclose(found.logits, expected.logits, atol=2e-3)
    assert not torch.allclose(unmasked.logits, expected.logits, atol=4e-3), "the mask changes nothing here"


@pytest.mark.parametrize("form", ["normalized", "uint8"])
def test_an_artifact_with_a_mask_is_exported(detr: Path, tmp_path: Path, form: str) -> None:
    from vitdeploy.commands.predict import Deployed

    recipe = compose(f"hf:{detr}", target="onnxruntime", input_form=form)
    export(recipe, tmp_path / "a", Silent())
    picture = np.asarray(_picture(80, 120))
    model = sources.load(ModelSpec(spec=f"hf:{detr}"))
    assert model.module is not None
    with torch.inference_mode():
        expected = model.module(torch.tensor(apply(picture, model.preprocess))[None]).pred_boxes.numpy()
    with Deployed(tmp_path / "a") as deployed:
        assert deployed.artifact.manifest.inputs[0].shape[1:] == (4, 96, 96)
        pixels = to_pixels(picture, model.preprocess)[None]
        feed = pixels if form == "uint8" else normalize(pixels, model.preprocess)
        outputs = deployed.run(feed)
    assert np.abs(outputs["pred_boxes"] - expected).max() < 1e-3


def test_squashing_only_where_asked(detr: Path) -> None:
    model = sources.load(ModelSpec(spec=f"hf:{detr}", resize="exact"))
    assert (model.preprocess.resize, model.preprocess.size, model.preprocess.mask) == ("exact", (64, 64), False)


EVALUATION = "evaluation"
LETTERBOX = Preprocess(size=(64, 64), resize="letterbox", interpolation="nearest", padding="end")


def _scenes(root: Path, labels: str) -> Array:
    """Pictures of two colours, and labels for each pixel."""
    (root / "images").mkdir(parents=True)
    (root / labels).mkdir()
    classes = np.zeros((40, 100), np.uint8)
    classes[:, 37:] = 1
    classes[30:] = 2
    for name, label in (("wide", classes), ("tall", classes.T)):
        Image.fromarray(np.stack([label * 100] * 3, axis=-1)).save(root / "images" / f"{name}.png")
        if labels == "masks":
            Image.fromarray(label).save(root / labels / f"{name}.png")
        else:
            np.save(root / labels / f"{name}.npy", (label + 1).astype(np.float32))
    return classes


@pytest.mark.parametrize("padding", ["end", "centre"])
def test_maps_of_letterboxed_pictures_are_mapped_back(tmp_path: Path, padding: str) -> None:
    """A perfect model reaches 100 %: its padding is cut off, and what is left has the size of the label."""
    preprocess = Preprocess.model_validate({**LETTERBOX.model_dump(), "padding": padding})
    _scenes(tmp_path / "s", "masks")
    dataset = open_dataset(
        str(tmp_path / "s"), preprocess, labels=None, need_labels=True, split=EVALUATION, form="masks"
    )
    samples = list(dataset)
    truth = [np.rint(sample.image[0] / 100).astype(int) for sample in samples]
    scores = np.stack([np.stack([seen == c for c in range(3)]) for seen in truth]).astype(np.float32)
    labels = [sample.label for sample in samples]
    metrics = Segmentation().aggregate(Segmentation().statistics({"logits": scores}, labels).values)  # type: ignore[arg-type]
    assert metrics["miou"] > 93  # a border can be wrong by a pixel
    _scenes(tmp_path / "d", "depth")
    dataset = open_dataset(
        str(tmp_path / "d"), preprocess, labels=None, need_labels=True, split=EVALUATION, form="depth"
    )
    samples = list(dataset)
    maps = np.stack([sample.image[0] / 100 + 1 for sample in samples]).astype(np.float32)
    depth = Depth().aggregate(Depth().statistics({"predicted_depth": maps}, [s.label for s in samples]).values)  # type: ignore[misc]
    assert depth["abs_rel"] < 3


def test_answers_for_a_picture_leave_the_padding_out() -> None:
    """Of a picture of 20 x 80 only the upper quarter of the input shows it; the rest is padding."""
    scores = np.zeros((1, 2, 16, 16), np.float32)
    scores[0, 0, :4] = 1
    scores[0, 1, 4:] = 1
    answer = Segmentation().describe({"logits": scores}, None, (0, 0, 80, 80), (20, 80))
    assert [(region.index, region.share) for region in answer.regions] == [(0, 1.0)]
    depth = Depth().describe({"predicted_depth": scores[:, 1]}, None, (0, 0, 80, 80), (20, 80)).depth
    assert depth is not None
    assert (depth.nearest, depth.farthest) == (0, 0)
