"""One preprocessing, with the numbers of timm's and torchvision's evaluation transforms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitdeploy.data.preprocess import apply, normalize, open_image, to_input, to_pixels
from vitdeploy.errors import DataError
from vitdeploy.recipe import Preprocess

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _image(height: int, width: int, seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


@pytest.mark.parametrize("source", [(300, 400), (413, 251), (224, 224), (97, 180), (256, 256)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(
    ("size", "crop_pct", "mode"),
    [
        ((224, 224), 0.9, "center"),
        ((224, 224), 0.875, "center"),
        ((224, 224), 1.0, "center"),
        ((96, 160), 0.95, "center"),
        ((224, 224), 1.0, "squash"),
        ((128, 160), 0.9, "squash"),
    ],
)
def test_parity_with_timm(
    source: tuple[int, int], interpolation: str, size: tuple[int, int], crop_pct: float, mode: str
) -> None:
    from timm.data import create_transform

    transform = create_transform(
        (3, *size), interpolation=interpolation, mean=MEAN, std=STD, crop_pct=crop_pct, crop_mode=mode
    )
    ours = apply(
        _image(*source),
        Preprocess.model_validate(
            {
                "size": size,
                "interpolation": interpolation,
                "crop_pct": crop_pct,
                "resize": "exact" if mode == "squash" else "shortest",
            }
        ),
    )
    assert ours.dtype == np.float32
    assert ours.shape == (3, *size)
    assert np.abs(ours - transform(_image(*source)).numpy()).max() < 1e-5


@pytest.mark.parametrize("name", ["vit_b_16", "swin_t", "vit_h_14", "swin_v2_s"])
@pytest.mark.parametrize("source", [(300, 400), (413, 251)])
def test_parity_with_torchvision(name: str, source: tuple[int, int]) -> None:
    import torchvision

    from vitdeploy.sources.torchvision import read_preprocess

    weights = torchvision.models.get_model_weights(name).DEFAULT
    ours = apply(_image(*source), read_preprocess(name, weights, None))
    assert np.abs(ours - weights.transforms()(_image(*source)).numpy()).max() < 1e-5


def test_exif_orientation_is_followed(tmp_path: Path) -> None:
    image = _image(40, 60)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    image.save(tmp_path / "a.png", exif=exif)
    preprocess = Preprocess(size=(60, 40), resize="exact")
    turned = image.transpose(Image.Transpose.ROTATE_270)
    np.testing.assert_array_equal(apply(open_image(tmp_path / "a.png"), preprocess), apply(turned, preprocess))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1", "LA"])
def test_every_mode_becomes_three_channels(mode: str) -> None:
    assert apply(_image(20, 20).convert(mode), Preprocess(size=(16, 16))).shape == (3, 16, 16)


def test_grey_is_replicated_and_colour_becomes_luma() -> None:
    grey = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    plain = Preprocess(size=(8, 8), mean=(0, 0, 0), std=(1, 1, 1))
    colours = apply(grey, plain)
    np.testing.assert_array_equal(colours, np.stack([grey.astype(np.float32) / np.float32(255)] * 3))
    one = Preprocess(size=(8, 8), mean=(0,), std=(1,), channels=1)
    red = np.zeros((8, 8, 3), dtype=np.uint8)
    red[..., 0] = 255
    assert apply(red, one) == pytest.approx(np.full((1, 8, 8), 76 / 255))


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    deep = Image.fromarray(np.array([[0, 32768], [65535, 257]], dtype=np.uint16))
    one = Preprocess(size=(2, 2), mean=(0,), std=(1,), channels=1)
    np.testing.assert_allclose(apply(deep, one)[0] * 255, [[0, 127], [255, 1]], atol=0.01)


@pytest.mark.parametrize("suffix", ["png", "tiff", "ppm"])
def test_dark_sixteen_bit_grey_has_the_scale_of_the_others(tmp_path: Path, suffix: str) -> None:
    one = Preprocess(size=(2, 2), mean=(0,), std=(1,), channels=1)
    for level in (250, 260):
        path = tmp_path / f"{level}.{suffix}"
        Image.fromarray(np.full((2, 2), level, np.uint16)).save(path)
        assert to_pixels(open_image(path), one).max() == level // 257


@pytest.mark.parametrize(
    ("values", "grey"), [([0, 0.2, 0.6, 1], [0, 51, 153, 255]), ([0, 2, 99, 255], [0, 2, 99, 255])]
)
def test_floats_are_shares_or_bytes(tmp_path: Path, values: list[float], grey: list[int]) -> None:
    Image.fromarray(np.array([values], np.float32)).save(tmp_path / "a.tiff")
    one = Preprocess(size=(1, 4), mean=(0,), std=(1,), channels=1)
    assert to_pixels(open_image(tmp_path / "a.tiff"), one).ravel().tolist() == grey


@pytest.mark.parametrize(
    "array", [np.zeros((4, 4), np.float32), np.zeros((4, 4, 2), np.uint8), np.zeros((0, 4), np.uint8)]
)
def test_arrays_that_are_no_images(array: np.ndarray) -> None:
    with pytest.raises(DataError, match="is not an image"):
        apply(array, Preprocess(size=(4, 4)))


def test_files_that_are_no_images(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no image"):
        open_image(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("hello")
    with pytest.raises(DataError, match="is not an image"):
        open_image(tmp_path / "b.png")
    _image(64, 64).save(tmp_path / "c.png")
    whole = (tmp_path / "c.png").read_bytes()
    (tmp_path / "c.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="damaged"):
        open_image(tmp_path / "c.png")


def test_the_forms_of_input_are_the_same_image() -> None:
    preprocess = Preprocess(size=(6, 8))
    raw = to_pixels(_image(20, 30), preprocess)
    assert (raw.shape, raw.dtype) == ((3, 6, 8), np.uint8)
    np.testing.assert_array_equal(to_input(raw, preprocess, "normalized"), apply(_image(20, 30), preprocess))
    np.testing.assert_array_equal(to_input(raw, preprocess, "uint8"), raw)
    as_float = to_input(raw, preprocess, "pixels")
    assert as_float.dtype == np.float32
    np.testing.assert_array_equal(as_float, raw)
    batch = np.stack([raw, raw])
    np.testing.assert_array_equal(normalize(batch, preprocess)[1], normalize(raw, preprocess))


def test_a_thin_image_is_refused_before_it_is_enlarged() -> None:
    """Its shorter side becomes 256, so its longer one 16 million."""
    with pytest.raises(DataError, match="65536x1 pixels becomes 16777216x256 by its preprocessing"):
        apply(np.zeros((1, 65536), np.uint8), Preprocess(size=(256, 256)))
