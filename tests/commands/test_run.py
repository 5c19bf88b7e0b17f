"""What is wrong with a recipe's data is said before the minutes of work that come first."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vitdeploy.commands import run as running
from vitdeploy.errors import DataError
from vitdeploy.progress import Silent


class Exported(Exception):
    """The export began."""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    def export(*_: object, **__: object) -> None:
        raise Exported

    monkeypatch.setattr(running, "export", export)
    np.savez(tmp_path / "unlabelled.npz", images=np.zeros((2, 8, 8), np.uint8))
    np.savez(tmp_path / "labelled.npz", images=np.zeros((2, 8, 8), np.uint8), labels=np.arange(2))
    return tmp_path / "recipe.yaml"


def run(recipe: Path, target: str, evaluation: str) -> None:
    text = f"model: demo:digits\ntarget: {{kind: {target}}}\ndata: {{evaluation: {evaluation}}}\n"
    recipe.write_text(text, encoding="utf-8")
    running.run(str(recipe), recipe.parent / "out", Silent())


@pytest.mark.parametrize(
    ("evaluation", "message"), [("nowhere", "there is no .*nowhere"), ("unlabelled.npz", "has no labels")]
)
def test_evaluation_data_is_looked_at_before_the_export(recipe: Path, evaluation: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        run(recipe, "onnxruntime", evaluation)


@pytest.mark.parametrize("evaluation", ["labelled.npz", "demo:digits"])
def test_good_data_lets_the_export_begin(recipe: Path, evaluation: str) -> None:
    with pytest.raises(Exported):
        run(recipe, "onnxruntime", evaluation)


def test_the_data_of_a_bundle_may_be_on_the_device(recipe: Path) -> None:
    from vitdeploy import targets
    from vitdeploy.recipe import TargetSpec

    if targets.find(TargetSpec(kind="tensorrt")).unavailable() is None:
        pytest.skip("this machine compiles with TensorRT")
    with pytest.raises(Exported):
        run(recipe, "tensorrt", "nowhere")
