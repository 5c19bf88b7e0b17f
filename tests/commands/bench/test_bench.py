"""Real artifacts timed against real opponents: what is compared with what, not how fast this machine is."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.evidence import run
from vitdeploy import artifact as artifacts
from vitdeploy import recipe as recipes
from vitdeploy.artifact import Artifact
from vitdeploy.commands.bench import bench as benching
from vitdeploy.commands.bench import costs, opponents
from vitdeploy.commands.bench.bench import Plan, bench, parse_batches
from vitdeploy.commands.bench.startup import start_process
from vitdeploy.environment import available_cores
from vitdeploy.errors import MeasureError, RecipeError, SourceError, UsageError
from vitdeploy.evidence import Bench, Peak
from vitdeploy.graph.onnx_session import OnnxSession
from vitdeploy.progress import Silent
from vitdeploy.runtime.artifact_session import count_threads

BRIEF = 0.3


Copy = Callable[..., Artifact]


@pytest.fixture
def served(demo: Callable[..., Artifact], copy: Copy) -> Artifact:
    """An OpenVINO artifact for one to four images."""
    return copy(demo(target="openvino", batch="1:2:4"), "served")


@pytest.fixture
def plain(demo: Callable[..., Artifact], copy: Copy) -> Artifact:
    """An ONNX Runtime artifact for one image."""
    return copy(demo(target="onnxruntime"), "plain")


@pytest.fixture(autouse=True)
def _peaks_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """They have a test of their own, and take seconds."""
    peaks = {"fp32": Peak(gops=1e6, engine="none"), "int8": Peak(gops=4e6, engine="none")}
    monkeypatch.setattr(benching.host_peak, "measure_peaks", lambda threads: peaks)


def copy_to(artifact: Artifact, folder: Path) -> Artifact:
    return artifacts.load(Path(shutil.copytree(artifact.path, folder)))


def test_one_artifact_has_all_its_figures(plain: Artifact) -> None:
    found = bench([plain], Silent(), Plan(seconds=BRIEF, threads=1, profile=True))
    reference, own = found.runs
    assert [run.role for run in found.runs] == ["reference", "artifact"]
    assert (found.reference, found.own) == (reference, own)
    assert (reference.name, own.name, own.manifest) == ("pytorch-fp32", "onnxruntime-fp32", found.manifest)
    assert own.speedup is not None
    assert len(own.rounds) >= 6
    assert own.startup is not None
    assert own.startup.load_ms > 0
    assert own.startup.first_ms > 0
    assert own.startup.peak_bytes is not None
    assert own.startup.engine_bytes is not None
    assert own.startup.peak_bytes > own.startup.engine_bytes > 10 << 20
    assert own.size_bytes == plain.file("graph.onnx").stat().st_size
    assert own.efficiency_pct is not None
    assert 0 < own.efficiency_pct < 100
    assert found.roofline is not None
    assert found.cpus
    (profile,) = found.profiles
    assert profile.roles["mlp"] > 0
    assert Bench.model_validate(json.loads(plain.file("bench.json").read_text())) == found


def test_every_batch_of_a_sweep_has_its_reference(served: Artifact) -> None:
    found = bench([served], Silent(), Plan(seconds=BRIEF, threads=1, batches=(1, 4), against=("openvino-fp32",)))
    assert [(run.name, run.batch) for run in found.runs] == [
        ("openvino-fp32 (plain)", 1), ("openvino-fp32", 1), ("openvino-fp32 (plain)", 4), ("openvino-fp32", 4),
    ]  # fmt: skip
    assert found.own is found.runs[1]
    assert all((run.speedup is None) == ("plain" in run.name) for run in found.runs)
    assert all(doubt.startswith(("batch 1: ", "batch 4: ")) for doubt in found.doubts)


@pytest.mark.long
@pytest.mark.timing  # with all cores: OpenVINO opens as many streams as there are cores
def test_offline_answers_32_images_in_all_streams(served: Artifact) -> None:
    plan = Plan(seconds=BRIEF, threads=2, scenario="offline", streams=2, against=("onnxruntime-fp32",))
    found = bench([served], Silent(), plan)
    own = found.own
    assert own is not None
    assert (found.scenario, own.batch, own.effective["streams"]) == ("offline", 2, "2")
    queries = [sample for block in own.blocks for sample in block]
    assert own.throughput_ips == pytest.approx(32e3 * len(queries) / sum(queries))  # a query is 16 batches of 2


def test_two_artifacts_are_compared_with_each_other(served: Artifact, plain: Artifact, tmp_path: Path) -> None:
    twin = copy_to(plain, tmp_path / "in" / "twin")
    plain = copy_to(plain, tmp_path / "in" / "plain")
    served = copy_to(served, tmp_path / "in" / "served")
    found = bench([plain, twin], Silent(), Plan(seconds=BRIEF, threads=1, against=(str(served.path),), batches=(1,)))
    names = ["openvino-fp32 (served)", "onnxruntime-fp32 (plain)", "onnxruntime-fp32 (twin)"]
    assert [run.name for run in found.runs] == names
    (pair,) = found.pairs
    assert (pair.name, pair.over) == (names[2], names[1])
    assert pair.speedup.ratio == pytest.approx(1, rel=0.5)
    against, first, second = found.runs
    assert against.manifest == served.digest
    assert against.efficiency_pct is not None, "it is held to the work that it does itself"
    assert found.own is first
    assert first.manifest == second.manifest


def test_folders_of_one_name_are_told_apart_and_profiles_go_by_their_runs(plain: Artifact, tmp_path: Path) -> None:
    both = [copy_to(plain, tmp_path / parent / "artifact") for parent in ("old", "new")]
    plan = Plan(seconds=BRIEF, threads=1, against=("onnxruntime-fp32",), batches=(1,), profile=True)
    found = bench(both, Silent(), plan)
    names = ["onnxruntime-fp32 (old/artifact)", "onnxruntime-fp32 (new/artifact)"]
    assert [run.name for run in found.runs[1:]] == names
    assert [profile.name for profile in found.profiles] == names


def test_a_profile_that_fails_costs_only_itself(plain: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: object, feeds: object) -> None:
        raise MeasureError("no room", fix="Free some.")

    monkeypatch.setattr(OnnxSession, "profile", fails)
    found = bench([plain], Silent(), Plan(seconds=BRIEF, threads=1, against=("onnxruntime-fp32",), profile=True))
    assert found.profiles == ()
    assert found.own is not None


@pytest.mark.slow
def test_torch_compile_is_an_opponent(plain: Artifact) -> None:
    if not shutil.which("g++"):
        pytest.skip("there is no C++ compiler here")
    found = bench([plain], Silent(), Plan(seconds=BRIEF, threads=1, against=("torch-compile", "pytorch-fp32")))
    assert [run.name for run in found.runs] == ["torch-compile", "pytorch-fp32", "onnxruntime-fp32"]
    assert [run.role for run in found.runs] == ["reference", "opponent", "artifact"]


def test_without_a_reference_there_is_no_speedup_and_the_bench_says_why(
    plain: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(manifest: object) -> None:
        raise SourceError("no library", fix="Install it.")

    monkeypatch.setattr(opponents, "rebuild_model", nothing)
    found = bench([plain], Silent(), Plan(seconds=BRIEF, threads=1))
    assert found.missing == {"pytorch-fp32": "no library"}
    assert not any("no library" in doubt for doubt in found.doubts)
    assert [run.speedup for run in found.runs] == [None]
    assert found.reference is None


def test_what_cannot_be_timed_is_refused_before_the_minutes(served: Artifact, plain: Artifact, tmp_path: Path) -> None:
    for plan, told in (
        (Plan(batches=(8,)), "accepts batches of 1:2:4, not of 8"),
        (Plan(against=("pytorch-fp3",)), "did you mean 'pytorch-fp32'"),
        (Plan(against=(str(tmp_path / "none"),)), "not a known opponent"),
    ):
        with pytest.raises(UsageError, match=told):
            bench([served], Silent(), plan)
    with pytest.raises(RecipeError, match="streams"):
        bench([plain], Silent(), Plan(streams=2))


def test_batches_of_the_command_line() -> None:
    assert parse_batches(None) == ()
    assert parse_batches("1, 4,4,8") == (1, 4, 8)
    for text in ("", "0", "1,,2", "1:2", "-1", "x"):
        with pytest.raises(UsageError, match="--batch"):
            parse_batches(text)


def test_threads_come_from_the_recipe_before_the_machine() -> None:
    def threads(**more: object) -> int:
        raw = {"model": "demo:digits", "target": {"kind": "openvino"}} | more
        return count_threads(recipes.Recipe.model_validate(raw))

    assert threads() == available_cores()
    assert threads(target={"kind": "openvino", "threads": 7}) == 7
    assert threads(target={"kind": "openvino", "threads": 7}, bench={"threads": 3}) == 3


def test_a_process_that_cannot_start_has_no_cost(plain: Artifact, tmp_path: Path) -> None:
    why = start_process(dataclasses.replace(plain, path=tmp_path / "gone"), 1, 1)
    assert isinstance(why, str)
    assert why.startswith("exit code 1: ")
    assert "gone" in why


def test_what_runs_on_another_device_is_not_held_against_this_cpu() -> None:
    for effective, here in (
        ({}, True),
        ({"device": "cpu"}, True),
        ({"device": "CPU"}, True),
        ({"device": "GPU"}, False),
    ):
        assert costs._is_on_cpu(run("x", 1.0, effective=effective)) == here
