"""`vitdeploy bom`: valid by the official schema, and every figure is that of the manifest and the evidence."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from tests.cli.conftest import run
from tests.evidence import timed_bench
from vitdeploy import artifact as artifacts
from vitdeploy.artifact import Artifact
from vitdeploy.commands.bom.bom import make_bom, write_document
from vitdeploy.commands.bom.licences import find_library_licence, name_licence
from vitdeploy.commands.gate.evidence import read_evidence
from vitdeploy.frozen import replace
from vitdeploy.sources import _licence


def validate(document: Any) -> None:
    problem = JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(document))
    assert problem is None, problem


def document_of(artifact: Artifact) -> dict[str, Any]:
    document = write_document(artifact, read_evidence(artifact))
    validate(document)
    return document


def metrics_of(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    card = document["metadata"]["component"]["modelCard"]
    return {each["type"]: each for each in card["quantitativeAnalysis"]["performanceMetrics"]}


@pytest.fixture
def quantized(demo: Callable[..., Artifact], copy: Callable[[Artifact], Artifact]) -> Artifact:
    """The digits in INT8, evaluated and timed."""
    artifact = copy(demo(target="openvino", precision="int8"))
    artifact.write_evidence(timed_bench(artifact, 3.0))
    assert run("eval", artifact.path, "--data", "demo:digits", "--limit", 60).code == 0
    return artifacts.load(artifact.path)


def test_it_names_the_model_its_files_its_data_and_the_libraries(quantized: Artifact, tmp_path: Path) -> None:
    out = tmp_path / "digits.cdx.json"
    ended = run("bom", quantized.path, "-o", out)
    assert ended.code == 0, ended.err
    assert "no licence is known of" in ended.err
    document = json.loads(out.read_text())
    validate(document)
    manifest, model = quantized.manifest, document["metadata"]["component"]
    assert (model["type"], model["name"]) == ("machine-learning-model", "demo:digits")
    assert model["hashes"] == [{"alg": "SHA-256", "content": quantized.digest}]
    assert model["pedigree"]["ancestors"][0]["hashes"] == [{"alg": "SHA-256", "content": manifest.model.digest}]
    hashes = {each["bom-ref"]: each["hashes"][0]["content"] for each in document["components"] if "hashes" in each}
    assert {f"file:{entry.path}": entry.sha256 for entry in manifest.files}.items() <= hashes.items()
    evaluation = json.loads((quantized.path / "eval.json").read_text())
    assert manifest.quantized is not None
    assert manifest.quantized.calibration is not None
    assert hashes["data:evaluation"] == evaluation["data_digest"]
    assert hashes["data:calibration"] == manifest.quantized.calibration.digest
    assert model["modelCard"]["modelParameters"]["datasets"] == [
        {"ref": "data:calibration"},
        {"ref": "data:evaluation"},
    ]
    versions = {each["name"]: each["version"] for each in document["components"] if each["type"] == "library"}
    assert manifest.versions.items() <= versions.items()
    depends = document["dependencies"][0]
    assert depends == {"ref": "model", "dependsOn": [each["bom-ref"] for each in document["components"]]}


def test_the_metrics_are_those_of_the_evidence(quantized: Artifact) -> None:
    metrics = metrics_of(document_of(quantized))
    evaluation = json.loads((quantized.path / "eval.json").read_text())
    top1 = evaluation["metrics"]["top1"]
    drop = metrics["drop of top1 against the float32 reference (points)"]
    assert float(metrics["top1 (points)"]["value"]) == pytest.approx(top1["deployed"], rel=1e-5)
    assert float(drop["value"]) == pytest.approx(top1["drop"], rel=1e-5, abs=1e-9)
    assert [float(drop["confidenceInterval"][end]) for end in ("lowerBound", "upperBound")] == pytest.approx(
        top1["ci95"], rel=1e-5, abs=1e-9
    )
    assert float(metrics["speed-up over pytorch-fp32"]["value"]) == pytest.approx(3.0)
    assert float(metrics["latency p50 (ms)"]["value"]) == pytest.approx(10 / 3, rel=1e-5)


def test_the_card_says_how_it_is_quantized(quantized: Artifact) -> None:
    card = document_of(quantized)["metadata"]["component"]["modelCard"]
    properties = {each["name"].removeprefix("vitdeploy:"): each["value"] for each in card["properties"]}
    assert quantized.manifest.quantized is not None
    assert (properties["precision"], properties["target"]) == ("int8", "openvino")
    assert properties["quantization"] == quantized.manifest.quantized.method
    assert properties["attention fused"] == "4 of 4 (compiled)"
    assert float(properties["multiply-accumulates in this precision (%)"]) > 50
    assert card["modelParameters"]["architectureFamily"] == "vision transformer"


def test_doubtful_figures_are_left_out_and_named_as_a_limit(quantized: Artifact) -> None:
    quantized.write_evidence(timed_bench(quantized, 3.0, "the spread is 40 %"))
    document = document_of(quantized)
    assert not [name for name in metrics_of(document) if "latency" in name or "speed" in name]
    limits = document["metadata"]["component"]["modelCard"]["considerations"]["technicalLimitations"]
    assert any("40 %" in limit for limit in limits)


def test_contradictory_evidence_gives_no_metric(quantized: Artifact) -> None:
    facts = json.loads((quantized.path / "eval.json").read_text())
    facts["metrics"]["top1"]["deployed"] = 99.9
    (quantized.path / "eval.json").write_text(json.dumps(facts))
    card = document_of(quantized)["metadata"]["component"]["modelCard"]
    assert "quantitativeAnalysis" not in card
    assert "its evidence is refused" in card["considerations"]["technicalLimitations"][0]


def remove_samples(folder: Path) -> None:
    (folder / "eval.samples.npz").unlink()


def clear_samples(folder: Path) -> None:
    facts = json.loads((folder / "eval.json").read_text())
    (folder / "eval.json").write_text(json.dumps({**facts, "samples": ""}))


def strip_blocks(folder: Path) -> None:
    facts = json.loads((folder / "bench.json").read_text())
    for each in facts["runs"]:
        each["blocks"] = []
    (folder / "bench.json").write_text(json.dumps(facts))


@pytest.mark.parametrize("remove", [remove_samples, clear_samples, strip_blocks])
def test_figures_without_their_raw_data_are_not_listed(remove: Callable[[Path], None], quantized: Artifact) -> None:
    """Whoever edits a figure would only have to remove what contradicts it."""
    remove(quantized.path)
    document = document_of(quantized)
    metrics, of_bench = metrics_of(document), remove is strip_blocks
    assert ("latency p50 (ms)" in metrics, "top1 (points)" in metrics) == (not of_bench, of_bench)
    assert ("data:evaluation" in {each["bom-ref"] for each in document["components"]}) == of_bench
    limits = document["metadata"]["component"]["modelCard"]["considerations"]["technicalLimitations"]
    assert any("figures are not listed" in limit and "samples" in limit for limit in limits)


def test_a_doubtful_evaluation_is_left_out_and_named_as_a_limit(quantized: Artifact) -> None:
    evidence = read_evidence(quantized)
    assert evidence.examined.evaluation is not None
    doubtful = replace(evidence.examined.evaluation, doubts=("every label is class 3",))
    examined = dataclasses.replace(evidence.examined, evaluation=doubtful)
    document = write_document(quantized, dataclasses.replace(evidence, examined=examined))
    assert [name for name in metrics_of(document) if "top1" in name] == []
    assert "latency p50 (ms)" in metrics_of(document)
    limits = document["metadata"]["component"]["modelCard"]["considerations"]["technicalLimitations"]
    assert "every label is class 3" in limits


def test_a_bundle_has_one_without_metrics(demo: Callable[..., Artifact], copy: Callable[[Artifact], Artifact]) -> None:
    bundle = copy(demo(target="tensorrt"))
    bundle.write_evidence(timed_bench(bundle, 3.0))
    document = document_of(bundle)
    card = document["metadata"]["component"]["modelCard"]
    assert "quantitativeAnalysis" not in card
    assert {"name": "vitdeploy:stage", "value": "bundle"} in card["properties"]


def test_the_same_artifact_gives_the_same_bytes(quantized: Artifact, tmp_path: Path) -> None:
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    make_bom(quantized, first)
    make_bom(quantized, second)
    assert first.read_bytes() == second.read_bytes()


def test_it_is_printed_without_a_file(quantized: Artifact) -> None:
    validate(json.loads(run("bom", quantized.path).out))
    made = json.loads(run("bom", quantized.path, "--json").out)
    validate(made["document"])
    assert (made["file"], made["components"]) == (None, len(made["document"]["components"]))


def test_nothing_is_written_into_the_artifact(quantized: Artifact) -> None:
    (quantized.path / "audit.json").unlink()
    assert run("bom", quantized.path).code == 0
    assert not (quantized.path / "audit.json").exists(), "a signed folder would be another one"


def test_the_file_may_not_lie_in_the_artifact(quantized: Artifact, tmp_path: Path) -> None:
    assert "inside the artifact" in run("bom", quantized.path, "-o", quantized.path / "bom.json").error
    assert "is a folder" in run("bom", quantized.path, "-o", tmp_path).error
    assert "there is no folder" in run("bom", quantized.path, "-o", tmp_path / "no" / "bom.json").error
    artifacts.load(quantized.path)


def test_a_licence_of_the_model_is_named_twice(quantized: Artifact) -> None:
    """Of the artifact, and of the model that it was made of."""
    model = replace(quantized.manifest.model, license="apache-2.0")
    licensed = dataclasses.replace(quantized, manifest=replace(quantized.manifest, model=model))
    component = document_of(licensed)["metadata"]["component"]
    assert component["licenses"] == component["pedigree"]["ancestors"][0]["licenses"] == name_licence("apache-2.0")


def test_licences_have_the_identifier_of_spdx_where_it_is_known() -> None:
    assert name_licence("apache-2.0") == [{"license": {"id": "Apache-2.0"}}]
    assert name_licence("MIT License") == [{"license": {"id": "MIT"}}]
    assert name_licence("dinov3-license") == [{"license": {"name": "dinov3-license"}}]
    assert name_licence("") == []


def test_a_library_of_another_version_has_no_licence() -> None:
    from importlib.metadata import version

    assert find_library_licence("timm", version("timm")) == [{"license": {"id": "Apache-2.0"}}]
    assert find_library_licence("timm", "0.0.1") == find_library_licence("no-such-library", "1") == []
    for name in ("torch", "numpy", "onnxscript", "onnxruntime"):
        assert find_library_licence(name, version(name)), name


def test_unknown_is_no_licence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Older setuptools wrote it where a library names its licence by a classifier only."""
    folder = tmp_path / "of_classifiers-1.0.dist-info"
    folder.mkdir()
    classifier = "Classifier: License :: OSI Approved :: MIT License"
    (folder / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: of-classifiers\nVersion: 1.0\nLicense: UNKNOWN\n{classifier}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert find_library_licence("of-classifiers", "1.0") == [{"license": {"id": "MIT"}}]


def test_the_licence_of_weights_is_that_of_their_library_or_card(tmp_path: Path) -> None:
    import timm

    module = timm.create_model("vit_tiny_patch16_224.augreg_in21k", pretrained=False, depth=1)
    assert _licence.of_timm(module) == "apache-2.0"
    assert _licence.of_timm(SimpleNamespace()) == ""
    for text, licence in {
        "---\nlicense: cc-by-nc-4.0\ntags: [vision]\n---\n# A model": "cc-by-nc-4.0",
        "---\nlicense: other\nlicense_name: dinov3-license\n---\n": "dinov3-license",
        "# license: mit": "",
        "---\nlicense: [mit, apache-2.0]\n---\n": "",
        "---\nlicense: {a: [}\n---\n": "",
    }.items():
        (tmp_path / "README.md").write_text(text)
        assert _licence.of_folder(tmp_path) == licence, text
    assert _licence.of_folder(tmp_path / "nowhere") == ""
