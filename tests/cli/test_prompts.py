"""`export --prompts`: a classifier or detector with these labels, through eval, gate and predict; and bad prompts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("transformers")

from tests.cli.conftest import run
from tests.toys import two_towers
from vitdeploy import recipe as recipes
from vitdeploy.errors import RecipeError

PROMPTS = ("cat", "dog", "small bird")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return two_towers.save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def artifact(clip: Path) -> Path:
    out = clip / "artifact"
    (clip / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    ended = run(
        "export", f"hf:{clip}", "--target", "onnxruntime", "--prompts", clip / "prompts.txt",
        "--template", "a photo of a {}", "--template", "the {}", "-o", out, "--quiet", "--no-cache",
        "--save-recipe", clip / "saved.yaml",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    return out


def test_the_manifest_says_prompts_and_templates(artifact: Path) -> None:
    manifest = json.loads((artifact / "manifest.json").read_text())
    model = manifest["recipe"]["model"]
    assert (model["prompts"], model["templates"]) == (list(PROMPTS), ["a photo of a {}", "the {}"])
    assert manifest["labels"] == list(PROMPTS)
    assert manifest["recipe"]["task"]["kind"] == "classification"
    assert [output["shape"] for output in manifest["outputs"]] == [[1, 3]]


def test_the_graph_has_no_text_tower(artifact: Path) -> None:
    audit = json.loads((artifact / "audit.json").read_text())
    assert audit["attention"]["sites"] == 2  # the image tower's; the text tower has two more
    assert len(list(artifact.glob("*.onnx"))) == 1


def test_a_saved_recipe_has_the_prompts(artifact: Path, clip: Path) -> None:
    saved = recipes.read(artifact.parent / "saved.yaml")
    assert saved.model.prompts == PROMPTS
    (clip / "own.yaml").write_text(f"model: {{spec: 'hf:{clip}', prompts: prompts.txt}}\ntarget: {{kind: openvino}}\n")
    assert recipes.read(clip / "own.yaml").model.prompts == PROMPTS


def test_eval_gate_and_predict_use_the_labels(artifact: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for name in PROMPTS:
        (tmp_path / "val" / name).mkdir(parents=True)
        for number in range(4):
            pixels = random.integers(0, 256, (40, 40, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "val" / name / f"{number}.png")
    ended = run("eval", artifact, "--data", tmp_path / "val", "--quiet", "--json")
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    assert (found["n"], found["metrics"]["top1"]["drop"], found["flips"]) == (12, 0, 0)
    ended = run("gate", artifact, "--min-fused", "100", "--quiet", "--json")
    assert (ended.code, json.loads(ended.out)["verdict"]) == (0, "pass"), ended.err
    ended = run("predict", artifact, tmp_path / "val" / "cat" / "0.png", "--json", "--quiet")
    assert ended.code == 0, ended.err
    assert {guess["label"] for guess in json.loads(ended.out)["predictions"][0]["top"]} == set(PROMPTS)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        pytest.param(["--prompts", "a cat,,a dog"], "prompt 2 of 3 is empty", id="empty"),
        pytest.param(["--prompts", ""], "prompt 1 of 1 is empty", id="none"),
        pytest.param(["--prompts", "cat,dog,cat"], "the prompt 'cat' is there twice, as 1 and 3", id="twice"),
        pytest.param(["--prompts", "missing.txt"], "there is no file .*missing.txt with prompts", id="no file"),
        pytest.param(["--template", "a {}"], "templates are for prompts", id="only a template"),
        pytest.param(["--prompts", "cat,dog", "--template", "a photo"], r"'a photo' needs one \{\}", id="no place"),
        pytest.param(["--prompts", "cat,dog", "--num-classes", "3"], "leave out num_classes", id="classes"),
    ],
)
def test_bad_prompts(words: list[str], message: str, tmp_path: Path, clip: Path) -> None:
    import re

    ended = run("export", f"hf:{clip}", "--target", "openvino", *words, "-o", tmp_path / "out", "--quiet")
    assert (ended.code, bool(re.search(message, ended.error))) == (1, True), ended.err
    assert not (tmp_path / "out").exists()


def test_a_file_of_prompts_with_an_empty_line(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("cat\n\ndog\n")
    assert recipes.read_prompts("p.txt", tmp_path) == ("cat", "", "dog")
    with pytest.raises(RecipeError, match="prompt 2 of 3 is empty"):
        recipes.compose("hf:x", target="openvino", prompts=str(tmp_path / "p.txt"))


@pytest.mark.parametrize(
    ("name", "text"), [("p.json", '["a cat, small", "dog"]'), ("p.yaml", "- a cat, small\n- dog\n")]
)
def test_a_list_of_prompts_may_have_commas(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert recipes.read_prompts(name, tmp_path) == ("a cat, small", "dog")
    (tmp_path / name).write_text("[1, 2]")
    with pytest.raises(RecipeError, match="is not a list of prompts"):
        recipes.read_prompts(name, tmp_path)
