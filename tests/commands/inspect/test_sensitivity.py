"""inspect --sensitivity: measured on the artifact's own model, stored beside it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from vitdeploy import artifact as artifacts
from vitdeploy import recipe as recipes
from vitdeploy.commands.export import export
from vitdeploy.commands.inspect.sensitivity import sensitivity
from vitdeploy.errors import MeasureError, QuantizeError
from vitdeploy.evidence import Sensitivity
from vitdeploy.progress import Silent

HOSTILE = f"python:{Path(__file__).parents[2] / 'hostile_digits.py'}:build"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In float32: what INT8 would cost is told before it is paid."""
    out = tmp_path_factory.mktemp("sensing") / "hostile"
    export(recipes.compose(HOSTILE, target="openvino"), out, Silent())
    return out


def test_the_hostile_linears_are_the_worst_and_the_evidence_is_kept(hostile: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(hostile, tmp_path / "copy"))
    artifact = artifacts.load(copy)
    manifest = artifact.manifest
    off = manifest.recipe.precision.model_copy(update={"smooth_alpha": "off"})
    artifacts.seal(copy, manifest.model_copy(update={"recipe": manifest.recipe.model_copy(update={"precision": off})}))
    found = sensitivity(copy, "demo:digits", Silent())
    assert (found.precision, found.images, found.calibration) == ("int8", 8, "demo:digits")
    assert {layer.name for layer in found.layers[:2]} == {"blocks.2.attn.qkv", "blocks.2.mlp.fc1"}
    assert len(found.layers) == 17
    assert all(layer.agreement is not None for layer in found.layers)
    assert artifacts.load(copy).read_evidence(Sensitivity) == (found, "")


def test_without_images_it_is_refused_before_any_work(hostile: Path) -> None:
    with pytest.raises(QuantizeError, match="recipe names none"):
        sensitivity(hostile, None, Silent())
    assert not (hostile / "sensitivity.json").exists()


def test_another_model_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "digits"
    export(recipes.compose("demo:digits", target="onnxruntime"), out, Silent())
    manifest = artifacts.load(out).manifest
    artifacts.seal(out, manifest.model_copy(update={"model": manifest.model.model_copy(update={"digest": "0" * 64})}))
    with pytest.raises(MeasureError, match="not the model that was exported"):
        sensitivity(out, "demo:digits", Silent())
