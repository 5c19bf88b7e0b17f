"""Answers as pictures: in the right place, in colours that differ, with text that can be read."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from PIL import Image

from vitdeploy.evidence.predictions import Answer, Box, Depths, Guess, Instance, Keypoint, Region
from vitdeploy.render.pictures import draw_answer
from vitdeploy.render.pictures.canvas import font_size, line_width, load_font, name_class, shorten
from vitdeploy.render.pictures.colours import (
    colour_of_class,
    colours_of_classes,
    relative_luminance,
    scale_colours,
    text_on,
)
from vitdeploy.session import Array

TOP = tuple(Guess(index=i, label=label, probability=p) for i, (label, p) in enumerate([("cat", 0.7), ("dog", 0.2)]))


def pixels(picture: Image.Image) -> Array:
    return np.asarray(picture).astype(int)


def draw(picture: Image.Image, answer: Answer, values: Array | None = None, corner: tuple[int, int] = (0, 0)) -> Array:
    drawn = draw_answer(picture, answer, ["in words"], values, corner)
    assert drawn.mode == "RGB"
    return pixels(drawn)


def lightness(colours: Array) -> Array:
    """CIE L* of sRGB."""
    luminance = np.array([relative_luminance((int(r), int(g), int(b))) for r, g, b in colours])
    cubes = np.where(luminance > 0.008856, np.cbrt(luminance), 7.787 * luminance + 16 / 116)
    return np.asarray(116 * cubes - 16)


# ------------------------------------------------------------------------------------------ colours


def test_depth_is_shown_in_even_steps_of_lightness() -> None:
    shades = lightness(scale_colours(np.linspace(0, 1, 33)))
    steps = np.diff(shades)
    assert shades[0] < 20
    assert shades[-1] > 85
    assert steps.min() > 0.5 * steps.mean()
    assert steps.max() < 1.5 * steps.mean()


def test_no_two_of_the_first_21_classes_have_one_colour() -> None:
    colours = [colour_of_class(index) for index in range(21)]
    assert min(sum(abs(a - b) for a, b in zip(x, y, strict=True)) for x, y in combinations(colours, 2)) > 40
    assert colour_of_class(21) == colour_of_class(0)


def test_classes_that_would_share_a_colour_get_different_ones_in_one_picture() -> None:
    found = colours_of_classes([3, 24, 45, 4])
    assert len(set(found.values())) == 4
    assert found[3] == colour_of_class(3)
    assert found[4] == colour_of_class(4), "a class keeps its colour if it can"
    assert len(colours_of_classes(range(50))) == 50


@pytest.mark.parametrize("index", range(21))
def test_text_on_every_colour_can_be_read(index: int) -> None:
    colour = colour_of_class(index)
    light, dark = sorted([relative_luminance(colour), relative_luminance(text_on(colour))], reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= 4.5, "WCAG 2.2, level AA"


# ------------------------------------------------------------------------------------------ text


def test_names_are_drawn_in_letters_that_the_font_has() -> None:
    assert name_class("tabby cat", 3) == "tabby cat"
    assert name_class("café Škoda", 3) == "cafe Skoda"
    assert name_class("猫", 17) == "class 17"
    assert name_class("a\nb\x1b[31m", 3) == r"a\nb\x1b[31m"
    assert len(name_class("x" * 10**6, 0)) == 200


def test_a_long_name_is_cut_where_it_no_longer_fits() -> None:
    font = load_font(20)
    cut = shorten("a name that is much longer than its place", font, 120)
    assert cut.endswith("…")
    assert font.getlength(cut) <= 120
    assert shorten("short", font, 120) == "short"
    assert shorten("anything", font, 1) == ""


@pytest.mark.parametrize("background", ["white", "black", "red", "yellow"])
def test_the_panel_can_be_read_on_any_background(background: str) -> None:
    picture = Image.new("RGB", (640, 480), background)
    drawn = draw(picture, Answer(top=TOP))
    changed = (drawn != pixels(picture)).any(axis=2)
    corner = drawn[480 - 56 : 480 - 8, 8:120]
    assert (corner > 200).all(axis=2).sum() > 100, "white letters"
    panel = drawn[480 - 12, 20]
    assert relative_luminance(tuple(panel)) < 0.1, "on a dark panel"
    assert not changed[:200].any(), "the upper part of the picture stays free"


def test_letters_and_lines_grow_with_the_picture() -> None:
    small, large = Image.new("RGB", (640, 480)), Image.new("RGB", (4000, 3000))
    assert font_size(large) == pytest.approx(6 * font_size(small), rel=0.1)
    assert line_width(large) > 4 * line_width(small)


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (3000, 20), (20, 3000), (641, 2), (32, 32)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_any_size_is_drawn(size: tuple[int, int], mode: str) -> None:
    picture = Image.new(mode, size, 128)
    boxes = (
        Box(index=0, label="x" * 300, score=1, box=(-5, -5, 9999, 9999)),
        Box(index=1, label="", score=0, box=(5, 5, 1, 1)),
    )
    regions = (Region(index=0, label="a", share=1),)
    values = np.zeros((size[1], size[0]), np.int64)
    answers = [
        Answer(top=TOP),
        Answer(boxes=boxes),
        Answer(),
        Answer(regions=regions),
        Answer(depth=Depths(nearest=1, median=1, farthest=1)),
    ]
    shapes = {draw(picture, answer, values).shape for answer in answers}
    (shape,) = shapes
    assert max(shape) >= 640
    assert shape[0] % size[1] == shape[1] % size[0] == 0


def test_an_answer_in_words_is_drawn_as_it_is() -> None:
    with_words, without = draw(Image.new("RGB", (640, 480)), Answer()), pixels(Image.new("RGB", (640, 480)))
    assert (with_words != without).any()


# ------------------------------------------------------------------------------------------ boxes


def test_a_box_is_where_the_object_is_and_its_inside_stays_as_it_was() -> None:
    picture = Image.new("RGB", (1000, 800), (128, 128, 128))
    drawn = draw(picture, Answer(boxes=(Box(index=1, label="cat", score=0.9, box=(200, 300, 600, 700)),)))
    coloured = np.abs(drawn - colour_of_class(1)).sum(axis=2) < 10
    rows, columns = np.nonzero(coloured[310:])
    assert (columns.min(), columns.max()) == pytest.approx((200, 600), abs=3)
    assert rows.max() + 310 == pytest.approx(700, abs=3)
    assert (drawn[320:680, 220:580] == 128).all()
    assert (drawn[720:] == 128).all()


def test_boxes_of_a_small_picture_are_enlarged_with_it() -> None:
    drawn = draw(Image.new("RGB", (64, 48)), Answer(boxes=(Box(index=1, label="c", score=0.9, box=(32, 24, 64, 48)),)))
    coloured = np.abs(drawn - colour_of_class(1)).sum(axis=2) < 10
    assert np.nonzero(coloured.any(axis=0))[0].min() == pytest.approx(320, abs=3)


# ------------------------------------------------------------------------------------------ maps


def test_regions_are_coloured_by_class_where_the_model_saw_them() -> None:
    picture = Image.new("RGB", (800, 700), (200, 200, 200))
    classes = np.repeat([[1, 2]], 250, axis=1).repeat(300, axis=0)
    regions = (Region(index=1, label="cat", share=0.5), Region(index=2, label="dog", share=0.5))
    drawn = draw(picture, Answer(regions=regions), classes, (100, 150))
    for column, index in ((250, 1), (500, 2)):
        expected = 0.6 * np.array(colour_of_class(index)) + 0.4 * 200
        np.testing.assert_allclose(drawn[200, column], expected, atol=2)
    np.testing.assert_allclose(drawn[50, 400], 100, atol=1, err_msg="what was not seen is dimmed")
    np.testing.assert_allclose(drawn[200, 400], 255, err_msg="a white border between them")


def test_background_stays_grey() -> None:
    picture = Image.new("RGB", (800, 700), (200, 0, 0))
    regions = (Region(index=0, label="__background__", share=1),)
    drawn = draw(picture, Answer(regions=regions), np.zeros((700, 800), np.int64))
    red, green, blue = drawn[100, 400]
    assert red == green == blue


def test_a_class_too_small_for_the_legend_is_still_coloured() -> None:
    classes = np.zeros((700, 800), np.int64)
    classes[:20, :20] = 300
    drawn = draw(Image.new("RGB", (800, 700)), Answer(regions=(Region(index=0, label="floor", share=1),)), classes)
    assert not np.array_equal(drawn[8, 8], drawn[100, 100])


@pytest.mark.parametrize(("near", "far"), [(1.0, 9.0), (9.0, 1.0)], ids=["depth", "disparity"])
def test_near_is_light_and_far_is_dark(near: float, far: float) -> None:
    values = np.linspace(near, far, 700)[:, None].repeat(800, axis=1)
    drawn = draw(Image.new("RGB", (800, 700)), Answer(depth=Depths(nearest=near, median=5, farthest=far)), values)
    shades = lightness(drawn[:450:50, 600])
    assert (np.diff(shades) < 0).all()
    np.testing.assert_allclose(drawn[0, 600], scale_colours(np.array(1.0)), atol=2)


# ------------------------------------------------------------------------------------------ objects with masks


def test_objects_of_one_class_differ_in_colour_and_the_rest_is_grey() -> None:
    numbers = np.zeros((300, 400), np.int64)
    numbers[100:280, 20:180] = 1
    numbers[100:280, 220:380] = 2
    boxes = ((20.0, 100.0, 180.0, 280.0), (220.0, 100.0, 380.0, 280.0))
    found = tuple(Instance(index=4, label="cat", score=0.9, box=box, area=28800) for box in boxes)
    drawn = draw(Image.new("RGB", (800, 600), (90, 140, 60)), Answer(instances=found), numbers, (200, 100))
    left, right = drawn[390, 200], drawn[390, 400]
    assert abs(left - right).sum() > 40
    assert np.ptp(drawn[210, 110]) == 0  # seen, and no object
    assert np.ptp(drawn[50, 50]) == 0  # not seen
    assert drawn[50, 50, 0] < drawn[210, 110, 0]
    assert (drawn[478:482, 200] == 255).all(axis=1).any()  # a white border below the first


def test_without_objects_the_answer_is_in_words() -> None:
    drawn = draw(Image.new("RGB", (800, 600), (90, 140, 60)), Answer(), np.zeros((600, 800), np.int64))
    assert (drawn[:300] == (90, 140, 60)).all()
    assert not (drawn[300:] == (90, 140, 60)).all()


# ------------------------------------------------------------------------------------------ keypoints


def test_confident_keypoints_are_dots_with_names_and_limbs() -> None:
    facts = [("left hip", 100, 100, True), ("left knee", 100, 500, True), ("left ankle", 700, 500, False)]
    found = tuple(
        Keypoint(index=i, label=label, score=0.9, x=x, y=y, confident=sure)
        for i, (label, x, y, sure) in enumerate(facts)
    )
    plain = (90, 140, 60)
    drawn = draw(Image.new("RGB", (800, 600), plain), Answer(keypoints=found))
    assert tuple(drawn[100, 100]) == colour_of_class(0)
    assert tuple(drawn[500, 100]) == colour_of_class(1)
    assert (drawn[300, 100] == 255).all()  # the limb
    assert (drawn[490:510, 110:200] != plain).any()  # the name
    assert (drawn[450:550, 650:750] == plain).all()  # not confident, so neither dot nor limb
