"""NNCF among the candidates of `auto`, and by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from vitdeploy import recipe as recipes
from vitdeploy.artifact import load
from vitdeploy.commands.export import export
from vitdeploy.errors import QuantizeError
from vitdeploy.pipeline import attempts, choose
from vitdeploy.pipeline.graph_cache import GraphCache
from vitdeploy.pipeline.summary import Exported
from vitdeploy.progress import Silent
from vitdeploy.quantize import nncf_process

Export = Callable[..., Exported]
needs_nncf = pytest.mark.skipif(
    not nncf_process.is_installed(), reason="NNCF is not installed: pip install 'vitdeploy[quantize]'"
)


@pytest.fixture
def exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Export:
    monkeypatch.setattr(choose, "list_nncf", attempts.list_nncf)  # tests/conftest.py leaves it out

    def run(model: str = "demo:digits", target: str = "onnxruntime", **flags: object) -> Exported:
        recipe = recipes.compose(model, target=target, **flags)  # type: ignore[arg-type]
        return export(recipe, tmp_path / "artifact", Silent(), cache=GraphCache()).summary

    return run


@needs_nncf
@pytest.mark.slow
def test_auto_tries_it_beside_its_own(exported: Export) -> None:
    trials = exported(precision="auto").trials
    assert [(t.precision, t.quantizer) for t in trials] == [
        ("fp32", "own"), ("int8", "own"), ("int8-dynamic", "own"), ("int8", "nncf")
    ]  # fmt: skip
    assert trials[-1].judged_by == "labels"
    assert trials[-1].label == "int8 by NNCF"
    assert sum(trial.kept for trial in trials) == 1


@needs_nncf
@pytest.mark.slow
def test_auto_goes_on_where_it_fails(exported: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITDEPLOY_MAX_TRIAL_BYTES", "1")
    *others, last = exported(precision="fp32,int8").trials
    assert [(t.precision, t.quantizer) for t in others] == [("fp32", "own"), ("int8", "own")]
    assert (last.precision, last.quantizer, last.kept) == ("int8", "nncf", False)
    assert last.why.startswith("NNCF on this graph ")


@needs_nncf
@pytest.mark.slow
def test_the_named_quantizer_alone(exported: Export, tmp_path: Path) -> None:
    flags = {"target": "openvino", "quantizer": "nncf", "max_drop": 2.0}
    found = exported(precision="int8", **flags)
    manifest = load(tmp_path / "artifact").manifest
    assert manifest.quantized is not None
    assert manifest.quantized.quantizer == manifest.recipe.precision.quantizer == "nncf"
    assert "nncf" in manifest.versions
    assert [(t.precision, t.quantizer) for t in found.trials] == [("int8", "nncf")]
    audit = json.loads((tmp_path / "artifact" / "audit.json").read_text())
    assert (audit["attention"]["fused"], audit["attention"]["sites"]) == (4, 4)
    assert audit["linears"]["int8"] == manifest.quantized.quantized


@needs_nncf
@pytest.mark.slow
def test_auto_with_nncf_alone(exported: Export) -> None:
    trials = exported(precision="fp32,int8", quantizer="nncf").trials
    assert [trial.quantizer for trial in trials] == ["own", "nncf"]


@needs_nncf
def test_auto_among_precisions_without_a_quantizer(exported: Export) -> None:
    with pytest.raises(QuantizeError, match="has no part in fp32, bf16"):
        exported(target="openvino", precision="fp32,bf16", quantizer="nncf")
