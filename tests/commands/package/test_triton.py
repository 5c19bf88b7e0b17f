"""`vitdeploy package --for triton`: the configurations, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openvino as ov
import pytest
from typer.testing import CliRunner

from tests.commands.package.conftest import parameters, read_config, shapes
from vitdeploy import artifact as artifacts
from vitdeploy import recipe as recipes
from vitdeploy.artifact import Artifact, file_digest
from vitdeploy.cli import app
from vitdeploy.commands.compile import compile_bundle
from vitdeploy.commands.export import export
from vitdeploy.commands.package import package
from vitdeploy.commands.package._triton.config import ModelConfig
from vitdeploy.commands.package._triton.engines import _write_tensorrt
from vitdeploy.errors import ArtifactError, UsageError
from vitdeploy.frozen import replace
from vitdeploy.pipeline.graph_cache import GraphCache
from vitdeploy.progress import Silent
from vitdeploy.recipe import TargetSpec, TaskSpec

QUIET = Silent()
Demo = Callable[..., Artifact]
JOINED = {"target": "onnxruntime", "batch": "1:2:4"}


def with_target(artifact: Artifact, **options: Any) -> Artifact:
    """The artifact with other options of its target in the recipe, and its device in the manifest."""
    manifest = artifact.manifest
    target = TargetSpec.model_validate({**manifest.recipe.target.model_dump(), **options})
    record = replace(manifest.target, device=options.get("device", manifest.target.device))
    changed = replace(manifest, recipe=replace(manifest.recipe, target=target), target=record)
    return dataclasses.replace(artifact, manifest=changed)


def test_an_onnx_file_that_joins_requests(demo: Demo, tmp_path: Path) -> None:
    artifact, out = demo(**JOINED), tmp_path / "repository"
    packaged = package(artifact, "triton", out, {"name": "digits"})
    assert {f.path for f in packaged.files} == {"digits/1/model.onnx", "digits/config.pbtxt", "digits/labels.txt"}
    assert file_digest(out / "digits/1/model.onnx") == file_digest(artifact.path / "graph.onnx")
    assert (out / "digits/labels.txt").read_text().split() == list("0123456789")
    config = read_config(out, "digits")
    assert (config["name"], config["backend"]) == (["digits"], ["onnxruntime"])
    assert config["default_model_filename"] == ["model.onnx"]
    assert config["max_batch_size"] == [4]
    assert shapes(config["input"]) == {"input": ("TYPE_FP32", [1, 32, 32])}, "without the batch"
    assert shapes(config["output"]) == {"output": ("TYPE_FP32", [10])}
    assert config["output"][0]["label_filename"] == ["labels.txt"]
    assert config["dynamic_batching"] == [{"preferred_batch_size": [2]}]
    assert config["instance_group"] == [{"count": [1], "kind": ["KIND_CPU"]}]
    (warm_up,) = config["model_warmup"]
    (fed,) = warm_up["inputs"]
    assert (warm_up["batch_size"], fed["key"], fed["value"][0]["dims"]) == ([2], ["input"], [1, 32, 32])
    assert "parameters" not in config
    assert packaged.notes[0].startswith("not run")
    assert packaged.next == f"tritonserver --model-repository={out}"


def test_one_batch_has_its_full_shape(demo: Demo, tmp_path: Path) -> None:
    package(demo(target="onnxruntime"), "triton", tmp_path / "out", {"name": "one"})
    config = read_config(tmp_path / "out", "one")
    assert config["max_batch_size"] == [0]
    assert shapes(config["input"]) == {"input": ("TYPE_FP32", [1, 1, 32, 32])}
    assert "dynamic_batching" not in config


def test_the_recipes_settings_reach_onnx_runtime(demo: Demo, tmp_path: Path) -> None:
    artifact = demo(**JOINED)
    package(with_target(artifact, threads=3), "triton", tmp_path / "cpu", {"name": "m"})
    assert parameters(read_config(tmp_path / "cpu", "m")) == {"intra_op_thread_count": "3"}
    package(with_target(artifact, device="cuda", tf32=False, sdpa_kernel=2), "triton", tmp_path / "gpu", {"name": "m"})
    config = read_config(tmp_path / "gpu", "m")
    assert config["instance_group"][0]["kind"] == ["KIND_GPU"]
    (accelerator,) = config["optimization"][0]["execution_accelerators"][0]["gpu_execution_accelerator"]
    assert accelerator["name"] == ["cuda"]
    assert {p["key"][0]: p["value"][0] for p in accelerator["parameters"]} == {"use_tf32": "0", "sdpa_kernel": "2"}


def test_openvino_keeps_its_settings_and_its_batches(demo: Demo, tmp_path: Path) -> None:
    artifact = demo(target="openvino", batch="1:2:4")
    out = tmp_path / "out"
    packaged = package(artifact, "triton", out, {"name": "m"})
    config = read_config(out, "m")
    assert (config["backend"], config["max_batch_size"]) == (["openvino"], [0]), "it would pad every smaller batch"
    assert shapes(config["input"]) == {"input": ("TYPE_FP32", [-1, 1, 32, 32])}
    assert parameters(config) == {"PERFORMANCE_HINT": "LATENCY", "TARGET_DEVICE": "CPU"}
    assert config["model_warmup"][0]["inputs"][0]["value"][0]["dims"] == [2, 1, 32, 32]
    assert any("float32" in note for note in packaged.notes), "no parameter says it"
    model = ov.Core().read_model(out / "m/1/model.xml")
    assert [t.get_any_name() for t in (*model.inputs, *model.outputs)] == ["input", "output"]

    package(with_target(artifact, streams=2, hint="throughput", threads=2), "triton", tmp_path / "two", {"name": "m"})
    expected = {"PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": "2", "INFERENCE_NUM_THREADS": "2"}
    assert parameters(read_config(tmp_path / "two", "m")) == {**expected, "TARGET_DEVICE": "CPU"}


def test_openvino_in_bfloat16_is_told_so(demo: Demo, tmp_path: Path) -> None:
    artifact = demo(target="openvino", batch="1:2:4")
    record = replace(artifact.manifest.target, precision="bf16")
    packaged = package(
        dataclasses.replace(artifact, manifest=replace(artifact.manifest, target=record)),
        "triton", tmp_path / "out", {"name": "m"},
    )  # fmt: skip
    assert parameters(read_config(tmp_path / "out", "m"))["HINT_BF16"] == "YES"
    assert not any("float32" in note for note in packaged.notes)


def test_a_plan_of_tensorrt(device: Callable[..., Any], tmp_path: Path) -> None:
    recipe = recipes.compose("demo:digits", target="tensorrt", precision="fp16", batch="1:2:4")
    bundle = export(recipe, tmp_path / "bundle", QUIET, cache=GraphCache()).artifact
    device("10.3")
    engine = compile_bundle(bundle, tmp_path / "engine", QUIET).artifact
    out = tmp_path / "out"
    packaged = package(engine, "triton", out, {"name": "m", "ensemble": True})
    assert (out / "m/1/model.plan").read_bytes() == (engine.path / "engine.plan").read_bytes()
    config = read_config(out, "m")
    assert (config["platform"], config["max_batch_size"]) == (["tensorrt_plan"], [4])
    assert config["instance_group"][0]["kind"] == ["KIND_GPU"]
    assert read_config(out, "m-prepare")["instance_group"][0]["kind"] == ["KIND_CPU"]
    assert any("TensorRT" in note or "tensorrt" in note for note in packaged.notes)
    message = refusal(engine, tmp_path / "python", backend="python")
    assert "Triton's own backend runs engines of TensorRT" in message
    assert f"vitdeploy compile {bundle.path}" in refusal(bundle, tmp_path / "bundled")


def test_an_ensemble_names_its_tensors(made: Callable[..., Artifact], tmp_path: Path) -> None:
    out = tmp_path / "out"
    package(made("yolos"), "triton", out, {"ensemble": True})
    models = sorted(path.name for path in out.iterdir())
    assert models == ["yolos", "yolos-decode", "yolos-images", "yolos-prepare"]
    configs = {name: read_config(out, name) for name in models}
    ensemble = configs["yolos-images"]
    tensors = {step["model_name"][0]: step for step in ensemble["ensemble_scheduling"][0]["step"]}
    assert list(tensors) == ["yolos-prepare", "yolos", "yolos-decode"]
    given = {tensor["name"][0] for tensor in ensemble["input"]}
    for name, step in tensors.items():
        for field, io in (("input_map", "input"), ("output_map", "output")):
            assert {pair["key"][0] for pair in step[field]} <= set(shapes(configs[name][io])), "its own tensors"
        assert {pair["key"][0] for pair in step["input_map"]} == set(shapes(configs[name]["input"]))
        assert {pair["value"][0] for pair in step["input_map"]} <= given, "what an earlier step gives"
        given |= {pair["value"][0] for pair in step["output_map"]}
    assert set(shapes(ensemble["output"])) == {"PROBABILITY", "CLASS", "LABEL", "BOX"} <= given
    assert "instance_group" not in ensemble
    assert (out / "yolos-images/1").is_dir()


def refusal(artifact: Artifact, out: Path, **options: object) -> str:
    with pytest.raises(UsageError) as caught:
        package(artifact, "triton", out, {"name": "m", **options})
    assert not out.exists(), "nothing is written"
    assert not list(out.parent.glob(".*partial*"))
    return str(caught.value)


def test_what_triton_cannot_serve_is_refused(demo: Demo, tmp_path: Path) -> None:
    artifact, out = demo(**JOINED), tmp_path / "out"
    manifest = artifact.manifest
    (scores,) = manifest.outputs
    strange = dataclasses.replace(
        artifact, manifest=replace(manifest, outputs=(replace(scores, dtype="complex64"),))
    )  # fmt: skip
    assert "no data type for output" in refusal(strange, out)
    assert "no backend for trt-rtx" in refusal(with_target(artifact, device="trt-rtx"), out)
    rtx = dataclasses.replace(
        artifact, manifest=replace(manifest, target=replace(manifest.target, kind="tensorrt-rtx"))
    )  # fmt: skip
    assert "no backend for tensorrt-rtx" in refusal(rtx, out)
    assert "cannot be the name" in refusal(artifact, out, name="a/b")
    depth = replace(manifest.recipe, task=TaskSpec.model_validate({"kind": "depth"}))
    other = dataclasses.replace(artifact, manifest=replace(manifest, recipe=depth))
    assert "task is depth" in refusal(other, out, ensemble=True)
    package(other, "triton", out, {"name": "m"})
    (image,) = manifest.inputs
    clips = dataclasses.replace(
        artifact, manifest=replace(manifest, inputs=(replace(image, shape=("batch", 8, 1, 32, 32)),))
    )  # fmt: skip
    assert "clips" in refusal(clips, tmp_path / "clips", ensemble=True)


@pytest.mark.parametrize(("kind", "other"), [("openvino", "onnxruntime"), ("onnxruntime", "openvino")])
def test_a_manifest_that_names_two_targets_is_refused(demo: Demo, tmp_path: Path, kind: str, other: str) -> None:
    """The files of an engine are found by its target: those of another would be copied without its weights."""
    artifact = demo(target=kind)
    manifest = artifact.manifest
    edited = replace(manifest, target=replace(manifest.target, kind=other))
    with pytest.raises(ArtifactError, match=f"names two targets, {kind} in the recipe and {other}"):
        package(dataclasses.replace(artifact, manifest=edited), "triton", tmp_path / "out", {"name": "m"})
    assert not (tmp_path / "out").exists()


def test_a_file_that_has_gone_is_no_package(demo: Demo, copy: Callable[[Artifact], Artifact], tmp_path: Path) -> None:
    artifact = copy(demo(**JOINED))
    artifact.file("graph.onnx").unlink()
    with pytest.raises(ArtifactError, match=r"graph\.onnx has gone"):
        package(artifact, "triton", tmp_path / "out", {"name": "m"})
    assert not (tmp_path / "out").exists()


def test_the_command(demo: Demo, tmp_path: Path) -> None:
    artifact, out = demo(**JOINED), tmp_path / "repository"
    line = ["package", str(artifact.path), "--for", "triton", "-o", str(out), "--name", "digits", "--json"]
    result = CliRunner().invoke(app, [*line, "--backend", "python", "--ensemble"])
    assert result.exit_code == 0, result.output
    paths = {file["path"] for file in json.loads(result.stdout)["files"]}
    assert {"digits/1/model.py", "digits-prepare/1/model.py", "digits-decode/1/vitdeploy_geometry.py"} <= paths
    assert CliRunner().invoke(app, line).exit_code == 1, "it exists"
    assert CliRunner().invoke(app, [*line, "--backend", "java"]).exit_code == 2
    wrong = CliRunner().invoke(app, ["package", str(artifact.path), "--for", "ovms", "-o", "x", "--ensemble"])
    assert (wrong.exit_code, "--ensemble does nothing for ovms" in wrong.output) == (1, True)


def test_a_package_may_not_lie_in_the_artifact(demo: Demo, copy: Callable[[Artifact], Artifact]) -> None:
    artifact = copy(demo(**JOINED))
    assert "inside the artifact" in refusal(artifact, artifact.path / "package")
    artifacts.load(artifact.path)


def test_what_a_manifest_says_stays_in_its_comment(demo: Demo, tmp_path: Path) -> None:
    """As in an artifact that somebody has made; the notes of TensorRT's engine name it."""
    artifact, out = demo(**JOINED), tmp_path / "out"
    engine = 'tensorrt 10\nbackend: "python"\r\u2028name: "evil"'
    record = replace(artifact.manifest.target, kind="tensorrt", backend=engine, device="cuda")
    manifest = replace(artifact.manifest, target=record)
    served = _write_tensorrt(dataclasses.replace(artifact, manifest=manifest), "graph.onnx", tmp_path, "native")
    (out / "m").mkdir(parents=True)
    model = ModelConfig("m", served.head, served.batching, [], [], notes=served.notes)
    (out / "m/config.pbtxt").write_text(model.format(), encoding="utf-8")
    config = read_config(out, "m")
    assert (config["name"], config.get("backend")) == (["m"], None)
    assert "evil" not in "".join(line for line in model.format().splitlines() if not line.startswith("#"))


def with_spec(artifact: Artifact, **changes: Any) -> Artifact:
    return dataclasses.replace(artifact, manifest=replace(artifact.manifest, **changes))


@pytest.mark.parametrize("name", ["IMAGE", "IMAGE_SIZE", "SCORES", "LABEL"])
def test_an_input_that_is_named_as_a_tensor_of_the_ensemble(name: str, demo: Demo, tmp_path: Path) -> None:
    artifact, out = demo(**JOINED), tmp_path / "out"
    (image,) = artifact.manifest.inputs
    package(with_spec(artifact, inputs=(replace(image, name=name),)), "triton", out, {"ensemble": True, "name": "m"})
    steps = read_config(out, "m-images")["ensemble_scheduling"][0]["step"]
    given = ["IMAGE", *(pair["value"][0] for step in steps for pair in step["output_map"])]
    assert len(set(given)) == len(given), "one tensor has one source"
    (prepared,) = (pair["value"][0] for pair in steps[0]["output_map"])
    assert steps[1]["input_map"] == [{"key": [name], "value": [prepared]}]
    assert list(shapes(read_config(out, "m-prepare")["output"])) == [prepared]
    assert json.loads((out / "m-prepare/1/settings.json").read_text())["outputs"] == [prepared]


def test_a_detector_whose_number_of_queries_varies(made: Callable[..., Artifact], tmp_path: Path) -> None:
    artifact = made("yolos")
    outputs = tuple(
        replace(spec, shape=(spec.shape[0], "queries", *spec.shape[2:])) for spec in artifact.manifest.outputs
    )
    package(with_spec(artifact, outputs=outputs), "triton", tmp_path / "out", {"ensemble": True, "name": "m"})
    settings = json.loads((tmp_path / "out/m-decode/1/settings.json").read_text())
    assert settings["count"] == settings["reading"]["top_k"]


def test_a_family_is_refused(tmp_path: Path) -> None:
    (tmp_path / "family.json").write_text("{}")
    result = CliRunner().invoke(app, ["package", str(tmp_path), "--for", "triton", "-o", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert "family" in result.output
