"""debug names the block and the layer: of a hostile model, and of an artifact that was tampered with."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from vitdeploy import artifact as artifacts
from vitdeploy import recipe as recipes
from vitdeploy.artifact import Artifact
from vitdeploy.commands.compile import compile_bundle
from vitdeploy.commands.debug import debug
from vitdeploy.commands.export import export
from vitdeploy.errors import DataError, UsageError
from vitdeploy.evidence import Divergence
from vitdeploy.frozen import replace
from vitdeploy.measure.divergence import LIMIT_DB
from vitdeploy.progress import Silent
from vitdeploy.recipe import DataSpec

HOSTILE = f"python:{Path(__file__).parents[1] / 'hostile_digits.py'}:build"
BLOCK = "blocks.2"  # hostile_digits.BLOCK
TARGETS = ["openvino", "onnxruntime"]


@pytest.fixture(scope="module")
def exported(demo: Callable[..., Artifact], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Artifact]:
    """Artifacts by model, target and precision, each made once. Take a copy to change one."""

    @cache
    def make(model: str, target: str, precision: str, alpha: Any = "auto") -> Artifact:
        if model == "demo:digits":
            return demo(target=target, precision=precision)
        recipe = recipes.compose(model, target=target, precision=precision, calibration="demo:digits")
        recipe = replace(recipe, precision=replace(recipe.precision, smooth_alpha=alpha))
        return export(recipe, tmp_path_factory.mktemp("debug") / "artifact", Silent()).artifact

    return make


@pytest.mark.parametrize("target", TARGETS)
def test_a_sound_artifact_does_not_diverge(target: str, exported: Callable[..., Artifact]) -> None:
    found = debug(exported("demo:digits", target, "int8"), "demo:digits", Silent(), images=4)
    assert (found.block, found.layer, found.evidence, found.images) == (None, None, "compiled", 4)
    assert [row.name for row in found.blocks] == ["stem", *(f"blocks.{n}" for n in range(4)), "head"]
    assert all(row.sqnr_db is not None and row.sqnr_db > LIMIT_DB + 10 for row in found.blocks)
    assert found.blocks[0].sqnr_db is not None
    assert found.blocks[0].sqnr_db > 100, "the patch embedding stays in float32"
    assert "they do not diverge" in found.why
    assert Divergence.model_validate_json(found.model_dump_json()) == found


@pytest.mark.parametrize("target", ["openvino", pytest.param("onnxruntime", marks=pytest.mark.long)])
def test_the_hostile_block_is_named_when_nothing_migrates(target: str, exported: Callable[..., Artifact]) -> None:
    found = debug(exported(HOSTILE, target, "int8", "off"), "demo:digits", Silent())
    assert found.block == BLOCK, found.why
    assert found.layer is not None
    assert found.layer.startswith(f"{BLOCK}.attn.qkv"), "the first of the two that read outliers"
    assert debug(exported(HOSTILE, target, "int8"), "demo:digits", Silent()).block is None, "migration mends it"


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("layer", ["blocks.1.mlp.fc1", "blocks.3.attn.proj", "head"])
def test_a_scale_that_is_off_is_found(
    layer: str, target: str, exported: Callable[..., Artifact], tmp_path: Path
) -> None:
    found = debug(_with_a_wrong_scale(exported("demo:digits", target, "int8"), tmp_path, layer), None, Silent())
    assert (found.block, found.layer) == (layer if layer == "head" else layer[: len(BLOCK)], layer), found.why
    rows = {row.name: row for row in found.layers}
    assert rows[layer].adds_db == min(row.adds_db for row in found.layers if row.adds_db is not None)
    if layer != "head":  # migration has moved factors into norms and values, and that is said
        norms = [row for row in found.layers if row.kind == "norm"]
        assert norms
        assert all(row.sqnr_db is None and "migration" in row.note for row in norms)


def _with_a_wrong_scale(artifact: Artifact, folder: Path, layer: str) -> Artifact:
    """Its weight dequantizes to 1.3 times what it should; compiled and sealed as if that were right."""

    def change(numbers: np.ndarray) -> np.ndarray:
        return (numbers * 1.3).astype(numbers.dtype)

    return _tampered(artifact, folder, f"{layer}/MatMul/weight_scale", change)


def _tampered(
    artifact: Artifact, folder: Path, initializer: str, change: Callable[[np.ndarray], np.ndarray]
) -> Artifact:
    """Change an initializer of the graph. ONNX Runtime opens the graph itself; other engines are compiled anew."""
    copy = Path(shutil.copytree(artifact.path, folder / "tampered"))
    model = onnx.load(copy / "graph.onnx")
    [tensor] = [t for t in model.graph.initializer if t.name == initializer]
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), initializer))
    onnx.save(model, copy / "graph.onnx")
    tampered = artifacts.seal(copy, artifact.manifest)
    if artifact.manifest.runs not in (None, "graph.onnx"):
        return compile_bundle(tampered, None, Silent()).artifact
    return tampered


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_what_cannot_run_here_is_run_as_its_graph_says(
    precision: str, exported: Callable[..., Artifact], tmp_path: Path
) -> None:
    bundle = exported("demo:digits", "tensorrt", precision)
    found = debug(bundle, None, Silent(), images=2)
    assert (found.evidence, found.block) == ("graph", None)
    assert "tensorrt does not return inner tensors" in found.how
    assert found.blocks[0].sqnr_db is not None
    assert 50 < found.blocks[0].sqnr_db < 100, "float16 rounds"
    if precision == "int8":
        found = debug(_with_a_wrong_scale(bundle, tmp_path, "blocks.1.mlp.fc1"), None, Silent(), images=2)
        assert (found.block, found.layer) == ("blocks.1", "blocks.1.mlp.fc1")


def test_the_first_tensor_that_is_not_finite_is_named(exported: Callable[..., Artifact], tmp_path: Path) -> None:
    def spoil(numbers: np.ndarray) -> np.ndarray:
        spoilt = numbers.copy()
        spoilt.flat[0] = np.nan
        return spoilt

    artifact = exported("demo:digits", "onnxruntime", "fp32")
    names = {t.name for t in onnx.load(artifact.path / "graph.onnx").graph.initializer}
    weight = next(name for name in names if "blocks.1.mlp.fc2" in name and "bias" in name)
    found = debug(_tampered(artifact, tmp_path, weight, spoil), None, Silent(), images=2)
    assert (found.block, found.layer) == ("blocks.1", "blocks.1.mlp.fc2")
    assert "the first such tensor is blocks.1.mlp.fc2/Add:0" in found.why
    assert found.blocks[2].nonfinite > 0
    assert found.blocks[2].max_abs is None


def test_float32_on_another_engine_differs_by_rounding_alone(exported: Callable[..., Artifact]) -> None:
    found = debug(exported("demo:digits", "openvino", "fp32"), None, Silent(), images=2)
    assert found.block is None
    assert all(row.sqnr_db is not None and row.sqnr_db > 100 for row in found.blocks)
    assert all(row.sqnr_db is not None for row in found.layers), "nothing migrates in float32"


def test_images_are_needed(
    exported: Callable[..., Artifact], copy: Callable[[Artifact], Artifact], tmp_path: Path
) -> None:
    artifact = exported("demo:digits", "onnxruntime", "fp32")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError):
        debug(artifact, str(tmp_path / "empty"), Silent())
    bare = copy(artifact)
    recipe = replace(bare.manifest.recipe, data=DataSpec())
    bare = artifacts.seal(bare.path, replace(bare.manifest, recipe=recipe))
    with pytest.raises(UsageError, match="no images to compare on"):
        debug(bare, None, Silent())
