"""The section on merged and dropped tokens."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
from PIL import Image

from tests.render.html.subjects import manifest, subject
from vitdeploy.artifact import FewerTokens, Parity
from vitdeploy.render.html import render, tokens
from vitdeploy.render.html.page import compose
from vitdeploy.render.html.parts import Missing, Section
from vitdeploy.render.html.tokens import PatchGroups, TokenGroups
from vitdeploy.session import Array

GAP = Missing("left out", "vitdeploy report deit")
PARITY = Parity(max_abs=0.0, reference_max=1.0, cosine=1.0, finite=True, batches=(1,))
SIDE = 96  # pixels of a patch in a grid of 2 × 2: 192 in all


def large(colour: tuple[int, int, int]) -> Array:
    return np.full((64, 64, 3), colour, np.uint8)


PICTURE = np.concatenate(
    [
        np.concatenate([large((200, 0, 0)), large((100, 0, 0))], axis=1),
        np.concatenate([large((0, 0, 200)), large((0, 40, 0))], axis=1),
    ]
)


def groups(*numbers: int, picture: Array = PICTURE) -> TokenGroups:
    return TokenGroups("val", (picture,), (PatchGroups(3, np.array(numbers).reshape(1, 2, 2)),))


def drawn(section: Section) -> list[Array]:
    """The pictures of the section: for each image the image, then each step."""
    part = section.parts[0]
    assert part.kind == "drawing"
    encoded = re.findall(r"base64,([^\"]+)", part.body)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(one))).convert("RGB")) for one in encoded]


def test_patches_of_one_token_have_their_mean_colour_and_one_outline() -> None:
    section = tokens.section(groups(0, 0, 1, 2), GAP)
    _, picture = drawn(section)
    assert picture.shape == (2 * SIDE, 2 * SIDE, 3)
    merged = picture[4 : SIDE - 4, 4 : 2 * SIDE - 4].reshape(-1, 3)
    assert np.unique(merged, axis=0).tolist() == [[150, 0, 0]], "no outline between patches of one token"
    outline = np.unique(picture[0], axis=0)
    assert len(outline) == 1
    assert (picture[SIDE - 1] == outline[0]).all()
    assert not (picture[SIDE:] == outline[0]).all(axis=-1).any(), "a patch alone has none"
    assert picture[SIDE + SIDE // 2, SIDE // 2].tolist() == [0, 0, 200]
    start, end = "Of 4 patches, 3 tokens are left behind block 3: ", "merged with those that are most like them."
    assert section.lede == f"{start}the others are {end}"


def test_tokens_apart_have_the_same_outline_and_others_another() -> None:
    _, apart = drawn(tokens.section(groups(0, 1, 1, 0), GAP))
    corners = [apart[0, 0], apart[-1, -1], apart[0, -1], apart[-1, 0]]
    assert corners[0].tolist() == corners[1].tolist() != corners[2].tolist() == corners[3].tolist()


def test_dropped_patches_are_dark() -> None:
    section = tokens.section(groups(0, -1, 1, 2), GAP)
    _, picture = drawn(section)
    assert picture[SIDE // 2, SIDE // 2].tolist() == [200, 0, 0]
    assert picture[SIDE // 2, SIDE + SIDE // 2].tolist() == [20, 0, 0]
    assert "Dark patches are dropped." in section.parts[0].body  # type: ignore[union-attr]
    assert "block 3: 3 left" in section.parts[0].body  # type: ignore[union-attr]


def test_grey_images_are_drawn_too() -> None:
    grey = PICTURE[..., :1]
    assert drawn(tokens.section(groups(0, 0, 1, 2, picture=grey), GAP))[1].shape == (2 * SIDE, 2 * SIDE, 3)


def test_only_a_model_with_fewer_tokens_has_the_section() -> None:
    fewer = subject(manifest=manifest(tokens=FewerTokens(merged={3: 1}, parity=PARITY)))
    whole = compose(subject(), None)
    assert "tokens" not in [section.name for section in whole.sections]
    page = compose(fewer, None, groups(0, 0, 1, 2))
    assert [section.name for section in page.sections][3:5] == ["fusion", "tokens"]
    assert "behind block 3: 3 tokens of 4 patches" in render(page)
    (gap,) = [section.missing for section in compose(fewer, None).sections if section.name == "tokens"]
    assert gap is not None
    assert gap.fix
