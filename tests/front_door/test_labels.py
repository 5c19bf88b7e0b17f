"""A wrong order of labels is never evaluated as if it were right, and never passes the gate."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import scenes
from tests.cli.conftest import Ended, run
from tests.front_door.colours import save_images, save_model
from tests.tasks import models
from vitdeploy.data.class_names import imagenet_labels

NAMES = ("tench", "goldfish", "Great White Shark", "tiger shark", "hammerhead", "electric ray", "stingray", "cock")
WNIDS = ("n01440764", "n01443537", "n01484850", "n01491361", "n01494475", "n01496331", "n01498041", "n01514668")
PLAIN = ("--target", "onnxruntime", "--mean", "0,0,0", "--std", "1,1,1", "--resize", "exact", "--quiet")


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Export the classifier of colours, with labels or without."""
    root = tmp_path_factory.mktemp("colours")
    model = save_model(root / "colours.onnx")
    (root / "names.txt").write_text("\n".join(NAMES))
    (root / "made_up.json").write_text(json.dumps([f"LABEL_{number}" for number in range(8)]))
    made: dict[str, Path] = {}

    def make(labels: str = "") -> Path:
        if labels not in made:
            out = root / f"artifact-{labels or 'none'}"
            ended = run("export", model, *PLAIN, "-o", out, *(["--labels", root / labels] if labels else []))
            assert ended.code == 0, ended.err
            made[labels] = out
        return made[labels]

    return make


def judged(artifact: Path, data: Path, evidence: Path) -> tuple[Ended, Ended]:
    """How `eval` and `gate` end."""
    evaluated = run("eval", artifact, "--data", data, "--evidence", evidence, "--quiet", "--json")
    return evaluated, run("gate", artifact, "--max-drop", "5", "--evidence", evidence, "--quiet", "--json")


def top1(evaluated: Ended) -> float:
    return float(json.loads(evaluated.out)["metrics"]["top1"]["deployed"])


@pytest.mark.parametrize(
    "folders",
    [
        pytest.param(NAMES, id="names"),
        pytest.param([name.upper().replace(" ", "_") for name in NAMES], id="another case"),
        pytest.param(WNIDS, id="wordnet ids"),
        pytest.param({NAMES[6]: 6, NAMES[1]: 1, NAMES[4]: 4}, id="a subset"),
        pytest.param([str(number) for number in range(8)], id="indices"),
    ],
)
def test_folders_that_name_the_labels_have_the_right_accuracy(
    export: Callable[..., Path], tmp_path: Path, folders: list[str]
) -> None:
    data = save_images(tmp_path / "data", folders)
    evaluated, gate = judged(export("names.txt"), data, tmp_path / "evidence")
    assert evaluated.code == 0, evaluated.err
    assert top1(evaluated) > 95
    assert gate.code == 0, gate.out


@pytest.mark.parametrize("labels", ["", "made_up.json"])
def test_the_alphabet_is_only_an_assumption(export: Callable[..., Path], tmp_path: Path, labels: str) -> None:
    right = save_images(tmp_path / "right", [f"{letter} colour" for letter in "abcdefgh"])
    evaluated, gate = judged(export(labels), right, tmp_path / "evidence")
    assert "assumed to be its classes in alphabetical order" in evaluated.err
    assert (top1(evaluated) > 95, gate.code, json.loads(evaluated.out)["order"]) == (True, 0, "alphabet")

    for name, colours in {"shuffled": (3, 0, 6, 1, 7, 2, 4, 5), "two swapped": (0, 1, 2, 3, 4, 6, 5, 7)}.items():
        folders = {f"{letter} colour": colour for letter, colour in zip("abcdefgh", colours, strict=True)}
        evaluated, gate = judged(export(labels), save_images(tmp_path / name, folders), tmp_path / f"{name} evidence")
        assert evaluated.code == 0
        assert "the labels seem to be in another order" in evaluated.err
        assert "' were the model's '" in evaluated.err
        assert gate.code == 3, gate.out
        (check,) = json.loads(gate.out)["checks"]
        assert (check["name"], check["status"]) == ("accuracy drop", "invalid")


@pytest.mark.parametrize(
    ("labels", "folders", "message"),
    [
        (
            "names.txt",
            ["tench", "goldfish", "hamerhead"],
            "'hamerhead' is no label of the model; the nearest is 'hammerhead'",
        ),
        ("names.txt", ["Schleie", "Goldfisch"], "is no label of the model"),
        ("", ["a", "b", "c"], "has 3 folders, and the model has 8 classes without names"),
        ("made_up.json", ["tench", "goldfish"], "has 2 folders, and the model has 8 classes without names"),
        ("names.txt", ["0", "8"], "class '8' has index 8, but the model has 8 classes"),
    ],
)
def test_folders_that_do_not_name_the_labels_are_refused(
    export: Callable[..., Path], tmp_path: Path, labels: str, folders: list[str], message: str
) -> None:
    data = save_images(tmp_path / "data", folders, count=3)
    evaluated, gate = judged(export(labels), data, tmp_path / "evidence")
    assert (evaluated.code, gate.code) == (1, 3)
    assert message in evaluated.error


def test_labels_in_the_wrong_order_do_not_pass(export: Callable[..., Path], tmp_path: Path) -> None:
    """The folders match the labels, but the file with the labels has them in another order than the outputs."""
    (tmp_path / "wrong.txt").write_text("\n".join(sorted(NAMES)))
    ended = run(
        "export", export().parent / "colours.onnx", *PLAIN, "-o", tmp_path / "out", "--labels", tmp_path / "wrong.txt"
    )
    assert ended.code == 0, ended.err
    evaluated, gate = judged(tmp_path / "out", save_images(tmp_path / "data", NAMES), tmp_path / "evidence")
    assert "the labels seem to be in another order" in evaluated.err
    assert gate.code == 3


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--labels", "imagenet"], 1, "imagenet has 1000 labels, and the model has 8 classes"),
        (["--labels", "missing.txt"], 1, "there is no file missing.txt with labels"),
        (["--mean", "0.5,0.5,0.5"], 2, "give --mean and --std together"),
        (["--mean", "0.5,0.5", "--std", "1,1"], 2, "is not one number for each channel"),
        (["--mean", "a", "--std", "1"], 2, "is not one number for each channel"),
        (["--mean", "0.5", "--std", "0.5"], 1, "takes 3 channels, and --mean has 1"),
        (["--mean", "124,116,104", "--std", "58,57,57"], 1, "divide those for 0 to 255 by 255"),
        (["--interpolation", "cubic"], 2, "is not one of"),
        (["--crop-pct", "0"], 2, "should be greater than or equal to 0.01"),
    ],
)
def test_labels_and_preprocessing_that_cannot_be(
    export: Callable[..., Path], tmp_path: Path, words: list[str], code: int, message: str
) -> None:
    model = export().parent / "colours.onnx"
    ended = run("export", model, "--target", "onnxruntime", "-o", tmp_path / "out", *words)
    assert ended.code == code, ended.err
    assert message in " ".join(ended.err.replace("│", " ").split())
    assert not (tmp_path / "out").exists()


def test_what_is_assumed_is_said_and_kept(export: Callable[..., Path], tmp_path: Path) -> None:
    model = export().parent / "colours.onnx"
    ended = run("export", model, "--target", "onnxruntime", "-o", tmp_path / "out", "--resize", "exact")
    said = " ".join(ended.out.split())
    assert "does not say how its images are prepared; assumed: ImageNet's mean and std, bicubic interpolation." in said
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["assumed"] == ["ImageNet's mean and std", "bicubic interpolation"]
    assert json.loads((export() / "manifest.json").read_text())["assumed"] == ["bicubic interpolation"]


def test_metadata_of_the_file_is_said_and_used(tmp_path: Path) -> None:
    model = save_model(tmp_path / "m.onnx", names=str(dict(enumerate(NAMES))), author="Ultralytics", task="classify")
    ended = run("export", model, "--target", "onnxruntime", "-o", tmp_path / "out")
    assert "from the metadata in" in ended.out
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["labels"] == list(NAMES)
    assert manifest["metadata"] == ["8 labels", "mean and std", "the way to resize"]
    evaluated, gate = judged(tmp_path / "out", save_images(tmp_path / "data", WNIDS), tmp_path / "evidence")
    assert (top1(evaluated) > 95, gate.code) == (True, 0)


def test_imagenet_stands_for_a_thousand_labels(tmp_path: Path) -> None:
    model = save_model(tmp_path / "m.onnx", scores=1000)
    ended = run("export", model, *PLAIN, "--labels", "imagenet", "-o", tmp_path / "out")
    assert ended.code == 0, ended.err
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["labels"] == list(imagenet_labels())
    evaluated, gate = judged(tmp_path / "out", save_images(tmp_path / "data", WNIDS), tmp_path / "evidence")
    assert (top1(evaluated) > 95, gate.code) == (True, 0)


@pytest.mark.parametrize(("name", "classes"), [("segformer", len(scenes.NAMES)), ("yolos", len(scenes.NAMES) - 1)])
def test_labels_are_counted_for_masks_and_boxes_too(name: str, classes: int, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    model, labels = f"hf:{models.FIXTURES / name}", tmp_path / "names.txt"
    ended = run("export", model, "--target", "onnxruntime", "--labels", labels, "-o", tmp_path / "out")
    assert ended.code == 1
    assert f"names.txt has 2 labels, and the model has {classes} classes" in ended.error
