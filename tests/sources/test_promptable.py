"""SAM, SAM 2 and EdgeTAM in two parts give the numbers of the whole model, for every kind of prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

from benchmarks.promptable_models import SIDE, build_edgetam, build_sam, build_sam2, build_sam2_video, save
from vitdeploy import sources
from vitdeploy.data.point_prompts import EMPTY, LABELS, Prompt, fill_slots, make_prompts
from vitdeploy.errors import DataError, SourceError
from vitdeploy.recipe import ModelSpec

EDGE = Prompt(((0.0, 0.0), (127.0, 127.0)), (True, False))
POINT_AND_BOX = Prompt(((60.0, 70.0),), (True,), (30.0, 20.0, 90.0, 110.0))
PROMPTS = (*make_prompts(SIDE, SIDE), EDGE, POINT_AND_BOX)


@pytest.fixture(scope="module", params=[build_sam, build_sam2, build_edgetam], ids=["sam", "sam2", "edgetam"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp(request.param.__name__)
    save(request.param, place)
    return place


def load(folder: Path, part: str | None, **values: Any) -> sources.LoadedModel:
    return sources.load(ModelSpec.model_validate({"spec": f"hf:{folder}", "part": part, **values}))


def test_parts_in_turn_give_the_numbers_of_the_whole_model(folder: Path) -> None:
    encoder, decoder = load(folder, "encoder"), load(folder, "decoder")
    assert encoder.module is not None
    assert decoder.module is not None
    assert encoder.run_whole is not None
    image = torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    answers = []
    with torch.inference_mode():
        embeddings = encoder.module(image)
        for prompt in PROMPTS:
            slots = {name: torch.from_numpy(value) for name, value in fill_slots(prompt).items()}
            answer = {name: value.numpy() for name, value in decoder.module(**embeddings, **slots).items()}
            whole = encoder.run_whole(image.numpy(), prompt)
            assert list(answer) == list(whole)
            for name, expected in whole.items():
                np.testing.assert_allclose(answer[name], expected, atol=2e-6 * np.abs(expected).max())
            answers.append(answer["pred_masks"])
    apart = [np.abs(a - b).max() / np.abs(a).max() for n, a in enumerate(answers) for b in answers[:n]]
    assert min(apart) > 0.02  # the prompts are told apart, so a wrong prompt would show


def test_what_is_in_empty_slots_changes_nothing(folder: Path) -> None:
    decoder = load(folder, "decoder")
    assert decoder.make_inputs is not None
    assert decoder.module is not None
    name, feed = decoder.make_inputs()[1]
    assert name.startswith("3 points on ")
    changed = {key: value.copy() for key, value in feed.items()}
    changed["point_coords"][feed[LABELS] == EMPTY] = 77.0
    with torch.inference_mode():
        plain, other = (decoder.module(**{k: torch.from_numpy(v) for k, v in f.items()}) for f in (feed, changed))
    for key, value in plain.items():
        torch.testing.assert_close(value, other[key], rtol=0, atol=0)


def test_parts_are_listed_and_the_whole_is_no_artifact(folder: Path) -> None:
    assert sources.list_parts(ModelSpec(spec=f"hf:{folder}")) == ("encoder", "decoder")
    with pytest.raises(SourceError, match="takes an image and a prompt") as caught:
        load(folder, None)
    assert "--part encoder" in caught.value.fix


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prompts": ["a cat"]}, "points and boxes, not words"),
        ({"bind": {"input_points": [[1, 2]]}}, "no input to bind"),
        ({"image_size": "64x64"}, "takes images of 128x128 only"),
    ],
)
def test_what_a_promptable_model_has_not_is_refused(folder: Path, values: dict[str, Any], message: str) -> None:
    spec = ModelSpec.model_validate({"spec": f"hf:{folder}", "part": "encoder", **values})
    with pytest.raises(SourceError, match=message):
        sources.load(spec, size=(64, 64) if "image_size" in values else None)


def test_a_checkpoint_for_videos_is_read_as_a_model_for_images(tmp_path: Path) -> None:
    save(build_sam2_video, tmp_path)
    encoder = load(tmp_path, "encoder")
    assert type(encoder.module).__name__ == "ImageEncoder"
    assert encoder.weights == "pretrained"


@pytest.mark.parametrize("prompt", [Prompt(), Prompt(((1.0, 1.0),) * 15, (True,) * 15, (0.0, 0.0, 1.0, 1.0))])
def test_a_prompt_that_does_not_fit_is_refused(prompt: Prompt) -> None:
    with pytest.raises(DataError, match="does not fit"):
        fill_slots(prompt)


def test_a_prompt_moves_with_its_image() -> None:
    prompt = Prompt(((10.0, 20.0),), (True,), (0.0, 4.0, 30.0, 40.0)).scale(0.5, 0.25, left=-3.0, top=1.0)
    assert prompt == Prompt(((8.0, 4.0),), (True,), (3.0, 0.0, 18.0, 9.0))
