"""Made-up images look natural and come out the same each time."""

from __future__ import annotations

import numpy as np
import pytest

from vitdeploy.data.synthetic import natural_image
from vitdeploy.recipe import Preprocess


@pytest.mark.parametrize("size", [(64, 64), (33, 50)])
@pytest.mark.parametrize("channels", [1, 3])
def test_shape_and_determinism(size: tuple[int, int], channels: int) -> None:
    preprocess = Preprocess.model_validate(
        {"size": size, "channels": channels, "mean": (0.5,) * channels, "std": (0.5,) * channels}
    )
    images = natural_image(0, preprocess, 3)
    assert images.shape == (3, channels, *size)
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(images[:2], natural_image(0, preprocess, 2))
    assert not np.array_equal(images[0], images[1])
    assert not np.array_equal(images, natural_image(1, preprocess, 3))
    assert images.std() > 40


def test_neighbours_are_alike_as_in_photographs() -> None:
    image = natural_image(0, Preprocess(size=(64, 64)), 1)[0, 0]
    correlation = np.corrcoef(image[:, 1:].ravel(), image[:, :-1].ravel())[0, 1]
    assert 0.7 < correlation < 0.99
