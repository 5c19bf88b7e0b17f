"""The pictures of samples with different answers."""

import pytest

from tests.evidence import evaluation
from tests.render.html.subjects import subject
from vitdeploy.evidence import Flip
from vitdeploy.frozen import replace
from vitdeploy.render.html.flips import parts
from vitdeploy.render.html.parts import Drawing


@pytest.mark.parametrize(
    ("shown", "flips", "caption"),
    [
        (1, 1, "The image with different answers, as the model sees it."),
        (2, 2, "The 2 images with different answers, as the model sees them; those first that only FP32 gets right."),
        (1, 1200, "1 of the 1,200 images with different answers, as the model sees them;"),
    ],
)
def test_the_caption_says_how_many_of_them_are_shown(shown: int, flips: int, caption: str) -> None:
    flip = Flip(name="a.png", agreement=0.0)
    drawing, *_ = parts(subject(evaluation=replace(evaluation(), flips=flips, flipped=(flip,) * shown)))
    assert isinstance(drawing, Drawing)
    assert drawing.caption.startswith(caption)
