"""The Python examples without vitdeploy: what they print is what `predict` answers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.examples.conftest import DETECTORS, EXAMPLES, Make, check_equal_to_predict, read_answers
from tests.examples.preprocessings import PREPROCESSINGS
from tests.fakes.fixtures import RELEASES
from vitdeploy import recipe as recipes
from vitdeploy.commands.compile import compile_bundle
from vitdeploy.commands.export import export
from vitdeploy.data.preprocess import apply
from vitdeploy.pipeline.graph_cache import GraphCache
from vitdeploy.progress import Silent
from vitdeploy.recipe import Preprocess
from vitdeploy.tasks.classification import Classification

PYTHON = EXAMPLES / "python"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """An example as a module, imported anew."""
    monkeypatch.syspath_prepend(PYTHON)

    def load(name: str) -> ModuleType:
        for module in (name, "deployed_model"):
            monkeypatch.delitem(sys.modules, module, raising=False)
        return import_module(name)

    return load


@pytest.mark.parametrize("name", ["classifier", "digits", *DETECTORS])
def test_onnxruntime_gives_the_answers_of_predict(name: str, made: Make, photos: list[Path]) -> None:
    artifact = made(name)
    command = [sys.executable, PYTHON / "run_onnxruntime.py", artifact.path, *photos]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    check_equal_to_predict(artifact, photos, printed)


@pytest.mark.parametrize("best", [0.9, 0.97, 1.05, 4.0])
def test_scores_are_probabilities_where_they_are_for_predict(best: float, made: Make, example: Any) -> None:
    module, artifact = example("deployed_model"), made("classifier")
    scores = np.zeros((1, int(artifact.manifest.outputs[0].shape[1])))
    scores[0, 1] = best
    model = module.Model(str(artifact.path))
    line = module.list_classes(model, {model.reading["scores"]: scores})[0]
    (first, *_) = Classification().describe({"logits": scores}, artifact.manifest.labels, (0, 0, 1, 1)).top
    assert line == f"{first.probability:.6f}  {first.index}  {first.label}"


@pytest.mark.parametrize("form", ["pixels", "uint8"])
def test_it_feeds_what_the_artifact_takes(
    form: str, made: Make, photos: list[Path], example: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact = made("classifier", input_form=form)
    assert example("run_onnxruntime").main(str(artifact.path), *map(str, photos)) == 0
    check_equal_to_predict(artifact, photos, capsys.readouterr().out)


@pytest.mark.parametrize(("name", "release"), [*(("digits", release) for release in RELEASES), ("yolos", RELEASES[0])])
def test_tensorrt_gives_the_answers_of_predict(
    name: str,
    release: str,
    device: Any,
    driver: Path,
    made: Make,
    photos: list[Path],
    example: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    device(release)
    artifact = compile_bundle(made(name, target="tensorrt"), tmp_path / "engine", Silent()).artifact
    module = example("run_tensorrt")
    monkeypatch.setattr(module, "DRIVER", str(driver))
    assert module.main(str(artifact.path), *map(str, photos)) == 0
    check_equal_to_predict(artifact, photos, capsys.readouterr().out)


@pytest.mark.parametrize("name", PREPROCESSINGS)
def test_inputs_are_vitdeploys_to_the_bit(
    name: str, made: Make, photos: list[Path], example: Any, tmp_path: Path
) -> None:
    preprocess = Preprocess.model_validate(PREPROCESSINGS[name])
    manifest = json.loads((made("digits").path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "preprocess": preprocess.model_dump(mode="json")}))
    module = example("deployed_model")
    for photo in photos[:2]:
        with Image.open(photo) as image:
            expected = apply(image, preprocess)
            prepared = module.prepare(image.convert("RGB"), module.Model(str(tmp_path)))
        np.testing.assert_array_equal(prepared[0], expected)


def test_a_damaged_image_is_named_and_the_others_are_answered(
    made: Make, photos: list[Path], example: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.png"
    text.write_text("no picture")
    assert example("run_onnxruntime").main(str(made("digits").path), str(text), str(photos[0])) == 1
    printed = capsys.readouterr()
    assert list(read_answers(printed.out)) == [str(photos[0])]
    assert printed.err.startswith(f"{text}: ")


def test_what_it_cannot_run_is_refused(made: Make, example: Any, tmp_path: Path) -> None:
    model = example("deployed_model").Model
    bundle = export(
        recipes.compose("demo:digits", target="tensorrt"), tmp_path / "bundle", Silent(), cache=GraphCache()
    ).artifact
    with pytest.raises(SystemExit, match="is a bundle"):
        model(str(bundle.path))
    manifest = json.loads((made("digits").path / "manifest.json").read_text())
    manifest["usage"]["post_processing"] = None
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(SystemExit, match="another task"):
        model(str(tmp_path))
