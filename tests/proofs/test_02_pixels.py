"""Preprocessing is the checkpoint's own: equal within rounding, or refused with the difference."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vitdeploy.data.geometry import place
from vitdeploy.data.pixel_check import OwnProcessor, compare_pixels
from vitdeploy.data.preprocess import apply
from vitdeploy.frozen import replace
from vitdeploy.recipe import Preprocess
from vitdeploy.session import Array

transformers = pytest.importorskip("transformers")

from vitdeploy.sources._hf_processor import read_processor  # noqa: E402

EDGES = {"shortest_edge": 80, "longest_edge": 133}
WERE_OTHER: dict[str, dict[str, Any]] = {
    "GLPNImageProcessor": {},  # only rescaled: got ImageNet's mean and std
    "MobileViTImageProcessor": {},  # blue first, only rescaled, padded by the crop: got ImageNet's mean and std
    "LevitImageProcessor": {},  # resized to 256 / 224 times its edge: got another crop
    "PoolFormerImageProcessor": {},  # crop_pct beside crop_size: got another crop
    "EfficientNetImageProcessor": {},  # std twice
    "ConvNextImageProcessor": {},  # squashed from 384 on: got a crop
    "SamImageProcessor": {},  # padded: lost its padding
    "DetrImageProcessor": {"size": EDGES},  # all of these were squashed
    "YolosImageProcessor": {"size": EDGES},
    "RfDetrImageProcessor": {"size": EDGES},
    "Mask2FormerImageProcessor": {"size": EDGES},
    "OneFormerImageProcessor": {"size": EDGES},
    "EomtImageProcessor": {"size": {"shortest_edge": 64, "longest_edge": 64}, "do_pad": True},
    "GroundingDinoImageProcessor": {"size": EDGES},
}
STAYED = ("ViTImageProcessor", "CLIPImageProcessor", "DINOv3ViTImageProcessor", "DPTImageProcessor")
KEPT_RATIO = ("Sam", "Detr", "Yolos", "RfDetr", "Mask2Former", "OneFormer", "Eomt", "GroundingDino", "GLPN")


def _read(name: str, sides: tuple[int, int] | None = None, **options: Any) -> tuple[OwnProcessor, Preprocess]:
    return read_processor("x", getattr(transformers, name)(**options), SimpleNamespace(), sides)


@pytest.mark.parametrize("name", [*WERE_OTHER, *STAYED])
def test_processors_have_their_own_pixels(name: str) -> None:
    size = (160, 192) if name == "GLPNImageProcessor" else None
    own, preprocess = _read(name, size, **WERE_OTHER.get(name, {}))
    check = compare_pixels(own, preprocess)
    assert check.equal, check.why
    assert len(check.images) >= 3
    assert (preprocess.resize == "letterbox") == name.startswith(KEPT_RATIO)


def test_convnext_below_384_is_cropped() -> None:
    own, preprocess = _read("ConvNextImageProcessor")
    assert preprocess.resize == "exact"
    own, preprocess = read_processor(
        "x", transformers.ConvNextImageProcessor(size={"shortest_edge": 96}), SimpleNamespace(), None
    )
    assert (preprocess.resize, preprocess.size) == ("shortest", (96, 96))
    assert compare_pixels(own, preprocess).equal


def test_the_pil_processors_are_the_same_to_the_last_digit() -> None:
    own, preprocess = _read("ViTImageProcessorPil")
    check = compare_pixels(own, preprocess)
    assert check.equal
    assert check.max_difference is not None
    assert check.max_difference < 1e-3
    assert "(pil)" in check.processor


@pytest.mark.parametrize(
    ("name", "size", "reason"),
    [
        ("Owlv2ImageProcessor", None, r"values differ by .*/255 in the mean, .* % of them by more than 1/255"),
        ("Siglip2ImageProcessor", (64, 64), "pixel_values of 1x256x768, not one image"),
        ("TextNetImageProcessor", None, "cannot be asked for the size"),
        ("PerceiverImageProcessor", None, "it gives 224x224 from an image of .*, not 256x256"),
    ],
)
def test_what_cannot_be_expressed_is_named(name: str, size: tuple[int, int] | None, reason: str) -> None:
    check = compare_pixels(*_read(name, size))
    assert check.equal is False
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(check.why)


def test_large_differences_are_plain_numbers() -> None:
    own, preprocess = _read("ViTImageProcessorPil")
    check = compare_pixels(own, replace(preprocess, mean=(0.0, 0.0, 0.0), std=(0.3, 0.3, 0.3)))
    assert re.search(r"values differ by \d+/255 in the mean, 100 % of them by more than 1/255", check.why)


@pytest.mark.parametrize(
    "change",
    [
        {"mean": (0.5, 0.5, 0.51)},
        {"std": (0.5, 0.5, 0.52)},
        {"channel_order": "bgr"},
        {"interpolation": "bicubic"},
        {"interpolation": "box"},
        {"resize": "shortest"},
        {"crop_pct": 0.98},
        {"size": (224, 240)},
        {"resize": "letterbox"},
    ],
)
def test_every_other_preprocessing_is_seen(change: dict[str, Any]) -> None:
    own, preprocess = _read("ViTImageProcessor")
    other = Preprocess.model_validate({**preprocess.model_dump(), **change})
    assert compare_pixels(own, preprocess).equal
    assert compare_pixels(own, other).equal is False


class _Shifted(OwnProcessor):
    """Ours, with a crop that is wrong by one pixel, or with another colour of the padding."""

    name = "shifted"

    def __init__(self, preprocess: Preprocess) -> None:
        self.preprocess = preprocess

    def apply(self, image: Any) -> Array:
        return apply(image, self.preprocess)


def test_a_crop_that_is_wrong_by_one_pixel_is_seen() -> None:
    preprocess = Preprocess(size=(64, 64), crop_pct=0.8)
    assert compare_pixels(_Shifted(preprocess), preprocess).equal
    shifted = Preprocess(size=(64, 64), resize_to=(82, 82))
    assert compare_pixels(_Shifted(shifted), preprocess).equal is False
    letterbox = Preprocess(size=(64, 64), resize="letterbox")
    black = Preprocess(size=(64, 64), resize="letterbox", fill=(0, 0, 0))
    assert compare_pixels(_Shifted(letterbox), letterbox).equal
    assert compare_pixels(_Shifted(black), letterbox).equal is False


def _random_sizes(count: int) -> list[tuple[int, int]]:
    generator = np.random.default_rng(2)
    return [tuple(int(v) for v in generator.integers(17, 2000, 2)) for _ in range(count)]  # type: ignore[misc]


def test_sides_are_rounded_as_transformers_rounds_them() -> None:
    from transformers.image_transforms import get_size_with_aspect_ratio
    from transformers.models.yolos.image_processing_yolos import get_size_with_aspect_ratio_yolos

    edges: dict[str, Any] = {"resize": "letterbox", "shortest_edge": 800, "longest_edge": 1333, "padding": "end"}
    detr = Preprocess(size=(1333, 1333), **edges)
    yolos = Preprocess(size=(1328, 1328), size_divisor=16, **edges)
    mask2former = Preprocess(size=(1344, 1344), size_divisor=32, size_rounding="up", **edges)
    sam = Preprocess(size=(1024, 1024), resize="letterbox", longest_edge=1024, size_rounding="nearest")
    for height, width in _random_sizes(2000):
        expected = get_size_with_aspect_ratio((height, width), 800, 1333)
        if min(expected) < 32:  # a multiple is at least one
            continue
        placements = [place(height, width, p) for p in (detr, yolos, mask2former, sam)]
        sizes = [(p.height, p.width) for p in placements]
        yolos_size = get_size_with_aspect_ratio_yolos((height, width), 800, 1333)
        ratio = height / width  # the class of YOLOS leaves portraits that need no resizing by a pixel, DETR's does not
        longest = transformers.SamImageProcessor()._get_preprocess_shape((height, width), 1024)
        assert sizes == [
            expected,
            yolos_size if round(1333 * min(ratio, 1 / ratio)) != min(height, width) else sizes[1],
            tuple(-(-side // 32) * 32 for side in expected),
            longest,
        ], (height, width)


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest", "lanczos", "box", "hamming"])
def test_timm_configs_are_the_same_to_the_last_digit(crop_mode: str, interpolation: str) -> None:
    from vitdeploy.sources.timm import make_processor, read_preprocess

    for size, crop_pct in (((96, 96), 0.875), ((96, 128), 0.9), ((65, 65), 1.0), ((64, 64), 1.15)):
        config = {
            "input_size": (3, *size), "interpolation": interpolation, "mean": (0.485, 0.456, 0.406),
            "std": (0.229, 0.224, 0.225), "crop_pct": crop_pct, "crop_mode": crop_mode,
        }  # fmt: skip
        check = compare_pixels(make_processor(config), read_preprocess(config))
        assert check.equal, check.why
        assert check.max_difference is not None
        assert check.max_difference < 1e-3


@pytest.mark.parametrize("name", ["vit_b_16", "maxvit_t", "swin_v2_t", "efficientnet_v2_m", "regnet_y_16gf"])
def test_torchvision_transforms_are_the_same(name: str) -> None:
    import torchvision

    from vitdeploy.sources.torchvision import make_processor, read_preprocess

    for weights in torchvision.models.get_model_weights(name):
        preprocess = read_preprocess(name, weights, None)
        check = compare_pixels(make_processor(weights, preprocess), preprocess)
        assert check.equal, check.why
        assert check.max_difference is not None
        assert check.max_difference < 1e-3


def test_segmentation_of_torchvision_is_letterboxed() -> None:
    import torchvision

    from vitdeploy.sources.torchvision import make_processor, read_preprocess

    weights = torchvision.models.get_model_weights("lraspp_mobilenet_v3_large").DEFAULT
    preprocess = read_preprocess("x", weights, (260, 390))
    check = compare_pixels(make_processor(weights, preprocess), preprocess)
    assert (check.equal, preprocess.resize) == (True, "letterbox")
    assert check.shrunk


def test_records_from_before_mean_what_they_meant() -> None:
    old = {
        "size": [24, 24], "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bicubic", "channels": 3,
        "resize": "shortest", "crop_pct": 0.875,
    }  # fmt: skip
    preprocess = Preprocess.model_validate(old)
    placement = place(50, 71, preprocess)
    assert (placement.height, placement.width, placement.top, placement.left) == (27, 38, 2, 7)
    assert preprocess.model_dump(exclude_defaults=True, mode="json").keys() <= old.keys()
