"""`vitdeploy package`: what nvinfer can prepare and read is written, everything else is refused with the reason."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from vitdeploy import recipe as recipes
from vitdeploy.artifact import Artifact, file_digest
from vitdeploy.cli import app
from vitdeploy.commands.compile import compile_bundle
from vitdeploy.commands.export import export
from vitdeploy.commands.package import package
from vitdeploy.errors import ArtifactError, UsageError
from vitdeploy.frozen import replace
from vitdeploy.pipeline.graph_cache import GraphCache
from vitdeploy.progress import Silent
from vitdeploy.recipe import Preprocess, TaskSpec

QUIET = Silent()
Device = Callable[..., Any]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The digits for TensorRT, in the one form that nvinfer can feed."""
    recipe = recipes.compose(
        "demo:digits", target="tensorrt", precision="fp16", batch="1:2:4", resize="exact", input_form="pixels"
    )
    return export(recipe, tmp_path_factory.mktemp("bundle") / "digits", QUIET, cache=GraphCache()).artifact


@pytest.fixture
def engine(bundle: Artifact, device: Device, tmp_path: Path) -> Artifact:
    device("10.3")
    return compile_bundle(bundle, tmp_path / "engine", QUIET).artifact


def test_a_name_cannot_bring_a_key_of_its_own(engine: Artifact, tmp_path: Path) -> None:
    """nvinfer loads the library of `custom-lib-path`, and an artifact may come from anyone."""
    (output,) = engine.manifest.outputs
    manifest = replace(engine.manifest, outputs=(replace(output, name="logits\ncustom-lib-path=evil.so"),))
    with pytest.raises(UsageError, match="as output-blob-names"):
        package(dataclasses.replace(engine, manifest=manifest), "deepstream", tmp_path / "package")
    assert not (tmp_path / "package").exists()


def test_a_package_for_nvinfer(engine: Artifact, tmp_path: Path) -> None:
    out = tmp_path / "package"
    packaged = package(engine, "deepstream", out)
    assert sorted(path.name for path in out.iterdir()) == ["config_infer.txt", "engine.plan", "labels.txt"]
    assert {f.path: f.sha256 for f in packaged.files} == {p.name: file_digest(p) for p in out.iterdir()}
    assert (out / "engine.plan").read_bytes() == (engine.path / "engine.plan").read_bytes()
    assert (out / "labels.txt").read_text() == "0;1;2;3;4;5;6;7;8;9\n", "one classifier is one line"

    text = (out / "config_infer.txt").read_text()
    config = ConfigParser()
    config.read_string(text)
    keys = dict(config["property"])
    assert (out / keys["model-engine-file"]).is_file()
    assert (out / keys["labelfile-path"]).is_file()
    assert (keys["net-scale-factor"], keys["offsets"]) == ("1", "0"), "y = x: mean and std are in the weights"
    assert (keys["model-color-format"], keys["infer-dims"]) == ("2", "1;32;32"), "grey"
    assert (keys["network-type"], keys["process-mode"], keys["batch-size"]) == ("1", "1", "4")
    assert (keys["network-mode"], keys["maintain-aspect-ratio"], keys["scaling-filter"]) == ("2", "0", "2")
    assert keys["output-blob-names"] == engine.manifest.outputs[0].name
    assert text.splitlines()[1].startswith("# not run")
    assert packaged.notes[0].startswith("not run")
    assert any("logit" in note for note in packaged.notes)
    assert packaged.next == f"nvinfer config-file-path={out / 'config_infer.txt'}"


def with_preprocess(engine: Artifact, **changes: object) -> Artifact:
    fields = {**engine.manifest.preprocess.model_dump(), **changes}
    manifest = replace(engine.manifest, preprocess=Preprocess.model_validate(fields))
    return dataclasses.replace(engine, manifest=manifest)


def with_manifest(engine: Artifact, **changes: Any) -> Artifact:
    return dataclasses.replace(engine, manifest=replace(engine.manifest, **changes))


def test_colours_have_their_order(engine: Artifact, tmp_path: Path) -> None:
    for order, number in (("rgb", "0"), ("bgr", "1")):
        changed = with_preprocess(
            engine, channels=3, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), channel_order=order, interpolation="box"
        )
        package(changed, "deepstream", tmp_path / order)
        config = ConfigParser()
        config.read(tmp_path / order / "config_infer.txt")
        keys = dict(config["property"])
        assert (keys["model-color-format"], keys["offsets"], keys["infer-dims"]) == (number, "0;0;0", "3;32;32")
        assert keys["scaling-filter"] == "1", "nvinfer has no such filter"


def test_names_cannot_end_a_label(engine: Artifact, tmp_path: Path) -> None:
    labels = ("a;b", "two\nlines", *map(str, range(8)))
    packaged = package(with_manifest(engine, labels=labels), "deepstream", tmp_path / "out")
    assert (tmp_path / "out" / "labels.txt").read_text().startswith("a,b;two lines;0;")
    assert any("comma" in note for note in packaged.notes)


def refusal(artifact: Artifact, out: Path) -> str:
    with pytest.raises(UsageError) as caught:
        package(artifact, "deepstream", out)
    assert not out.exists(), "nothing is written"
    assert not list(out.parent.glob(".*partial*"))
    return str(caught.value)


@pytest.mark.parametrize(("form", "reason"), [("normalized", "one scale for all channels"), ("uint8", "as float32")])
def test_another_arithmetic_is_refused(form: str, reason: str, engine: Artifact, tmp_path: Path) -> None:
    recipe = engine.manifest.recipe
    changed = with_manifest(engine, recipe=replace(recipe, target=replace(recipe.target, input=form)))
    message = refusal(changed, tmp_path / "out")
    assert reason in message
    assert "--input pixels" in message


@pytest.mark.parametrize(
    "changes", [{"resize": "shortest"}, {"resize": "letterbox"}, {"crop_pct": 0.9}, {"resize_to": (40, 40)}]
)
def test_another_geometry_is_refused(changes: dict[str, Any], engine: Artifact, tmp_path: Path) -> None:
    message = refusal(with_preprocess(engine, **changes), tmp_path / "out")
    assert "crops or pads" in message
    assert "--resize exact --crop-pct 1" in message


def test_other_models_are_refused(engine: Artifact, bundle: Artifact, tmp_path: Path) -> None:
    manifest, out = engine.manifest, tmp_path / "out"
    image, scores = manifest.inputs[0], manifest.outputs[0]
    depth = replace(manifest.recipe, task=TaskSpec.model_validate({"kind": "depth"}))
    cases: dict[str, Artifact] = {
        "is a bundle": bundle,
        "task is depth": with_manifest(engine, recipe=depth),
        "2 inputs": with_manifest(engine, inputs=(image, image)),
        "clips": with_manifest(engine, inputs=(replace(image, shape=(1, 8, 1, 32, 32)),)),
        "is float16": with_manifest(engine, outputs=(replace(scores, dtype="float16"),)),
        "for openvino": with_manifest(engine, target=replace(manifest.target, kind="openvino")),
    }
    for reason, artifact in cases.items():
        assert reason in refusal(artifact, out)


def test_a_file_that_tensorrt_does_not_write_is_refused(engine: Artifact, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="as the file to run"):
        package(with_manifest(engine, runs="graph.onnx"), "deepstream", tmp_path / "out")


def test_an_existing_folder_stays(engine: Artifact, tmp_path: Path) -> None:
    out = tmp_path / "mine"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="exists"):
        package(engine, "deepstream", out)
    assert [path.name for path in out.iterdir()] == ["notes.txt"]


def test_an_engine_that_changes_meanwhile_is_no_package(engine: Artifact, tmp_path: Path) -> None:
    plan = engine.path / "engine.plan"
    plan.write_bytes(plan.read_bytes() + b"more")
    with pytest.raises(ArtifactError, match=r"engine\.plan"):
        package(engine, "deepstream", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command(engine: Artifact, tmp_path: Path) -> None:
    out = tmp_path / "package"
    line = ["package", str(engine.path), "--for", "deepstream", "-o", str(out), "--json"]
    result = CliRunner().invoke(app, line)
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert (answer["package"], answer["serves"], answer["artifact"]) == (str(out), "deepstream", str(engine.path))
    assert [file["path"] for file in answer["files"]] == ["config_infer.txt", "engine.plan", "labels.txt"]
    shown = CliRunner().invoke(app, [*line[:-3], "-o", str(tmp_path / "again")])
    assert shown.exit_code == 0
    assert "not run" in shown.stdout
    assert CliRunner().invoke(app, ["package", str(engine.path), "--for", "deepstrem", "-o", "x"]).exit_code == 2
