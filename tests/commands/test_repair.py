"""An engine with wrong numbers is located on the device, and rebuilt in the first safe form that holds parity."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.commands.test_compile_variants import Killed, kill_in
from tests.fakes.miscompile import FLOAT, HALF, Fault
from vitdeploy import artifact as artifacts
from vitdeploy.commands.compile import compile_bundle
from vitdeploy.evidence import Audit
from vitdeploy.progress import Silent

QUIET = Silent()
Device = Callable[..., Any]
HALF_ONLY = frozenset({HALF})

CASES = [
    (
        "10.3",
        "deit",
        Fault("block_off", within="blocks.1", types=HALF_ONLY),
        "fp32-block-1",
        "blocks.1 is the first that is off",
    ),
    (
        "10.3",
        "deit",
        Fault("block_off", within="blocks.2", least_level=3),
        "level-2",
        "blocks.2 is the first that is off",
    ),
    ("10.3", "deit", Fault("overflow", types=HALF_ONLY), "fp32-scores", "blocks.0"),
    ("10.16", "rope", Fault("wrong_rotation"), "baked-positions", "blocks.0"),  # nobody reports it of this version
]


@pytest.mark.parametrize(("release", "model", "fault", "form", "located"), CASES, ids=[case[3] for case in CASES])
def test_the_first_safe_form_that_holds_is_kept(
    release: str, model: str, fault: Fault, form: str, located: str, device: Device, small_bundle: Any, tmp_path: Path
) -> None:
    bundle = small_bundle(model, "fp16,int8")
    trt = device(release)
    trt.planted = [fault]
    result = compile_bundle(bundle, tmp_path / "out", QUIET)
    artifact = artifacts.load(tmp_path / "out")
    manifest = artifact.manifest
    trials = {trial.form or trial.precision: trial for trial in manifest.trials}
    assert trials["fp16"].why
    assert located in trials["fp16"].located
    assert trials[form].why == "" or "faster" in trials[form].why or "in doubt" in trials[form].why, trials[form]
    tried = [trial.form for trial in manifest.trials if trial.form]
    assert tried[-1] == form, "no form is tried behind the first that holds"
    assert any(note.startswith("located: ") and located in note for note in result.summary.notes), result.summary.notes
    assert any(f"fp16-{form} holds: " in note for note in result.summary.notes)
    assert sum(trial.kept for trial in manifest.trials) == 1
    assert manifest.device_parity is not None
    assert not any("computes other numbers" in doubt for doubt in manifest.doubts)
    assert artifact.read_evidence(Audit)[0] is not None
    assert not (artifact.path / "work").exists()


def test_a_killed_repair_does_not_locate_again(
    device: Device, small_bundle: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release, model, fault, form, located = CASES[0]
    bundle = small_bundle(model, "fp16,int8")
    trt = device(release)
    trt.planted = [fault]
    with pytest.MonkeyPatch.context() as patch:
        kill_in(patch, 5)
        with pytest.raises(Killed):
            compile_bundle(bundle, tmp_path / "out", QUIET)
    assert len(trt.begun) == 4, "the engine, two to locate the fault, the first form"
    manifest = compile_bundle(bundle, tmp_path / "out", QUIET).artifact.manifest
    assert len(trt.begun) == len({*trt.begun}), "no build was done twice"
    assert located in manifest.trials[0].located
    assert [trial.form for trial in manifest.trials if trial.form][-1] == form
    assert not list((tmp_path / "cache/vitdeploy/builds").iterdir()), "nothing is left behind"


@pytest.mark.parametrize("release", ["10.3", "11.4"])
def test_a_healthy_build_is_untouched(release: str, device: Device, small_bundle: Any, tmp_path: Path) -> None:
    bundle = small_bundle("deit", "fp16,int8")
    trt = device(release)
    manifest = compile_bundle(bundle, tmp_path / "out", QUIET).artifact.manifest
    assert len(trt.built) == 2
    assert [trial.form for trial in manifest.trials] == ["", ""]
    assert manifest.trials[0].why in ("", "int8 is faster", "its speed is in doubt")


def test_where_no_form_holds_a_doubt_says_so(device: Device, small_bundle: Any, tmp_path: Path) -> None:
    bundle = small_bundle("deit", "fp16,int8")
    trt = device("10.3")
    trt.planted = [Fault("block_off", within="blocks.1", types=frozenset({HALF, FLOAT}))]
    manifest = compile_bundle(bundle, tmp_path / "out", QUIET).artifact.manifest
    assert any("and so does each of its safe forms" in doubt for doubt in manifest.doubts)


def test_a_doubt_says_nothing_of_the_numbers_of_forms_that_were_not_built(
    device: Device, small_bundle: Any, tmp_path: Path
) -> None:
    class LosesMemory(Silent):
        def warn(self, message: str) -> None:
            if "other numbers" in message:
                trt.faults.add("memory")

    bundle = small_bundle("deit", "fp16,int8")
    trt = device("10.3")
    trt.planted = [Fault("block_off", within="blocks.1", types=frozenset({HALF, FLOAT}))]
    manifest = compile_bundle(bundle, tmp_path / "out", LosesMemory()).artifact.manifest
    [doubt] = [doubt for doubt in manifest.doubts if "its safe forms" in doubt]
    assert "none of its safe forms could be built: fp16-" in doubt
    assert "ran out of memory" in doubt


def test_a_level_is_recorded_and_builds_the_plain_graph(device: Device, small_bundle: Any, tmp_path: Path) -> None:
    bundle = small_bundle("deit", "fp16,int8")
    trt = device("10.3")
    artifact = compile_bundle(bundle, tmp_path / "out", QUIET, variant="fp16-level-2").artifact
    assert trt.built[-1]["level"] == 2
    assert artifact.manifest.recipe.target.options["optimization_level"] == 2
    assert artifact.file("graph.onnx").read_bytes() == bundle.file("graph.fp16.onnx").read_bytes()
