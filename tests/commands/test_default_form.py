"""A safe form that helped in a public report about this version is built before the plain form, and in its place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.commands.test_compile_variants import Killed, kill_in, refuse_memory
from tests.fakes.miscompile import HALF, Fault
from vitdeploy import artifact as artifacts
from vitdeploy.artifact import Artifact
from vitdeploy.commands.compile import compile_bundle
from vitdeploy.progress import Silent
from vitdeploy.targets.tensorrt import TensorRT

QUIET = Silent()
Device = Callable[..., Any]
REPORT = "NVIDIA/TensorRT#4742"


@pytest.fixture
def bundle(small_bundle: Any) -> Artifact:
    """A ViT with rotary positions, of which TensorRT 10.3 is reported to compute wrong numbers."""
    return small_bundle("rope", "fp16,int8")  # type: ignore[no-any-return]


def forms(artifact: Artifact) -> list[str]:
    return [trial.name for trial in artifact.manifest.trials]


@pytest.mark.parametrize("planted", [[], [Fault("wrong_rotation")]], ids=["healthy", "as reported"])
def test_the_plain_form_is_not_built(planted: list[Fault], bundle: Artifact, device: Device, tmp_path: Path) -> None:
    trt = device("10.3")
    trt.planted = planted
    result = compile_bundle(bundle, tmp_path / "out", QUIET)
    artifact = artifacts.load(tmp_path / "out")
    plain, safe, int8 = artifact.manifest.trials
    assert (plain.name, plain.kept, plain.lost) == ("fp16", False, None)
    assert plain.why.startswith("not built, because others report: rotary positions give wrong numbers")
    assert REPORT in plain.why
    assert plain.why.endswith("; fp16-baked-positions holds in its place")
    assert any(note.endswith("--variant fp16 builds it") for note in result.summary.notes)
    assert safe.form == "baked-positions"
    assert "computes other numbers" not in safe.why
    assert ("computes other numbers" in int8.why) is bool(planted), "INT8 has no safe forms; its check decides"
    assert len(trt.begun) == 2, "the safe form and INT8"
    kept = "graph.fp16-baked-positions.onnx" if safe.kept else "graph.int8.onnx"
    assert artifact.file("graph.onnx").read_bytes() == bundle.file(kept).read_bytes()
    assert safe.kept or not planted
    assert not any("rotary positions" in fault for fault in artifact.manifest.known_faults) or int8.kept


@pytest.mark.parametrize("release", ["10.16", "11.4"])
def test_where_nothing_is_reported_the_plain_form_is_built(
    release: str, bundle: Artifact, device: Device, tmp_path: Path
) -> None:
    trt = device(release)
    artifact = compile_bundle(bundle, tmp_path / "out", QUIET).artifact
    assert forms(artifact) == ["fp16", "int8"]
    assert len(trt.begun) == 2


def test_a_report_about_another_form_changes_nothing(small_bundle: Any, device: Device, tmp_path: Path) -> None:
    device("10.3")
    assert forms(compile_bundle(small_bundle("deit", "fp16,int8"), tmp_path / "out", QUIET).artifact) == [
        "fp16",
        "int8",
    ]


def test_the_plain_form_is_built_if_it_is_named(bundle: Artifact, device: Device, tmp_path: Path) -> None:
    trt = device("10.3")
    artifact = compile_bundle(bundle, tmp_path / "out", QUIET, variant="fp16").artifact
    assert (artifact.manifest.variant, len(trt.begun)) == ("fp16", 1)


def test_a_preferred_form_that_does_not_hold_is_no_end(bundle: Artifact, device: Device, tmp_path: Path) -> None:
    """Another fault than the reported one: the plain form is built, located, and repaired by the other forms."""
    trt = device("10.3")
    trt.planted = [Fault("overflow", within="blocks.1", size=0.3, types=frozenset({HALF}))]
    result = compile_bundle(bundle, tmp_path / "out", QUIET)
    manifest = result.artifact.manifest
    assert forms(result.artifact) == ["fp16", "fp16-baked-positions", "fp16-fp32-scores", "int8"]
    plain, baked, scores, _ = manifest.trials
    assert "blocks.1" in plain.located
    assert "computes other numbers" in baked.why
    assert "computes other numbers" not in scores.why
    assert any("fp16-baked-positions was built first" in note and REPORT in note for note in result.summary.notes)
    assert len(trt.begun) == len({*trt.begun}), "no form is built twice"


def test_a_preferred_form_that_cannot_be_built_leaves_the_plain_form(
    bundle: Artifact, device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device("10.3")
    refuse_memory(monkeypatch, "fp16")
    artifact = compile_bundle(bundle, tmp_path / "out", QUIET).artifact
    assert forms(artifact) == ["fp16", "fp16-baked-positions", "int8"]
    assert ["ran out of memory" in trial.why for trial in artifact.manifest.trials] == [True, True, False]
    assert artifact.manifest.variant == "int8"


def test_a_killed_compile_continues_behind_the_preferred_form(bundle: Artifact, device: Device, tmp_path: Path) -> None:
    trt = device("10.3")
    with pytest.MonkeyPatch.context() as patch:
        kill_in(patch, 2)
        with pytest.raises(Killed):
            compile_bundle(bundle, tmp_path / "out", QUIET)
    artifact = compile_bundle(bundle, tmp_path / "out", QUIET).artifact
    assert forms(artifact) == ["fp16", "fp16-baked-positions", "int8"]
    assert len(trt.built) == 2, "the safe form was built before"


def test_a_bundle_without_the_form_builds_the_plain_one(
    bundle: Artifact, device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device("10.3")
    monkeypatch.setattr(TensorRT, "preferred_safe_forms", lambda *_, **__: {"of-a-later-version": "a report"})
    assert forms(compile_bundle(bundle, tmp_path / "out", QUIET).artifact) == ["fp16", "int8"]
