"""Recordings of boards: replayed in place of what the fakes assume, and compared with it.

The recording in tests/fixtures is TensorRT-RTX 1.7, built ahead of time for real. Boards are those of the fakes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.fakes import replay
from tests.fakes import tensorrt as fakes
from tests.fakes.check import Difference, build_with_fake, compare, main, read_build
from tests.fakes.fields import fields_of_json, fields_of_plan
from tests.fakes.recordings import RTX, opened, write_programs, write_system
from vitdeploy.commands.board.models import MODELS, PRECISIONS, unpack
from vitdeploy.commands.board.recording import BUILD_LOG, FILE, RecordedBuild, Recording, format_message, load
from vitdeploy.errors import ArtifactError, CompileError
from vitdeploy.measure.power.sensors import find_rails
from vitdeploy.measure.thermal import read_celsius
from vitdeploy.precision import kind_of
from vitdeploy.targets._tensorrt.inspector import parse_inspector
from vitdeploy.targets._tensorrt.options import EngineOptions
from vitdeploy.targets._tensorrt.plan import parse_plan
from vitdeploy.targets._tensorrt.recorder import EngineRecorder

Messages = list[tuple[str, str]]


@pytest.fixture(scope="session")
def rtx() -> Iterator[Path]:
    with opened(RTX) as folder:
        yield folder


@pytest.fixture
def changed(rtx: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the recording in which the attempt vit fp16 and other parts are changed."""

    def make(attempt: dict[str, Any], log: str | None = None, **parts: Any) -> Path:
        folder = Path(shutil.copytree(rtx, tmp_path / "changed"))
        content = json.loads((folder / FILE).read_text())
        (one,) = (a for a in content["attempts"] if (a["model"], a["precision"]) == ("vit", "fp16"))
        one |= attempt
        content |= parts
        (folder / FILE).write_text(json.dumps(content))
        if log is not None:
            (folder / "tensorrt-rtx" / "vit-fp16" / BUILD_LOG).write_text(log)
        return folder

    return make


def build(trt: Any, model: str, precision: str, work: Path, **options: Any) -> tuple[Any, Messages]:
    """Build a model of the kit as a recording does: what was compiled, and its messages."""
    work.mkdir()
    messages: Messages = []
    recorder = EngineRecorder(
        trt, "tensorrt-rtx", EngineOptions(**options), kind_of(precision).numbers, ("sm86",), ahead_of_time=True
    )
    bundle = unpack(model, precision, work).bundle
    return recorder.compile(bundle, work, lambda severity, text: messages.append((severity, text))), messages


def test_all_models_were_built_for_real(rtx: Path) -> None:
    recording = load(rtx)
    assert {(a.model, a.precision) for a in recording.attempts} == {(m, p) for m in MODELS for p in PRECISIONS}
    assert {a.status for a in recording.attempts} == {"built"}, "a CPU runs none"
    for attempt in recording.attempts:
        fused = 0 if attempt.precision == "fp32" else 2
        assert (attempt.attention["sites"], attempt.attention["fused"]) == (2, fused), attempt.folder
        assert attempt.linears.get("other", 0) == 0


@pytest.mark.parametrize(("model", "precision"), [("vit", "fp16"), ("window", "int8"), ("rope", "fp32")])
def test_a_recorded_model_is_built_as_it_was(rtx: Path, model: str, precision: str, tmp_path: Path) -> None:
    (attempt,) = (a for a in load(rtx).attempts if (a.model, a.precision) == (model, precision))
    compiled, messages = build(replay.module(rtx), model, precision, tmp_path / "work")
    recorded = [message for message in read_build(rtx, attempt).messages if message[0] != "CUT"]
    assert messages == recorded
    assert compiled.backend == "tensorrt-rtx 1.7.1.116"
    assert compiled.audit.attention.fused == attempt.attention["fused"]
    assert compiled.audit.linears.model_dump() == attempt.linears
    assert parse_plan((tmp_path / "work" / "layers.txt").read_text().split("\n"))


def test_members_and_numbers_are_the_recorded_ones(rtx: Path) -> None:
    trt = replay.module(rtx)
    assert not hasattr(trt.IBuilderConfig, "platform_has_fast_fp16")
    assert "REQUIRE_USER_ALLOCATION" in trt.BuilderFlag.__members__
    assert "REQUIRE_USER_ALLOCATION" not in fakes.module("11.4").BuilderFlag.__members__
    with pytest.raises(AttributeError):
        trt.IBuilderConfig(None).remote_auto_tuning_config = None


def test_another_graph_gets_a_plan_in_the_recorded_form(changed: Callable[..., Path], tmp_path: Path) -> None:
    """The log of 10.x replaces that of every attempt; a model that is not in the recording is written like it."""
    old = (
        "[VERBOSE] Layers:\n  | Name: a, LayerType: gemm, Inputs: [ { Name: x, Format/Datatype: Half }], Outputs: []\n"
    )
    folder = changed({}, log=old)
    content = json.loads((folder / FILE).read_text())
    content["attempts"] = [a for a in content["attempts"] if (a["model"], a["precision"]) == ("vit", "fp16")]
    (folder / FILE).write_text(json.dumps(content))
    _, messages = build(replay.module(folder), "window", "fp16", tmp_path / "work")
    (plan,) = (text for _, text in messages if "LayerType: " in text)
    assert "Format/Datatype: Half" in plan
    assert "Constants: " not in plan


def test_a_recorded_refusal_is_refused_again(changed: Callable[..., Path], tmp_path: Path) -> None:
    log = format_message(
        "ERROR", "IBuilder::buildSerializedNetwork: Error Code 4: Internal Error (no tactic for node_7)"
    )
    trt = replay.module(changed({"status": "refused", "why": "did not build"}, log=log))
    with pytest.raises(CompileError, match=r"did not build graph\.onnx: .*no tactic for node_7"):
        build(trt, "vit", "fp16", tmp_path / "work")
    build(trt, "vit", "fp32", tmp_path / "other")


def test_a_recorded_parse_error_names_its_node_again(changed: Callable[..., Path], tmp_path: Path) -> None:
    why = "TensorRT 10.3.0 cannot parse the node 'a/Gelu' (Gelu) of graph.onnx: no importer (and 1 more)"
    with pytest.raises(CompileError, match=r"cannot parse the node 'a/Gelu' \(Gelu\) of graph.onnx: no importer"):
        build(replay.module(changed({"status": "refused", "why": why})), "vit", "fp16", tmp_path / "work")


def test_the_fake_and_tensorrt_rtx_differ_in_members_and_phases_only() -> None:
    """What the fake of 11.4 assumes of fusion, types and the form of plans is what TensorRT-RTX does, 15 of 15."""
    differences = compare(RTX)
    kinds = {difference.where.rpartition(": ")[2].partition(" ")[0] for difference in differences}
    assert kinds == {"members", "phases"}
    assert len(differences) == 10
    (flags,) = (d for d in differences if d.where.endswith("members of BuilderFlag"))
    assert (flags.fake, flags.recording) == ("-", "only REQUIRE_USER_ALLOCATION")


def test_forms_are_compared_at_all(rtx: Path) -> None:
    (attempt,) = (a for a in load(rtx).attempts if (a.model, a.precision) == ("vit", "fp16"))
    for each in (read_build(rtx, attempt), build_with_fake("11.4", attempt)):
        fields = fields_of_plan(each.plan)
        assert {"Name", "LayerType", "Inputs", "Constants", "Outputs", "TacticName", "Metadata"} <= fields.layer
        assert {"Name", "Dimensions", "Datatype", "Format", "Strides"} <= fields.tensor
    older = fields_of_plan(build_with_fake("10.3", attempt).plan)
    assert "Format/Datatype" in older.tensor
    assert "Constants" not in older.layer
    convolution = 'Name: c, LayerType: CaskConvolution, Weights: {"Type": "Int8", "Count": 864}, Metadata: x'
    assert fields_of_plan([convolution]).weights == {"Type", "Count"}
    text = json.dumps({"Layers": [{"Name": "c", "Inputs": [{"Name": "x", "New": 1}], "Weights": {"Type": "Int8"}}]})
    assert fields_of_json(text).tensor == {"Name", "New"}


PLANS = {
    "another field": ("Strides: ", "Pitches: ", "fields of a tensor"),
    "a line in another form": ("Name: __myl", "Layer: __myl", ""),
    "no fusion": ("_gemm_mha_v2", "_gemm_v2", ""),
}


@pytest.mark.parametrize("case", PLANS)
def test_a_changed_plan_is_a_difference(case: str, rtx: Path, changed: Callable[..., Path]) -> None:
    old, new, where = PLANS[case]
    log = (rtx / "tensorrt-rtx" / "vit-fp16" / BUILD_LOG).read_text()
    assert old in log
    attention = {"sites": 2, "fused": 0, "unfused": {}} if case == "no fusion" else None
    folder = changed({"attention": attention} if attention else {}, log=log.replace(old, new))
    found = set(map(str, compare(folder))) - set(map(str, compare(rtx)))
    if case == "another field":
        assert any(where in text and "only Pitches" in text for text in found)
    if case == "no fusion":
        assert any("vit fp16: fused attentions\n    fake:      2\n    recording: 0" in text for text in found)
    if case == "a line in another form":
        assert read_build(folder, load(folder).attempts[0]).plan != read_build(rtx, load(rtx).attempts[0]).plan


def test_what_vitdeploy_does_not_read_is_a_difference(rtx: Path, changed: Callable[..., Path]) -> None:
    thor = {
        "files": {"/etc/nv_tegra_release": "# L4T forty"},
        "commands": {"nvpmodel": "NV Power Mode:\n"},
        "before": {"numbers": {}, "tegrastats": "11-25-2026 RAM 1/2MB VDD_GPU 6021 milliwatts\n"},
    }
    power = {
        "source": "hwmon",
        "rails": [{"name": "VDD_NEW", "watts": 1.0, "idle_watts": None, "millijoules": 1.0}],
    }
    problems = {"inspect": "unexpected TypeError: no engine"}
    folder = changed({"power": power, "problems": problems, "status": "failed", "why": "build: crashed"}, **thor)
    found = {difference.where: difference for difference in set(compare(folder)) - set(compare(rtx))}
    assert found["tegrastats: power rails"].recording.startswith("not read in 11-25-2026")
    assert found["nvpmodel -q"].recording == "'NV Power Mode:\\n'"
    assert found["/etc/nv_tegra_release"].recording == "# L4T forty"
    assert found["power: the rail that feeds all others"].recording == "none of VDD_NEW"
    model = "tensorrt-rtx 1.7.1.116 beside the fake 11.4: vit fp16"
    assert found[model] == Difference(model, "built", "failed (build: crashed)")
    assert found[f"{model}: inspect"].recording == "unexpected TypeError: no engine"


def test_sensors_and_programs_are_laid_out_again(rtx: Path, tmp_path: Path) -> None:
    recording = load(rtx).model_copy(
        update={
            "commands": {"nvpmodel": "NV Power Mode: 25W\n1\n", "jetson_clocks": "not run: No such file or directory"}
        }
    )
    values = {
        "monitors": {
            "hwmon1/name": "ina3221", "hwmon1/in1_label": "VDD_IN", "hwmon1/in1_input": "5000",
            "hwmon1/curr1_input": "900",
        },
        "thermal": {"thermal_zone0/type": "cpu-thermal", "thermal_zone0/temp": "48500"},
    }  # fmt: skip
    before = recording.before.model_copy(update={"numbers": values, "tegrastats": "RAM 1/2MB\n"})
    recording = recording.model_copy(update={"before": before})
    write_system(recording, tmp_path)
    (rail,), _ = find_rails(tmp_path / "sys" / "class" / "hwmon")
    assert (rail.name, rail.watts()) == ("VDD_IN", 4.5)
    assert read_celsius(tmp_path) == 48.5
    write_programs(recording, tmp_path / "bin")
    assert sorted(path.name for path in (tmp_path / "bin").glob("*") if path.suffix == "") == ["nvpmodel", "tegrastats"]


def test_a_folder_without_a_recording_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="has no readable recording: there is no such file"):
        load(tmp_path)
    (tmp_path / FILE).write_text('{"recording": 2}')
    with pytest.raises(ArtifactError, match="has no readable recording: recording: Input should be 1"):
        load(tmp_path)


def test_the_command_prints_each_difference(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(RTX)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == '{"differences": 10}'
    assert len(lines) == 31
    assert main([]) == 2


def test_the_inspector_of_a_recording_answers(device: Callable[..., Any], tmp_path: Path) -> None:
    """A recording of a fake board, with an inspector's text that no fake would write."""
    trt = device("10.3")
    text = json.dumps({"Layers": [{"Name": "recorded", "LayerType": "gemm"}]})
    attempt = RecordedBuild(target="tensorrt", model="vit", precision="fp16", status="run")
    compiler = {"backend": "tensorrt 10.3.0", "surface": fakes.SURFACE["10.3"], "gpu": {"why": "-"}}
    host = load_host()
    recording = Recording(vitdeploy="0", host=host, compilers={"tensorrt": compiler}, attempts=(attempt,))
    folder = tmp_path / "recording"
    (folder / attempt.folder).mkdir(parents=True)
    (folder / FILE).write_text(recording.model_dump_json())
    (folder / attempt.folder / BUILD_LOG).write_text(format_message("VERBOSE", "Layers:\nName: a, LayerType: gemm"))
    (folder / attempt.folder / "inspector.json").write_text(text)
    replayed = replay.module(folder, trt.cuda)
    recorder = EngineRecorder(replayed, "tensorrt", EngineOptions(), kind_of("fp16").numbers)
    work = tmp_path / "work"
    work.mkdir()
    compiled = recorder.compile(unpack("vit", "fp16", work).bundle, work, lambda severity, text: None)
    assert [layer.name for layer in parse_inspector(recorder.inspect(compiled))] == ["recorded"]


def load_host() -> Any:
    with opened(RTX) as folder:
        return load(folder).host


def test_a_replay_without_a_gpu_has_none(rtx: Path, tmp_path: Path) -> None:
    assert isinstance(replay.module(rtx).cuda, SimpleNamespace), "TensorRT-RTX needs none to build"
