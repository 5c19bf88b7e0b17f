"""The variants of a bundle: their names, and selecting one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from tests.artifact.test_artifact import manifest
from vitdeploy import artifact as artifacts
from vitdeploy.artifact import PassRecord, Variant
from vitdeploy.artifact.layout import is_in_bundle
from vitdeploy.artifact.quantization import Int8AttentionCount, Migration, Quantization
from vitdeploy.artifact.variants import find_variant, place_variant, select_variant, start_trial
from vitdeploy.errors import UsageError
from vitdeploy.frozen import replace


def variant(name: str, precision: str, lowered: int) -> Variant:
    facts = manifest()
    return Variant(
        name=name, precision=precision, passes=(PassRecord(name=f"lower-{lowered}", fired=lowered),),
        inputs=facts.inputs, outputs=facts.outputs,
    )  # fmt: skip


def with_variants() -> artifacts.Manifest:
    plain, other = variant("fp16", "fp16", 1), variant("int8", "int8", 2)
    shared = PassRecord(name="raise", fired=3)
    return manifest(
        variants=(plain, other), variant="fp16", passes=(shared, *plain.passes), stage="bundle", runs=None,
        target=artifacts.TargetRecord(kind="tensorrt", device="GPU", precision="fp16"),
    )  # fmt: skip


@pytest.mark.parametrize("name", [
    "graph.onnx", "graph.onnx.data", "graph.int8.onnx", "graph.fp16-separate-qkv.onnx", "sites.json", "sites.int8.json",
    "reference/judge.npz",
])  # fmt: skip
def test_files_of_variants_belong_to_the_bundle(name: str) -> None:
    assert is_in_bundle(name)


@pytest.mark.parametrize(
    "name", ["engine.plan", "graph..onnx", "graph.a/b.onnx", "graph.INT8.onnx", "sites..json", "x"]
)
def test_other_files_do_not(name: str) -> None:
    assert not is_in_bundle(name)


def test_a_variants_trial_has_its_quantizer_and_its_options() -> None:
    record = Quantization(
        method="static Q/DQ", quantizer="nncf", attention=Int8AttentionCount(sites=2, of=2, values_alone=True),
        migration=Migration(alpha=0.5, inputs=2, norms=5),
    )  # fmt: skip
    plain = variant("int8", "int8", 1)
    assert start_trial(plain).label == "int8"
    assert start_trial(replace(plain, form="fp32-scores")).label == "int8-fp32-scores"
    full = start_trial(replace(plain, quantized=record))
    assert full.label == "int8 by NNCF with INT8 attention (values only), norms folded"


@pytest.mark.parametrize("name", ["", "../x", "a/b", "FP16", "fp16-", "a" * 101])
def test_a_variants_name_is_safe_in_a_file_name(name: str) -> None:
    with pytest.raises(ValidationError):
        variant(name, "fp16", 1)


def test_a_manifest_without_variants_is_written_as_before(tmp_path: Path) -> None:
    (tmp_path / "graph.onnx").write_bytes(b"")
    artifacts.seal(tmp_path, manifest())
    assert not {"variants", "variant"} & json.loads((tmp_path / "manifest.json").read_text()).keys()


def test_selecting_a_variant_exchanges_its_facts_and_no_other() -> None:
    bundle = with_variants()
    chosen = select_variant(bundle, "int8")
    assert [record.name for record in chosen.passes] == ["raise", "lower-2"]
    assert (chosen.variant, chosen.target.precision) == ("int8", "int8")
    assert select_variant(chosen, "fp16") == bundle, "and back again"


def test_a_name_that_does_not_exist_lists_those_that_do() -> None:
    with pytest.raises(UsageError, match=r"there is no variant int4\. Give one of fp16, int8\."):
        find_variant(with_variants(), "int4")
    with pytest.raises(UsageError, match="this bundle has one graph only"):
        find_variant(manifest(), "int8")


def files(folder: Path) -> None:
    for name in ("fp16", "int8"):
        (folder / f"graph.{name}.onnx").write_text(name)
        (folder / f"sites.{name}.json").write_text(f"sites of {name}")
    (folder / "graph.onnx.data").write_text("weights")


def test_placing_a_variant_does_not_change_it(tmp_path: Path) -> None:
    files(tmp_path)
    for name in ("int8", "fp16"):
        place_variant(tmp_path, variant(name, name, 1))
        assert (tmp_path / "graph.onnx").read_text() == name
        assert (tmp_path / "sites.json").read_text() == f"sites of {name}"
    assert (tmp_path / "graph.int8.onnx").read_text() == "int8"


def test_an_unlisted_field_of_a_newer_variant_is_no_error() -> None:
    facts = json.loads(with_variants().model_dump_json())
    facts["variants"][0]["newer"] = 1
    assert artifacts.Manifest.model_validate(facts) == replace(with_variants())
