"""Attention of FP32 and of an artifact on the same images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from vitdeploy.artifact import Artifact
from vitdeploy.commands.report import attention_maps as looking
from vitdeploy.commands.report.attention_maps import attention_maps, patch_grid
from vitdeploy.errors import DataError, GraphError
from vitdeploy.frozen import replace
from vitdeploy.progress import Silent
from vitdeploy.recipe import DataSpec


@pytest.mark.parametrize(
    ("keys", "size", "grid"),
    [
        (197, (224, 224), (1, 14, 14)),  # ViT: a class token
        (198, (224, 224), (2, 14, 14)),  # DeiT, distilled
        (196, (224, 224), (0, 14, 14)),
        (1374, (518, 518), (5, 37, 37)),  # DINOv2 with registers
        (49, (224, 224), (0, 7, 7)),
        (129, (64, 128), (1, 8, 16)),
        (1, (224, 224), None),
        (230, (224, 224), (5, 15, 15)),
        (254, (224, 224), None),
    ],
)
def test_the_patches_are_found_among_the_tokens(
    keys: int, size: tuple[int, int], grid: tuple[int, int, int] | None
) -> None:
    assert patch_grid(keys, size) == grid


def test_a_map_is_what_the_first_token_attends_to() -> None:
    probabilities = np.zeros((1, 2, 5, 5), np.float32)
    probabilities[0, :, 0] = [0.2, 0.1, 0.2, 0.3, 0.2]
    probabilities[0, :, 1:, 0] = 1.0
    moved = probabilities.copy()
    moved[0, 1, 0] = [0.2, 0.3, 0.2, 0.1, 0.2]
    found = looking._make_pair(probabilities, moved, (32, 32))
    assert found.on_image
    assert found.reference == pytest.approx(np.array([[0.1, 0.2], [0.3, 0.2]]))
    assert found.deployed == pytest.approx(np.array([[0.2, 0.2], [0.2, 0.2]]))
    assert found.drift == pytest.approx([0.0, 0.2 / 5]), "of five queries one moved 0.2 of its weight"


def test_windows_are_shown_as_queries_and_keys() -> None:
    windows = np.full((4, 2, 3, 3), 1 / 3, np.float32)
    found = looking._make_pair(windows, windows, (32, 32))
    assert not found.on_image
    assert found.what == "queries × keys, mean over heads and 4 windows"
    assert found.reference.shape == (3, 3)


def test_large_matrices_are_averaged_down() -> None:
    found = looking._shrink(np.arange(600.0 * 600).reshape(600, 600))
    assert found.shape == (200, 200)
    assert found.mean() == pytest.approx(np.arange(600.0 * 600).mean())


def test_sides_of_different_shape_are_refused() -> None:
    with pytest.raises(GraphError, match=r"FP32 has shape \(1, 2, 5, 5\), that of the artifact \(1, 2, 4, 4\)"):
        looking._make_pair(np.zeros((1, 2, 5, 5)), np.zeros((1, 2, 4, 4)), (32, 32))


@pytest.mark.parametrize(
    ("target", "precision", "most"),
    [
        ("onnxruntime", "fp32", 1e-4),
        ("onnxruntime", "int8", 0.05),
        ("openvino", "int8", 0.05),
        ("tensorrt", "fp16", 1e-2),
    ],
)
def test_attention_of_an_artifact_stays_near_fp32(
    target: str, precision: str, most: float, demo: Callable[..., Artifact]
) -> None:
    found = attention_maps(demo(target=target, precision=precision), None, 2, Silent())
    assert (found.data, len(found.images), len(found.sites)) == ("demo:digits", 2, 4)
    assert found.images[0].shape == (32, 32, 1)
    assert found.left_out == ()
    for site in found.sites:
        assert site.reference.shape == site.deployed.shape == (2, 8, 8)
        assert site.drift.shape == (3,)
        assert site.drift.max() < most
        assert (site.drift.max() > 1e-4) == (precision != "fp32"), "what is compared is the artifact, not FP32 twice"
        assert 0.9 < site.reference[0].sum() <= 1


def test_an_artifact_that_takes_pixels_is_fed_pixels(demo: Callable[..., Artifact]) -> None:
    artifact = demo(target="openvino", input_form="uint8", batch="2")
    found = attention_maps(artifact, None, 1, Silent())
    assert max(site.drift.max() for site in found.sites) < 1e-4
    without_data = replace(artifact.manifest.recipe, data=DataSpec())
    without = dataclasses.replace(artifact, manifest=replace(artifact.manifest, recipe=without_data), digest="")
    with pytest.raises(DataError, match="Give --data DATA"):
        attention_maps(without, None, 1, Silent())
