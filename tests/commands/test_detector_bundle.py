"""INT8 in the bundle of a detector: a variant whose decoder is in float, or a trial that says why not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.fixtures import VITS
from vitdeploy import recipe as recipes
from vitdeploy.commands.compile import compile_bundle
from vitdeploy.commands.export import export
from vitdeploy.graph import structure as structures
from vitdeploy.pipeline.graph_cache import GraphCache
from vitdeploy.pipeline.summary import ExportResult
from vitdeploy.progress import Silent

QUIET = Silent()
Device = Callable[..., Any]
IN_FLOAT = {"selection", "decoder", "heads"}


def export_detector(model: str, out: Path, **flags: Any) -> ExportResult:
    recipe = recipes.compose(f"{VITS}:{model}", target="tensorrt", precision="auto", **flags)
    return export(recipes.with_target_options(recipe, {"rehearsal": False}), out, QUIET, cache=GraphCache())


@pytest.mark.parametrize("model", ["detector", "selecting_detector"])
def test_int8_is_a_variant_with_its_decoder_in_float(model: str, device: Device, tmp_path: Path) -> None:
    bundle = export_detector(
        model, tmp_path / "bundle", task="detection", calibration="demo:digits", max_drop=100
    ).artifact
    assert [variant.name for variant in bundle.manifest.variants if not variant.form] == ["fp16", "int8", "fp8"]
    sent = next(trial for trial in bundle.manifest.trials if trial.precision == "int8")
    assert sent.why == "left to the machine that runs it"
    int8 = next(variant for variant in bundle.manifest.variants if variant.name == "int8")
    linears = structures.load(bundle.file("sites.int8.json")).linears
    in_float = {linear.name for linear in linears if linear.region in IN_FLOAT or linear.role == "patch"}
    assert {linear.region for linear in linears} >= {"backbone", "decoder"}
    for linear in linears:
        assert int8.placement[linear.name].quantized is (linear.name not in in_float), linear.name
    assert sent.float_linears == len(in_float)
    device("10.3")
    manifest = compile_bundle(bundle, tmp_path / "out", QUIET).artifact.manifest
    built = next(trial for trial in manifest.trials if trial.precision == "int8")
    assert (built.float_linears, built.judged_by) == (sent.float_linears, "agreement")
    assert "computes other numbers" not in built.why
    assert next(trial for trial in manifest.trials if trial.precision == "fp16").float_linears == 0


def test_without_a_task_a_trial_says_what_to_do(device: Device, tmp_path: Path) -> None:
    """An own module is taken for a classifier, and INT8 has to be judged."""
    result = export_detector("detector", tmp_path / "bundle", calibration="demo:digits")
    bundle = result.artifact
    fp16, int8, fp8 = bundle.manifest.trials
    assert fp16.kept
    for trial in (int8, fp8):
        assert trial.why.startswith("no output is (batch, classes): the model gives ")
        assert "--task" in trial.why
    assert any(note.startswith("no judge data was stored: no output is") for note in result.summary.notes)
    assert not bundle.file("reference/judge.npz").exists()
    device("10.3")
    manifest = compile_bundle(bundle, tmp_path / "out", QUIET).artifact.manifest
    assert manifest.trials[-2:] == (int8, fp8), "the device has no other reason"
    assert manifest.trials[0].kept


def test_without_images_a_trial_says_so(device: Device, tmp_path: Path) -> None:
    bundle = export_detector("detector", tmp_path / "bundle", task="detection").artifact
    device("10.3")
    manifest = compile_bundle(bundle, tmp_path / "out", QUIET).artifact.manifest
    reasons = {trial.precision: trial.why for trial in manifest.trials}
    assert reasons["int8"] == reasons["fp8"] == "its accuracy cannot be judged without images"
