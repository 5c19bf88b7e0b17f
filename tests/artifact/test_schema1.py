"""Folders that vitdeploy 0.1.0 made, whose manifests are of schema 1: read in full, or refused; never half-read.

`fixtures/schema1` was made by vitdeploy 0.1.0 at commit 2d406db: two small artifacts, and the records of quantization
that its precisions wrote for one model.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import run
from tests.cli.test_contract import answer
from vitdeploy import artifact as artifacts
from vitdeploy.artifact import MANIFEST, Artifact
from vitdeploy.artifact.quantization import Quantization
from vitdeploy.commands.compile import compile_bundle
from vitdeploy.errors import ArtifactError
from vitdeploy.evidence import Bench, Eval, Gate, Sensitivity
from vitdeploy.progress import Silent

FOLDER = Path(__file__).parents[1] / "fixtures" / "schema1"
RECORDS: list[dict[str, Any]] = json.loads((FOLDER / "records.json").read_text())


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    """ONNX Runtime, int8, with all evidence."""
    return artifacts.load(Path(shutil.copytree(FOLDER / "onnxruntime-int8", tmp_path / "onnxruntime-int8")))


@pytest.fixture
def bundle(tmp_path: Path) -> Artifact:
    """TensorRT, int8, rehearsed."""
    return artifacts.load(Path(shutil.copytree(FOLDER / "tensorrt-int8", tmp_path / "tensorrt-int8")))


def test_what_was_free_text_is_typed(artifact: Artifact) -> None:
    record = artifact.manifest.quantized
    assert record is not None
    assert (record.method, record.quantized, record.weight_bits) == ("static Q/DQ", 13, 8)
    assert (record.migration, record.ranges, record.bias_correction) == (None, "minmax", True)
    assert record.output_sqnr_db == pytest.approx(47.1)
    assert [step.alpha for step in record.tried] == [None, 0.25, 0.5, 0.75, None, None]
    assert record.calibration is not None
    assert (record.calibration.data, record.calibration.images) == ("demo:digits", 128)


@pytest.mark.parametrize("kind", [Bench, Eval, Gate, Sensitivity])
def test_its_evidence_is_still_about_it(kind: Any, artifact: Artifact) -> None:
    evidence, reason = artifact.read_evidence(kind)
    assert (evidence is not None, reason) == (True, "")


def test_the_runs_of_its_bench_have_roles(artifact: Artifact) -> None:
    bench, _ = artifact.read_evidence(Bench)
    assert bench is not None
    assert [(run.name, run.role) for run in bench.runs] == [
        ("pytorch-fp32", "reference"),
        ("onnxruntime-int8", "artifact"),
    ]


def test_every_command_that_reads_takes_it(artifact: Artifact, tmp_path: Path) -> None:
    inspected = answer(run("inspect", artifact.path, "--json"))
    assert (inspected["precision"], inspected["attention"]["fused"]) == ("int8", 2)
    gated = answer(run("gate", artifact.path, "--min-fused", "100", "--max-size", "1", "--json"))
    assert {check["name"]: check["status"] for check in gated["checks"]} == {
        "attention fused": "pass",
        "size (MiB)": "pass",
    }
    reported = run("report", artifact.path, "-o", tmp_path / "page.html")
    assert reported.code == 0, reported.err
    page = (tmp_path / "page.html").read_text()
    assert "static Q/DQ" in page
    assert "47.1" in page
    text = run("inspect", artifact.path).out
    assert "2 of 2" in text or "2/2" in text


def test_a_bundle_is_inspected_gated_and_reported(bundle: Artifact, tmp_path: Path) -> None:
    inspected = answer(run("inspect", bundle.path, "--json"))
    assert (inspected["attention"]["evidence"], inspected["attention"]["fused"]) == ("rehearsed", 2)
    assert answer(run("gate", bundle.path, "--min-fused", "100", "--json"), code=3)["verdict"] == "invalid"
    reported = run("report", bundle.path, "-o", tmp_path / "page.html")
    assert reported.code == 0, reported.err
    half = bundle.manifest.quantized.half if bundle.manifest.quantized is not None else None
    assert half is not None
    assert (half.dtype, half.largest, half.limit) == ("float16", pytest.approx(4.883), 16376)


def test_compiling_it_writes_the_new_schema_and_loses_nothing(artifact: Artifact) -> None:
    before = artifact.manifest.quantized
    compiled = compile_bundle(artifact, None, Silent()).artifact
    assert json.loads((compiled.path / MANIFEST).read_text())["schema_version"] == 2
    assert artifacts.load(compiled.path).manifest.quantized == before


@pytest.mark.parametrize("case", RECORDS, ids=lambda case: case["made_as"])
def test_every_record_is_read_in_full(case: dict[str, Any], rewrite: Callable[[Any], Path]) -> None:
    record = artifacts.load(rewrite(case["quantized"])).manifest.quantized
    assert record is not None
    texts = " ".join(f"{name}: {value}" for name, value in record.rows())
    for key, text in case["quantized"].items():
        if "digest" in key or key.endswith("edges"):
            continue  # a digest is kept but not shown; the edges of a graph are float32 in any case
        for number in re.findall(r"(?<![\w.])\d+(?:\.\d+)?", text.partition(": float16's")[0]):
            assert number.removesuffix(".0") in texts, (key, text, texts)
    assert Quantization.model_validate_json(record.model_dump_json()) == record


@pytest.fixture
def rewrite(tmp_path: Path) -> Callable[[Any], Path]:
    """Puts another record into the manifest of a copy."""

    def write(record: Any) -> Path:
        folder = Path(shutil.copytree(FOLDER / "onnxruntime-int8", tmp_path / "rewritten"))
        raw = json.loads((folder / MANIFEST).read_text())
        (folder / MANIFEST).write_text(json.dumps({**raw, "quantized": record}))
        return folder

    return write


@pytest.mark.parametrize(
    ("made_as", "dtype", "scope", "synthetic"),
    [
        ("openvino bf16, calibrated", "bfloat16", "weights", None),
        ("tensorrt fp16, calibrated", "float16", "all", False),
        ("tensorrt fp16", "float16", "all", True),
    ],
)
def test_sixteen_bit_floats_are_typed(
    made_as: str, dtype: str, scope: str, synthetic: bool | None, rewrite: Callable[[Any], Path]
) -> None:
    (texts,) = (case["quantized"] for case in RECORDS if case["made_as"] == made_as)
    record = artifacts.load(rewrite(texts)).manifest.quantized
    assert record is not None
    assert record.half is not None
    assert (record.half.dtype, record.half.scope) == (dtype, scope)
    assert (record.half.checked_on.synthetic if record.half.checked_on else None) == synthetic


def test_doubts_are_kept_and_outputs_without_noise_have_no_ratio(rewrite: Callable[[Any], Path]) -> None:
    doubt = "all images are of one class"
    texts = {"method": "static Q/DQ", "output_sqnr_db": "inf", "calibration": "images", "doubt: 0": doubt}
    record = artifacts.load(rewrite(texts)).manifest.quantized
    assert record is not None
    assert (record.doubts, record.output_sqnr_db) == ((doubt,), None)


@pytest.mark.parametrize(
    ("record", "named"),
    [
        ({"method": "static Q/DQ", "colour": "blue"}, "unknown key 'colour'"),
        ({"method": "static Q/DQ", "migration": "a little"}, "migration is 'a little'"),
        ({"method": "static Q/DQ", "tried": "no migration, minmax ranges: 45.7"}, "tried is"),
        ({"method": "static Q/DQ", "weight_bits": "eight"}, "eight"),
        ({"method": "static Q/DQ", "output_sqnr_db": "loud"}, "loud"),
        ({"method": "static Q/DQ", "bias_correction": "maybe"}, "bias_correction is 'maybe'"),
        ({"method": "static Q/DQ", "ranges": "widest"}, "ranges"),
        ({"method": "float16 throughout", "largest": "big"}, "largest is 'big'"),
        ({"method": "float16 throughout", "colour": "blue"}, "unknown key 'colour'"),
        ({"method": "static Q/DQ", "around: colour": "blue"}, "unknown key 'colour'"),
        ({"activations": "uint8"}, "method"),
        ({"method": 1}, "not a map of texts"),
        ("static Q/DQ", "not a map of texts"),
        (None, "not a map of texts"),
    ],
)
def test_a_record_that_is_not_understood_is_refused(record: Any, named: str, rewrite: Callable[[Any], Path]) -> None:
    folder = rewrite(record)
    with pytest.raises(ArtifactError, match=r"manifest\.json.*") as caught:
        artifacts.load(folder)
    assert named in caught.value.message
    assert "Export it again" in caught.value.fix
    for command in ("inspect", "gate", "report"):
        assert run(command, folder).code == 1
