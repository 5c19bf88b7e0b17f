"""inspect --sensitivity: measured on the artifact's own model, stored beside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from vitdeploy import artifact as artifacts
from vitdeploy import recipe as recipes
from vitdeploy.artifact import Artifact
from vitdeploy.commands.export import export
from vitdeploy.commands.inspect.sensitivity import measure_sensitivity
from vitdeploy.errors import MeasureError, QuantizeError
from vitdeploy.evidence import Sensitivity
from vitdeploy.frozen import replace
from vitdeploy.progress import Silent

HOSTILE = f"python:{Path(__file__).parents[2] / 'hostile_digits.py'}:build"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """In float32, so the test predicts what INT8 would cost before anything is quantized."""
    out = tmp_path_factory.mktemp("sensing") / "hostile"
    return export(recipes.compose(HOSTILE, target="openvino"), out, Silent()).artifact


def test_the_hostile_linears_are_the_worst_and_the_evidence_is_kept(
    hostile: Artifact, copy: Callable[[Artifact], Artifact]
) -> None:
    artifact = copy(hostile)
    manifest = artifact.manifest
    off = replace(manifest.recipe, precision=replace(manifest.recipe.precision, smooth_alpha="off"))
    artifact = dataclasses.replace(artifacts.seal(artifact.path, replace(manifest, recipe=off)), model=off.model)
    found = measure_sensitivity(artifact, "demo:digits", Silent())
    assert (found.precision, found.images, found.calibration) == ("int8", 8, "demo:digits")
    assert {layer.name for layer in found.layers[:2]} == {"blocks.2.attn.qkv", "blocks.2.mlp.fc1"}
    assert len(found.layers) == 17
    assert all(layer.agreement is not None for layer in found.layers)
    assert artifact.read_evidence(Sensitivity) == (found, "")


def test_without_images_it_is_refused_before_any_work(hostile: Artifact) -> None:
    with pytest.raises(QuantizeError, match="recipe names none"):
        measure_sensitivity(hostile, None, Silent())
    assert not (hostile.path / "sensitivity.json").exists()


def test_another_model_is_refused(demo: Callable[..., Artifact], copy: Callable[[Artifact], Artifact]) -> None:
    artifact = copy(demo(target="onnxruntime"))
    manifest = artifact.manifest
    other = artifacts.seal(artifact.path, replace(manifest, model=replace(manifest.model, digest="0" * 64)))
    with pytest.raises(MeasureError, match="not the model that was exported"):
        measure_sensitivity(other, "demo:digits", Silent())
