"""Settings for throughput are searched on real artifacts, stored beside them, and used where they apply."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

import vitdeploy
from vitdeploy import artifact as artifacts
from vitdeploy.artifact import Artifact
from vitdeploy.cli import app
from vitdeploy.commands.bench import bench as benching
from vitdeploy.commands.bench.bench import Plan, bench
from vitdeploy.commands.bench.tune_streams import read_earlier, tune_streams
from vitdeploy.environment import available_cores
from vitdeploy.errors import TargetUnavailable, UsageError
from vitdeploy.evidence import Peak, Provenance, Scenario, StreamSetting, StreamTuning, TunedScenario
from vitdeploy.evidence.streams import Kept
from vitdeploy.frozen import replace
from vitdeploy.measure.statistics import percentile
from vitdeploy.progress import Silent
from vitdeploy.render import bench_tables
from vitdeploy.runtime.provenance import describe_provenance
from vitdeploy.runtime.stored_streams import read_setting

BRIEF = 0.2
CORES = available_cores()
SETTING = StreamSetting(streams=2, batch=4, threads=1)

Copy = Callable[..., Artifact]


class Notes(Silent):
    """Keeps the notes."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def warn(self, message: str) -> None:
        self.lines.append(message)


@pytest.fixture
def openvino(demo: Callable[..., Artifact], copy: Copy) -> Artifact:
    return copy(demo(target="openvino", batch="1:1:32"), "openvino")


@pytest.fixture
def runtime(demo: Callable[..., Artifact], copy: Copy) -> Artifact:
    return copy(demo(target="onnxruntime", batch="1:1:32"), "runtime")


def store(
    artifact: Artifact,
    setting: StreamSetting = SETTING,
    kept: Kept = "tuned",
    scenario: Scenario = "offline",
    threads: int = 2,
    **provenance: str,
) -> StreamTuning:
    tuned = TunedScenario(kept=kept, setting=setting, why="a test", valid=True)
    made: Provenance = replace(describe_provenance(artifact.manifest, threads), **provenance)
    return artifact.write_evidence(StreamTuning(scenarios={scenario: tuned}, provenance=made))


@pytest.mark.slow
def test_both_scenarios_are_searched_and_stored(openvino: Artifact) -> None:
    result = tune_streams(openvino, Silent(), seconds=BRIEF, threads=2)
    assert list(result.scenarios) == ["multi-stream", "offline"]
    assert result.provenance is not None
    assert (result.provenance.threads, result.manifest) == (2, openvino.digest)
    for scenario, images in (("multi-stream", 8), ("offline", 32)):
        tuned = result.scenarios[scenario]
        check(tuned, images, range(1, min(2, CORES) + 1))
        assert list(tuned.settings)[:2] == ["untuned", "hint"]
    again, reason = artifacts.load(openvino.path).read_evidence(StreamTuning)
    assert (again, reason) == (result, "")


def check(tuned: TunedScenario, images: int, streams: Sequence[int]) -> None:
    """Check that a result has the whole grid, and figures that follow from its samples."""
    batches = [1 << n for n in range(images.bit_length())]
    expected = [(count, batch) for count in streams for batch in batches if images // batch >= count]
    assert [(one.streams, one.batch) for one in tuned.tried] == expected
    assert any(one.ratio is not None and one.ratio > 0 for one in tuned.tried)
    assert [run.name for run in tuned.runs] == list(tuned.settings)
    assert tuned.settings[tuned.kept] == tuned.setting
    assert tuned.kept == "untuned" or tuned.over_untuned is not None
    for run, setting in zip(tuned.runs, tuned.settings.values(), strict=True):
        assert run.effective.get("streams", "1") == str(setting.streams)
        assert run.batch == setting.batch
        samples = [sample for block in run.blocks for sample in block]
        assert len(run.rounds) >= 6
        assert run.throughput_ips == pytest.approx(images * 1e3 / np.mean(samples), rel=1e-3)
        assert run.p50_ms == percentile(samples, 50)


@pytest.mark.slow
def test_the_command_prints_what_it_stores_and_keeps_the_other_scenario(runtime: Artifact) -> None:
    earlier = store(runtime)
    words = ["bench", str(runtime.path), "--tune-streams", "--scenario", "multi-stream", "--seconds", "0.2"]
    ended = CliRunner().invoke(app, [*words, "--threads", "2", "--json"])
    assert ended.exit_code == 0, ended.output
    assert json.loads(ended.stdout) == json.loads((runtime.path / "streams.json").read_text())
    result = StreamTuning.model_validate_json(ended.stdout)
    assert result.scenarios["offline"] == earlier.scenarios["offline"]
    check(result.scenarios["multi-stream"], 8, (1, 2))
    assert "hint" not in result.scenarios["multi-stream"].settings


def test_results_of_another_machine_do_not_stay(runtime: Artifact) -> None:
    here = describe_provenance(runtime.manifest, 2)
    store(runtime, date="2001-01-01")
    assert list(read_earlier(runtime, here)) == ["offline"]
    for other in ({"machine": "another"}, {"engine": "onnxruntime 1.0"}):
        store(runtime, **other)
        assert read_earlier(runtime, here) == {}
    store(runtime, threads=1)
    assert read_earlier(runtime, here) == {}


@pytest.mark.slow
def test_only_the_batch_is_searched_where_images_run_one_at_a_time(
    runtime: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vitdeploy.targets.onnxruntime import OnnxRuntime

    monkeypatch.setattr(OnnxRuntime, "runs_streams", property(lambda _: False))  # as on a GPU
    result = tune_streams(runtime, Silent(), scenario="multi-stream", seconds=BRIEF, threads=1)
    assert {one.streams for one in result.scenarios["multi-stream"].tried} == {1}
    assert all("streams" not in run.effective for run in result.scenarios["multi-stream"].runs)


def test_a_bench_uses_the_stored_setting_and_says_so(runtime: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = {"fp32": Peak(gops=1e6, engine="none")}
    monkeypatch.setattr(benching.host_peak, "measure_peaks", lambda threads: peaks)
    store(runtime)
    plan = Plan(seconds=BRIEF, threads=2, scenario="offline", against=("onnxruntime-fp32",))
    result = bench([runtime], Silent(), plan)
    assert result.own is not None
    assert result.setting == SETTING
    assert (result.own.batch, result.own.effective["streams"]) == (4, "2")
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(*bench_tables.bench(result))
    assert "offline with the setting that --tune-streams stored: 2 streams, batch 4" in console.export_text()
    given = bench([runtime], Silent(), dataclasses.replace(plan, batches=(2,)))
    assert given.own is not None
    assert (given.setting, given.own.batch) == (None, 2), "--batch wins"
    assert "streams" not in given.own.effective


@pytest.mark.parametrize("fixture", ["openvino", "runtime"])
def test_load_answers_in_streams_with_the_same_answers(
    fixture: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact: Artifact = request.getfixturevalue(fixture)
    if fixture == "openvino" and CORES < 2:
        pytest.skip("OpenVINO opens as many streams as there are cores")
    store(artifact)
    images = [np.random.default_rng(n).integers(0, 256, (32, 32), np.uint8) for n in range(11)]
    with vitdeploy.load(artifact.path, threads=2) as plain:
        assert plain.setting is None
        expected = plain.predict(images)
    with vitdeploy.load(artifact.path, threads=2, scenario="offline") as model:
        assert model.setting == SETTING
        assert model._session.effective["streams"] == "2"
        sizes = count_batches(model, monkeypatch)
        answers = model.predict(images)
    assert sorted(sizes) == [3, 4, 4]
    assert [a.top[0].index for a in answers] == [e.top[0].index for e in expected]
    probabilities = [[guess.probability for guess in one.top] for one in (*answers, *expected)]
    np.testing.assert_allclose(probabilities[:11], probabilities[11:], atol=1e-4)


def count_batches(model: vitdeploy.Deployed, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    sizes: list[int] = []
    run = model.run

    def counted(images: np.ndarray, inputs: dict[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
        sizes.append(len(images))
        return run(images, inputs)

    monkeypatch.setattr(model, "run", counted)
    return sizes


def test_the_hint_is_stored_and_used_as_the_hint(openvino: Artifact) -> None:
    store(openvino, StreamSetting(streams=min(2, CORES), batch=1, threads=1, hint=True), kept="hint")
    with vitdeploy.load(openvino.path, threads=2, scenario="offline") as model:
        assert model._session.effective["hint"] == "THROUGHPUT"


@contextmanager
def notes_of(artifact: Artifact, threads: int | None = 2) -> Iterator[list[str]]:
    notes = Notes()
    with vitdeploy.load(artifact.path, threads=threads, scenario="offline", progress=notes) as model:
        assert model.setting is None
        yield notes.lines


@pytest.mark.parametrize(
    ("provenance", "setting", "reason"),
    [
        ({"machine": "another"}, SETTING, "measured on another machine, or on other cores"),
        ({"engine": "onnxruntime 1.0"}, SETTING, "measured with onnxruntime 1.0"),
        ({}, replace(SETTING, batch=64), "accepts batches of 1:1:32, not of 64"),
        ({}, replace(SETTING, streams=3), "3 streams are more than 2 threads"),
        ({}, replace(SETTING, hint=True), "onnxruntime has no streams on CPU"),
    ],
)
def test_a_setting_that_does_not_apply_is_not_used(
    provenance: dict[str, str], setting: StreamSetting, reason: str, runtime: Artifact
) -> None:
    store(runtime, setting, **provenance)
    with notes_of(runtime) as lines:
        (line,) = lines
        assert line.startswith("the stored setting for offline is not used: ")
        assert reason in line
        assert f"vitdeploy bench {runtime.path} --tune-streams" in line


def test_other_threads_and_nothing_stored_are_named(runtime: Artifact) -> None:
    with notes_of(runtime) as lines:
        assert lines == [
            f"no setting for offline is stored: search for one with: vitdeploy bench {runtime.path} --tune-streams"
        ]
    store(runtime)
    with notes_of(runtime, threads=1) as lines:
        assert "measured with 2 threads, not with 1" in lines[0]
    assert read_setting(runtime, "multi-stream", 2).note.startswith("no setting for multi-stream is stored")
    assert read_setting(runtime, "single-stream", 2).note == ""
    store(runtime, kept="untuned")
    assert (read_setting(runtime, "offline", 2).setting, read_setting(runtime, "offline", 2).note) == (None, "")


def test_a_damaged_or_foreign_file_is_not_used(runtime: Artifact) -> None:
    store(runtime)
    path = runtime.path / "streams.json"
    stored = json.loads(path.read_text())
    for changed, reason in (
        ("{", "cannot be read"),
        (json.dumps({**stored, "manifest": "0" * 64}), "about another manifest"),
        (path.read_text().replace('"streams": 2', '"streams": 1000000000'), "cannot be read"),
    ):
        path.write_text(changed)
        with notes_of(runtime) as lines:
            assert reason in lines[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--scenario", "single-stream"], "nothing to search for"),
        (["--streams", "2"], "leave it out"),
        (["--batch", "4"], "leave it out"),
        (["--profile"], "leave it out"),
        (["--host", "board"], "run it there"),
        (["nowhere"], "a second DIR"),
    ],
)
def test_wrong_usage_is_one_line(words: list[str], message: str, runtime: Artifact) -> None:
    ended = CliRunner().invoke(app, ["bench", str(runtime.path), "--tune-streams", *words])
    assert ended.exit_code == 2
    assert message in " ".join(ended.output.replace("│", " ").split())
    assert not (runtime.path / "streams.json").exists()


def test_what_cannot_be_searched_is_refused(demo: Callable[..., Artifact], copy: Copy, runtime: Artifact) -> None:
    fixed = copy(demo(target="onnxruntime"), "fixed")
    with pytest.raises(UsageError, match="one setting only for offline: there is 1 thread, and it takes batches of 1"):
        tune_streams(fixed, Silent(), scenario="offline", threads=1)
    bundle = demo(target="tensorrt")
    with pytest.raises(TargetUnavailable, match="is a bundle"):
        tune_streams(bundle, Silent())
    with pytest.raises(UsageError, match="single-stream has one image at a time"):
        vitdeploy.tune_streams(runtime, scenario="single-stream")
    with pytest.raises(UsageError, match="did you mean 'offline'"):
        vitdeploy.tune_streams(runtime, scenario="ofline")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="did you mean 'offline'"):
        vitdeploy.load(runtime.path, scenario="ofline")  # type: ignore[arg-type]
    assert not any((one.path / "streams.json").exists() for one in (fixed, bundle, runtime))
