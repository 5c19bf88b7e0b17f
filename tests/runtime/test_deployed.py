"""An open artifact answers images of every form, in batches, in order, and as it would one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vitdeploy
from vitdeploy.artifact import Artifact
from vitdeploy.errors import DataError, UsageError
from vitdeploy.runtime.deployed import Answered, Deployed, Unanswered, list_sources
from vitdeploy.session import Array


@pytest.fixture
def digits(tmp_path: Path) -> list[Path]:
    """Eleven images that are all different, frame1 to frame11."""
    paths = [tmp_path / "frames" / f"frame{number}.png" for number in range(1, 12)]
    paths[0].parent.mkdir()
    for number, path in enumerate(paths):
        pixels = np.random.default_rng(number).integers(0, 256, (32 + number, 32), np.uint8)
        Image.fromarray(pixels).save(path)
    return paths


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the batches that were run."""
    sizes: list[int] = []
    run = Deployed.run

    def counted(self: Deployed, images: Array, inputs: Mapping[str, Array] | None = None) -> dict[str, Array]:
        sizes.append(len(images))
        return run(self, images, inputs)

    monkeypatch.setattr(Deployed, "run", counted)
    return sizes


def probabilities(predictions: list[vitdeploy.Prediction]) -> Array:
    return np.array([[g.probability for g in sorted(p.top, key=lambda g: g.index)] for p in predictions])


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(
    ("batch", "expected"), [("1", [1] * 11), ("4", [4, 4, 4]), ("1:4:8", [4, 4, 3]), ("2:5:8", [5, 5, 2])]
)
def test_images_run_in_batches_and_get_the_answers_they_get_alone(
    target: str, batch: str, expected: list[int], demo: Callable[..., Artifact], digits: list[Path], batches: list[int]
) -> None:
    with vitdeploy.load(demo(target=target, batch=batch).path) as model:
        together = model.predict(digits)
        assert batches == expected
        alone = [model.predict(path)[0] for path in digits]
    assert [p.image for p in together] == [str(path) for path in digits]
    assert [[g.index for g in p.top] for p in together] == [[g.index for g in p.top] for p in alone]
    np.testing.assert_allclose(probabilities(together), probabilities(alone), rtol=1e-3, atol=1e-5)
    assert len({p.top[0].probability for p in together}) > 5, "the images have different answers"


def test_one_range_for_a_whole_batch_is_taken_of_one_image_at_a_time(
    demo: Callable[..., Artifact], digits: list[Path]
) -> None:
    """Dynamic INT8 takes the range over the batch, so that neighbours would change an answer."""
    with vitdeploy.load(demo(target="onnxruntime", precision="int8-dynamic", batch="1:4:8").path) as model:
        together = model.predict(digits)
        assert together == [model.predict(path)[0] for path in reversed(digits)][::-1]


def test_every_form_of_an_image(demo: Callable[..., Artifact], digits: list[Path]) -> None:
    first, grey = digits[0], np.asarray(Image.open(digits[0]))
    colour = np.repeat(grey[:, :, None], 3, axis=2)
    with vitdeploy.load(demo(target="onnxruntime").path) as model:
        forms: list[Any] = [first, str(first), grey, colour, grey[:, :, None], Image.open(first), Image.fromarray(grey)]
        predictions = [model.predict(form) for form in forms]
        assert all(len(one) == 1 for one in predictions)
        np.testing.assert_allclose(
            probabilities([one[0] for one in predictions]), probabilities([predictions[0][0]] * len(forms)), atol=1e-6
        )
        assert [one[0].image for one in predictions] == [
            str(first), str(first), "array", "array", "array", str(first), "image",
        ]  # fmt: skip
        mixed = model.predict([grey, first.parent, str(first.parent / "frame1*.png"), Image.open(first)])
    names = ["array", *map(str, digits), *[str(digits[i]) for i in (0, 9, 10)], str(first)]
    assert [prediction.image for prediction in mixed] == names


def test_no_image_is_no_answer(demo: Callable[..., Artifact]) -> None:
    with vitdeploy.load(demo(target="onnxruntime").path) as model:
        assert model.predict([]) == []


@pytest.mark.parametrize(
    "wrong",
    [np.zeros((4, 8, 8, 3), np.uint8), np.zeros((8, 8)), np.zeros((8, 8, 4), np.uint8), np.zeros((0, 8), np.uint8)],
)
def test_an_array_that_is_no_image_is_refused(wrong: Array, demo: Callable[..., Artifact]) -> None:
    with vitdeploy.load(demo(target="onnxruntime").path) as model, pytest.raises(DataError, match="is not an image"):
        model.predict(wrong)


def test_a_damaged_image_stops_predict_but_not_answer(demo: Callable[..., Artifact], digits: list[Path]) -> None:
    for path in (digits[2], digits[5]):
        path.write_bytes(path.read_bytes()[:60])
    lazily = Image.open(digits[5])  # reads only the head
    with lazily as lazy, vitdeploy.load(demo(target="onnxruntime", batch="4").path) as model:
        with pytest.raises(DataError, match=r"frame3\.png"):
            model.predict(digits)
        answers = list(model.answer([*digits[:5], lazy, *digits[6:]]))
        kinds = [type(answer) for answer in answers]
        assert [answer.name for answer in answers] == [str(path) for path in digits]
        assert [i for i, kind in enumerate(kinds) if kind is Unanswered] == [2, 5]
        good = [i for i, kind in enumerate(kinds) if kind is Answered]
        expected = model.predict([digits[i] for i in good])
    for answer, alone in zip([a for a in answers if isinstance(a, Answered)], expected, strict=True):
        assert answer.prediction.top[0].index == alone.top[0].index


def test_only_one_batch_is_in_memory(demo: Callable[..., Artifact], digits: list[Path], batches: list[int]) -> None:
    read: list[Path] = []

    def reading() -> Iterator[Path]:
        for path in digits:
            read.append(path)
            yield path

    with vitdeploy.load(demo(target="onnxruntime", batch="1:4:8").path) as model:
        answers = model.answer(reading())
        next(answers)
        assert (len(read), batches) == (4, [4])
        list(answers)
    assert (len(read), batches) == (11, [4, 4, 3])


def test_pictures_are_saved_beside_the_answers(
    demo: Callable[..., Artifact], digits: list[Path], tmp_path: Path
) -> None:
    with vitdeploy.load(demo(target="onnxruntime").path) as model:
        plain = model.predict(digits[0])
        saved = model.predict([digits[0], np.asarray(Image.open(digits[1]))], save=tmp_path / "out")
        with pytest.raises(UsageError, match="would replace the image"):
            model.predict(digits, save=digits[0].parent)
    assert plain[0].saved is None
    assert [p.saved for p in saved] == [str(tmp_path / "out" / name) for name in ("frame1.png", "array.png")]
    with Image.open(tmp_path / "out" / "frame1.png") as picture:
        assert picture.size == (640, 640)


def test_list_sources_keeps_what_is_no_path() -> None:
    array, picture = np.zeros((2, 2), np.uint8), Image.new("L", (2, 2))
    assert list_sources([array, picture]) == [array, picture]
    assert list_sources(picture) == [picture]
