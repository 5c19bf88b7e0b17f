"""A recording of a board: complete, within its time, apart from crashes, without what identifies, and never half."""

from __future__ import annotations

import json
import signal
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import listing, run
from tests.commands.board.conftest import PROGRAMS, start
from tests.commands.board.test_scrub import PLANTED
from tests.fakes.check import compare
from vitdeploy.commands.board import record as module
from vitdeploy.commands.board.recording import Recording, load, parse_messages
from vitdeploy.errors import ArtifactError
from vitdeploy.progress import Silent

Board = Callable[..., None]
pytestmark = pytest.mark.slow


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Record these models with TensorRT, and tegrastats for a moment."""

    def choose(*pairs: tuple[str, str]) -> None:
        monkeypatch.setattr(module.targets, "names", lambda: ["onnxruntime", "tensorrt"])
        monkeypatch.setattr(module, "_order", lambda: iter(pairs))
        monkeypatch.setattr(module.facts, "_TEGRASTATS_SECONDS", 0.5)

    return choose


def recorded(out: Path, seconds: float = 120, **options: Any) -> Recording:
    """Record, and read it back."""
    module.record(out, seconds, Silent(), **options)
    return load(out)


@pytest.mark.timing  # power is read on a real clock
def test_a_board_is_recorded(board: Board, only: Callable[..., None], tmp_path: Path) -> None:
    board("10.3")
    only(("vit", "int8"))
    recording = recorded(tmp_path / "out")
    assert (recording.complete, recording.why) == (True, "")
    compiler = recording.compilers["tensorrt"]
    assert compiler["backend"] == "tensorrt 10.3.0"
    assert compiler["gpu"]["sm"] == "sm87"
    assert "platform_has_fast_fp16" in compiler["surface"]["Builder"]
    assert recording.commands["nvpmodel"] == "NV Power Mode: MAXN_SUPER\n2\n"
    assert recording.commands["packages"].startswith("nvidia-l4t-core 36.4.7-")
    assert recording.before.tegrastats.count("VDD_IN") >= 2
    (attempt,) = recording.attempts
    assert (attempt.status, attempt.stage, attempt.why, attempt.problems) == ("run", "done", "", {})
    assert (attempt.attention["sites"], attempt.attention["fused"]) == (2, 2)
    assert attempt.linears["int8"] == 13
    assert attempt.layers["log"] == attempt.layers["inspector"] > 40
    assert 0.999 < attempt.parity["cosine"] < 1
    assert attempt.device_times is not None
    assert attempt.device_times.runs >= 20
    assert attempt.effective["cuda_graph"] == "yes"
    assert len(attempt.profile) > 40
    assert attempt.power is not None
    assert [rail.name for rail in attempt.power.rails] == ["VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"]
    files = listing(tmp_path / "out")
    log = (tmp_path / "out" / "tensorrt" / "vit-int8" / "build.log").read_text().split("\n")
    messages = list(parse_messages(log))
    assert ("PHASE", "Building Engine") in messages
    assert any("LayerType: " in text for _, text in messages)
    with tarfile.open(tmp_path / "out" / "recording.tar.gz") as archive:
        assert {name.removeprefix("recording/") for name in archive.getnames()} == {
            name for name in files if (tmp_path / "out" / name).is_file() and not name.endswith(".tar.gz")
        }
        assert {(entry.uname, entry.uid) for entry in archive} == {("", 0)}


def test_a_crash_is_an_attempt_with_its_log_and_the_next_model_is_tried(
    board: Board, only: Callable[..., None], tmp_path: Path
) -> None:
    board("10.16", "crash")
    only(("vit", "fp32"), ("window", "fp32"))
    first, second = recorded(tmp_path / "out").attempts
    assert (first.status, first.stage, first.why) == ("failed", "build", "build: crashed with SIGSEGV")
    assert second.status == "failed"
    assert not first.attention


def test_a_refusal_has_the_compilers_words_and_log(board: Board, only: Callable[..., None], tmp_path: Path) -> None:
    board("10.16", "memory")
    only(("vit", "fp16"))
    (attempt,) = recorded(tmp_path / "out").attempts
    assert attempt.status == "refused"
    assert "ran out of memory" in attempt.why
    assert "Could not find any implementation" in (tmp_path / "out" / attempt.folder / "build.log").read_text()


def test_a_build_that_hangs_is_ended_and_the_rest_is_skipped(
    board: Board, only: Callable[..., None], tmp_path: Path
) -> None:
    board("11.4", "hang")
    only(("vit", "fp16"), ("vit", "fp32"))
    recording = recorded(tmp_path / "out", seconds=16)
    first, second = recording.attempts
    assert first.status == "failed"
    assert first.why.startswith("build: took more than")
    assert (second.status, second.why) == ("skipped", "the time of --seconds was up")
    assert (recording.complete, recording.why) == (False, "the time of --seconds was up")
    assert recording.seconds < 30


def test_what_identifies_is_in_no_file(
    board: Board, only: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = " ".join(PLANTED)
    monkeypatch.setenv("USER", "ada.lovelace")
    monkeypatch.setattr(module.make_scrubber.__globals__["socket"], "gethostname", lambda: "analytical-engine")
    monkeypatch.setattr(
        module.make_scrubber.__globals__["_find_serials"].__globals__["Path"],
        "home",
        lambda: Path("/home/ada.lovelace"),
    )
    monkeypatch.setitem(module.make_scrubber.__globals__, "_find_serials", lambda: iter(["1421523012345"]))
    programs = {name: f"echo '{secrets}'; {script}" for name, script in PROGRAMS.items()}
    board("10.3", programs=programs, FAKE_SAYS=secrets)
    only(("vit", "fp16"))
    recording = recorded(tmp_path / "out")
    assert recording.attempts[0].status == "run"
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file() and path.suffix != ".gz"]
    texts = {path.name: path.read_text() for path in files}
    with tarfile.open(tmp_path / "out" / "recording.tar.gz") as archive:
        for name in archive.getnames():
            member = archive.extractfile(name)
            assert member is not None
            texts[f"archive {name}"] = member.read().decode()
    assert "<user>" in texts["build.log"], "the compiler did print them"
    assert "<mac>" in recording.commands["nvpmodel"]
    assert "<ip>" in texts["inspector.json"]
    assert not [(secret, name) for secret in PLANTED for name, text in texts.items() if secret in text]


def test_a_machine_without_tensorrt_is_recorded_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.targets, "names", lambda: ["onnxruntime", "openvino"])
    monkeypatch.setattr(module.facts, "_TEGRASTATS_SECONDS", 0.5)
    result = module.record(tmp_path / "out", 60, Silent())
    assert result.attempts == ()
    assert "no TensorRT was found here" in result.notes[0]
    assert load(tmp_path / "out").host.cores > 0


def test_a_folder_that_exists_is_refused_before_anything_is_run(board: Board, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    for words in ([], ["--force"]):
        ended = run("doctor", "--record", tmp_path / "out", *words)
        assert ended.code == 1
        assert "exists" in ended.error
        assert "-o" not in ended.error.split()
    assert listing(tmp_path / "out") == ["mine.txt"]


def test_force_replaces_a_recording(board: Board, only: Callable[..., None], tmp_path: Path) -> None:
    only()
    first = recorded(tmp_path / "out")
    with pytest.raises(ArtifactError, match="exists"):
        recorded(tmp_path / "out")
    board("11.4")
    second = recorded(tmp_path / "out", force=True)
    assert first.compilers != second.compilers
    assert listing(tmp_path / "out") == ["README.txt", "recording.json", "recording.tar.gz"]


def test_force_replaces_no_artifact_and_export_no_recording(
    board: Board, only: Callable[..., None], tmp_path: Path
) -> None:
    only()
    (tmp_path / "artifact").mkdir()
    (tmp_path / "artifact" / "manifest.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"exists, and is not one that --force replaces: it has no recording\.json"):
        recorded(tmp_path / "artifact", force=True)
    recorded(tmp_path / "out")
    ended = run("export", "demo:digits", "--target", "onnxruntime", "-o", tmp_path / "out", "--force")
    assert "exists and is not an artifact" in ended.error
    assert load(tmp_path / "out")


@pytest.mark.parametrize("words", [["--seconds", "5"], ["--force"], ["--record", "x", "--seconds", "0"]])
def test_options_without_a_recording_are_wrong_usage(words: list[str]) -> None:
    assert run("doctor", *words).code == 2


def test_ctrl_c_leaves_what_was_recorded(board: Board, tmp_path: Path) -> None:
    board("10.3")
    process = start("--record", tmp_path / "out", "--seconds", "300")
    assert process.stderr is not None
    for line in process.stderr:
        if "build and run vit in fp16" in line:
            break
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=300)
    assert process.returncode == 130
    assert f"{tmp_path / 'out'} has what was recorded up to then" in " ".join(rest.split())
    recording = load(tmp_path / "out")
    assert (recording.complete, recording.why) == (False, "interrupted")
    assert recording.attempts[0].status == "run"
    assert json.loads((tmp_path / "out" / "recording.json").read_text())["attempts"]
    with tarfile.open(tmp_path / "out" / "recording.tar.gz") as archive:
        assert "recording/tensorrt/vit-fp16/build.log" in archive.getnames()
    assert not list(tmp_path.glob(".out*"))


def test_the_summary_names_the_files_and_says_that_nothing_was_sent(
    board: Board, only: Callable[..., None], tmp_path: Path
) -> None:
    board("10.3")
    only(("vit", "fp32"))
    ended = run("doctor", "--record", tmp_path / "out", "--seconds", "60")
    assert ended.code == 0
    assert "Nothing was sent." in ended.out
    assert "  tensorrt/vit-fp32/build.log" in ended.out.splitlines()
    assert str(tmp_path / "out" / "recording.tar.gz") in ended.out
    summary = json.loads(run("doctor", "--record", tmp_path / "again", "--json").out)["recording"]
    assert summary["attempts"] == [
        {"target": "tensorrt", "model": "vit", "precision": "fp32", "status": "run", "why": ""}
    ]


def test_a_replayed_board_makes_the_same_recording(
    board: Board, only: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(("rope", "fp16"))
    monkeypatch.setattr(module.facts, "run_tegrastats", lambda: "")
    board("10.16", FAKE_SAYS="a line that no fake says")
    first = recorded(tmp_path / "first")
    board("10.16", FAKE_SAYS="", FAKE_RECORDING=str(tmp_path / "first"))
    second = recorded(tmp_path / "second")
    assert first.compilers == second.compilers
    logs = [(tmp_path / name / "tensorrt" / "rope-fp16" / "build.log").read_text() for name in ("first", "second")]
    assert logs[0] == logs[1]
    assert "a line that no fake says" in logs[1]
    (here,), (there,) = first.attempts, second.attempts
    assert (here.attention, here.linears, here.layers["log"]) == (there.attention, there.linears, there.layers["log"])
    assert {layer.name for layer in here.profile} == {layer.name for layer in there.profile} != set()


def test_wrong_numbers_are_in_the_summary(board: Board, only: Callable[..., None], tmp_path: Path) -> None:
    board("10.3", FAKE_PLANTED="wrong_rotation")
    only(("rope", "fp32"), ("vit", "fp32"))
    result = module.record(tmp_path / "out", 120, Silent())
    rope, vit = result.attempts
    assert (rope.status, vit.status, vit.why) == ("run", "run", "")
    assert rope.why.startswith("its numbers are not those of FP32: cosine 0.")
    assert "tensorrt rope fp32: run (its numbers are not" in (tmp_path / "out" / "README.txt").read_text()
    found = [difference for difference in compare(tmp_path / "out") if difference.where.endswith(": numbers")]
    assert [(each.fake, each.recording) for each in found] == [("those of FP32", rope.why)]
