"""`vitdeploy package --for ovms`: the configuration, and the IR that tells other programs how to run it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import openvino as ov
import pytest
from typer.testing import CliRunner

from tests.commands.package.test_triton import with_target
from vitdeploy import artifact as artifacts
from vitdeploy.artifact import Artifact, file_digest
from vitdeploy.cli import app
from vitdeploy.commands.package import package
from vitdeploy.errors import ArtifactError, UsageError
from vitdeploy.frozen import replace
from vitdeploy.runtime.artifact_session import open_session

Demo = Callable[..., Artifact]

# The options of a model in "Model Server Parameters" of OVMS's documentation, with their types.
_OPTIONS = {
    "name": {"type": "string"},
    "base_path": {"type": "string", "pattern": "^/"},
    "target_device": {"type": "string"},
    "plugin_config": {"type": "object", "additionalProperties": {"type": ["string", "number"]}},
    "nireq": {"type": "integer", "minimum": 0},
    "batch_size": {"type": ["integer", "string"]},
    "shape": {"type": ["object", "string"]},
    "layout": {"type": ["object", "string"]},
    "model_version_policy": {"type": "object"},
}
_MODEL = {"type": "object", "required": ["name", "base_path"], "properties": _OPTIONS, "additionalProperties": False}
_ENTRY = {"type": "object", "required": ["config"], "properties": {"config": _MODEL}, "additionalProperties": False}
SCHEMA = {
    "type": "object",
    "required": ["model_config_list"],
    "properties": {"model_config_list": {"type": "array", "items": _ENTRY, "minItems": 1}},
    "additionalProperties": False,
}


def test_a_repository(demo: Demo, tmp_path: Path) -> None:
    artifact, out = demo(target="openvino", batch="1:2:4"), tmp_path / "repository"
    packaged = package(artifact, "ovms", out, {"name": "digits"})
    assert {f.path for f in packaged.files} == {"config.json", "digits/1/model.xml", "digits/1/model.bin"}
    config = json.loads((out / "config.json").read_text())
    jsonschema.validate(config, SCHEMA)
    (entry,) = config["model_config_list"]
    assert entry["config"]["base_path"] == "/models/digits"
    assert entry["config"]["plugin_config"] == {
        "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
    }  # fmt: skip
    assert f"{out}:/models" in packaged.next
    assert "--config_path /models/config.json" in packaged.next
    assert packaged.notes[0].startswith("not run")


def test_the_served_model_gives_the_artifacts_numbers(demo: Demo, tmp_path: Path) -> None:
    """OpenVINO, with the device and the properties of config.json, as OVMS compiles it."""
    artifact, out = demo(target="openvino", batch="1:2:4"), tmp_path / "out"
    package(artifact, "ovms", out, {"name": "m"})
    config = json.loads((out / "config.json").read_text())["model_config_list"][0]["config"]
    core = ov.Core()
    compiled = core.compile_model(out / "m/1/model.xml", config["target_device"], config["plugin_config"])
    images = np.random.default_rng(0).standard_normal((3, 1, 32, 32)).astype(np.float32)
    with open_session(artifact, None) as session:
        expected = session.run({"input": images})["output"]
    np.testing.assert_allclose(compiled({"input": images})["output"], expected, atol=1e-5)
    assert str(compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()) == "f32"


def test_the_artifact_stays_as_it_is(demo: Demo, tmp_path: Path) -> None:
    artifact, out = demo(target="openvino", batch="1:2:4"), tmp_path / "out"
    before = artifact.file("model.xml").read_bytes()
    package(artifact, "ovms", out, {"name": "m"})
    assert artifacts.load(artifact.path).digest == artifact.digest
    assert file_digest(out / "m/1/model.bin") == file_digest(artifact.file("model.bin"))
    copy = (out / "m/1/model.xml").read_bytes()
    head = before[: before.rindex(b"</rt_info>")].rstrip()
    assert copy.startswith(head), "only lines at the end are added"
    assert copy != before


def test_dynamic_int8_is_in_the_model_itself(demo: Demo, tmp_path: Path) -> None:
    """OpenVINO would round activations by itself: a program without settings must not, unless it was exported so."""
    artifact = demo(target="openvino", batch="1:2:4")
    record = replace(artifact.manifest.target, precision="int8-dynamic")
    rounding = dataclasses.replace(artifact, manifest=replace(artifact.manifest, target=record))
    for name, one, expected in (("exact", artifact, 0), ("rounding", rounding, 32)):
        package(one, "ovms", tmp_path / name, {"name": "m"})
        compiled = ov.Core().compile_model(tmp_path / name / "m/1/model.xml", "CPU")
        assert compiled.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE") == expected


def refusal(artifact: Artifact, out: Path) -> str:
    with pytest.raises((UsageError, ArtifactError)) as caught:
        package(artifact, "ovms", out, {"name": "m"})
    assert not out.exists()
    return str(caught.value)


def test_other_artifacts_are_refused(demo: Demo, tmp_path: Path) -> None:
    message = refusal(demo(target="onnxruntime", batch="1:2:4"), tmp_path / "out")
    assert "by other rules" in message
    assert "--target openvino" in message
    artifact = demo(target="openvino", batch="1:2:4")
    bundle = dataclasses.replace(artifact, manifest=replace(artifact.manifest, stage="bundle", runs=None))
    assert f"vitdeploy compile {bundle.path}" in refusal(bundle, tmp_path / "out")


@pytest.mark.parametrize("name", ["config.json", "Config.JSON"])
def test_a_model_is_not_named_as_the_configuration(name: str, demo: Demo, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot be named .*--name"):
        package(demo(target="openvino", batch="1:2:4"), "ovms", tmp_path / "out", {"name": name})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("threads", [None, 1])
def test_auto_passes_properties_of_the_cpu_on_to_the_cpu(threads: int | None, demo: Demo, tmp_path: Path) -> None:
    artifact, out = (
        with_target(demo(target="openvino", batch="1:2:4"), device="AUTO", threads=threads),
        tmp_path / "out",
    )
    package(artifact, "ovms", out, {"name": "m"})
    config = json.loads((out / "config.json").read_text())["model_config_list"][0]["config"]
    properties = config["plugin_config"]
    assert config["target_device"] == "AUTO"
    assert set(properties) == {"PERFORMANCE_HINT", "INFERENCE_PRECISION_HINT", "DEVICE_PROPERTIES"}
    assert ("INFERENCE_NUM_THREADS:1" in properties["DEVICE_PROPERTIES"]) == (threads == 1)
    core = ov.Core()
    compiled = core.compile_model(core.read_model(out / "m/1/model.xml"), "AUTO", properties)
    values = compiled.get_property("DEVICE_PROPERTIES")["CPU"]
    assert values["DYNAMIC_QUANTIZATION_GROUP_SIZE"] == 0
    if threads is not None:
        assert values["INFERENCE_NUM_THREADS"] == threads
    package(artifact, "triton", tmp_path / "python", {"name": "m", "backend": "python"})
    assert json.loads((tmp_path / "python/m/1/settings.json").read_text())["properties"] == properties


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"no XML", "is not an IR"),
        (b"<!DOCTYPE net [<!ENTITY a 'b'>]><net></net>", "is not an IR"),
        (b"<net><layers/></net>", "does not name the inputs"),
    ],
)
def test_a_hostile_ir_is_refused(
    content: bytes, reason: str, demo: Demo, copy: Callable[[Artifact], Artifact], tmp_path: Path
) -> None:
    """Even if its hash is right, as in an artifact that somebody has made."""
    artifact = copy(demo(target="openvino", batch="1:2:4"))
    path = artifact.file("model.xml")
    path.write_bytes(content)
    files = tuple(
        replace(f, sha256=file_digest(path), bytes=len(content)) if f.path == "model.xml" else f
        for f in artifact.manifest.files
    )
    changed = dataclasses.replace(artifact, manifest=replace(artifact.manifest, files=files))
    out: Any = tmp_path / "out"
    with pytest.raises(ArtifactError, match=reason):
        package(changed, "triton", out, {"name": "m"})
    assert not out.exists()


def test_the_command(demo: Demo, tmp_path: Path) -> None:
    artifact, out = demo(target="openvino", batch="1:2:4"), tmp_path / "out"
    line = ["package", str(artifact.path), "--for", "ovms", "--name", "digits", "-o", str(out)]
    result = CliRunner().invoke(app, line)
    assert result.exit_code == 0, result.output
    assert "not run" in result.stdout
    assert "grey" in result.stdout, "why there is no model_info"
