"""Logs of commands: the verdict of the gate, a run that fails, and a sweep whose trials are logged once."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import vitdeploy
from tests.cli.conftest import run as run_cli
from tests.commands.log.entries import Server, serve
from tests.commands.log.test_mlflow import runs
from tests.commands.sweep.running import BASE, Steps, go, store, write
from tests.evidence import timed_bench
from vitdeploy import environment
from vitdeploy.artifact import Artifact
from vitdeploy.commands import run as command
from vitdeploy.commands.inspect.inspect import inspect
from vitdeploy.commands.log import sweep_log
from vitdeploy.commands.log.entry import Entry, from_seconds
from vitdeploy.commands.log.logs import open_logs
from vitdeploy.commands.log.mlflow_server import MLflow
from vitdeploy.commands.log.sweep_log import SweepLog
from vitdeploy.commands.sweep import trial as trials
from vitdeploy.commands.sweep.definition import read_definition
from vitdeploy.commands.sweep.naming import Naming
from vitdeploy.errors import ArtifactError, RemoteError, SourceError
from vitdeploy.evidence import Sweep, SweepRow
from vitdeploy.pipeline.summary import Exported, ExportResult


@pytest.fixture
def artifact(demo: Callable[..., Artifact], copy: Callable[[Artifact], Artifact]) -> Artifact:
    artifact = copy(demo(target="onnxruntime"))
    artifact.write_evidence(timed_bench(artifact, 2.0))
    return artifact


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_a_verdict_is_logged_with_the_figures_that_it_is_about(artifact: Artifact, tmp_path: Path) -> None:
    places = [f"jsonl:{tmp_path / 'log.jsonl'}", f"mlflow:{tmp_path / 'runs'}#digits"]
    gate = vitdeploy.gate(artifact, max_drop_pp=1.0, min_speedup=1.2, log=places, log_artifact=True)
    (line,), (run,) = lines(tmp_path / "log.jsonl"), runs(tmp_path / "runs")
    assert (line["kind"], line["verdict"], line["status"]) == ("gate", gate.verdict, "finished") == (
        "gate", "invalid", "finished",
    )  # fmt: skip
    assert line["limits"] == {"max_drop_pp": 1.0, "min_speedup": 1.2}
    assert line["failing"][0].startswith("accuracy drop: ")
    assert line["metrics"]["speedup"] == run.data.metrics["speedup"] == pytest.approx(2.0, rel=0.01)
    for name in ("latency_p50_ms", "speedup"):
        low, high = (line["metrics"][f"{name}.{end}"] for end in ("ci_low", "ci_high"))
        assert low <= line["metrics"][name] <= high
    assert "drop" not in line["metrics"], "it was not measured"
    manifest = artifact.manifest
    assert line["parameters"]["recipe.model.spec"] == run.data.params["model"] == "demo:digits"
    assert line["parameters"]["version.onnxruntime"] == manifest.versions["onnxruntime"]
    assert (line["metrics"]["size_bytes"], line["metrics"]["attention_sites"]) == (manifest.deployed_bytes, 4)
    files = {path.name for path in (tmp_path / "runs").rglob("artifacts/**/*") if path.is_file()}
    assert {"bench.json", "gate.json", "manifest.json", "graph.onnx", "example.npz"} <= files


def test_a_link_in_an_artifact_is_not_copied(artifact: Artifact, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret", encoding="utf-8")
    (artifact.path / "report.html").symlink_to(tmp_path / "secret")
    vitdeploy.gate(artifact, max_size_mib=100, log=f"mlflow:{tmp_path / 'runs'}#digits")
    assert not list((tmp_path / "runs").rglob("report.html"))


def test_a_server_that_stops_costs_a_warning_and_not_the_verdict(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    words = ["gate", artifact.path, "--max-size", "100", "--json", "--log"]
    with serve(Server(fails_from=2)) as server:
        ended = run_cli(*words, f"mlflow:http://me:secret@{server.address}")
    assert ended.code == 0
    assert json.loads(ended.out)["verdict"] == "pass"
    assert "is not logged, its results stay" in ended.err
    assert "secret" not in ended.err
    refused = run_cli(*words, f"mlflow:http://me:secret@{server.address}")
    assert refused.code == 1
    assert "does not answer" in json.loads(refused.out)["error"]["message"]


def test_a_run_that_fails_is_logged_with_its_reason(tmp_path: Path) -> None:
    from vitdeploy.commands.run import run

    recipe = write(tmp_path, "model: {spec: demo:digits, weights: nowhere.safetensors}\ntarget: {kind: onnxruntime}\n")
    with pytest.raises(SourceError):
        run(str(recipe), tmp_path / "out", Steps(), logs=open_logs([f"jsonl:{tmp_path / 'log.jsonl'}"], Steps()))
    (line,) = lines(tmp_path / "log.jsonl")
    assert (line["kind"], line["status"], line["verdict"], line["name"]) == ("run", "failed", "", "out")
    assert "nowhere.safetensors" in line["reason"]


@pytest.mark.parametrize("step", ["gate", "report"])
def test_a_verdict_or_a_report_that_fails_is_logged_too(
    step: str, artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ArtifactError(f"{step} is impossible", fix="Free some space.")

    result = command.Steps(ExportResult(artifact, Exported.model_construct()), None, inspect(artifact), None)
    monkeypatch.setattr(command, "run_steps", lambda *_, **__: result)
    monkeypatch.setattr(command, step, fail)
    monkeypatch.setattr(command, "is_available", lambda: True)
    recipe = write(tmp_path, "model: demo:digits\ntarget: {kind: onnxruntime}\n")
    logs = open_logs([f"jsonl:{tmp_path / 'log.jsonl'}"], Steps())
    with pytest.raises(ArtifactError):
        command.run(str(recipe), tmp_path / "out", Steps(), logs=logs)
    (line,) = lines(tmp_path / "log.jsonl")
    assert (line["kind"], line["status"], line["reason"]) == ("run", "failed", f"{step} is impossible")


MATRIX = "matrix: {precision: [fp32, int8], model: [demo:digits, {spec: demo:digits, weights: nowhere.safetensors}]}\n"


@pytest.fixture
def swept(tmp_path: Path) -> Path:
    """A sweep file with four trials, of which two have run and two will fail."""
    file = write(tmp_path, BASE.replace("digits,", "digits, target: onnxruntime,") + MATRIX)
    for trial in read_definition(file, Naming()).trials:
        if trial.recipe.model.weights is None:
            store(trial, tmp_path / "out", precision=trial.recipe.precision.kind)
    return file


def sweep_again(file: Path, *places: str) -> tuple[Sweep, Steps]:
    steps = Steps()
    return go(file, file.parent / "out", logs=open_logs(places, steps))[0], steps


def test_a_sweep_that_is_resumed_logs_each_trial_once(swept: Path, tmp_path: Path) -> None:
    places = [f"jsonl:{tmp_path / 'log.jsonl'}", f"mlflow:{tmp_path / 'runs'}#digits"]
    for _ in range(3):
        result, _ = sweep_again(swept, *places)
    of_trials = [line for line in lines(tmp_path / "log.jsonl") if line["kind"] == "trial"]
    assert sorted(line["name"] for line in of_trials) == sorted(row.name for row in result.trials)
    logged = runs(tmp_path / "runs")
    (parent,) = (run for run in logged if run.data.tags["vitdeploy.kind"] == "sweep")
    children = [run for run in logged if run is not parent]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert sorted((run.info.status, run.info.run_name) for run in children) == sorted(
        ("FAILED" if row.status == "failed" else "FINISHED", row.name) for row in result.trials
    )
    assert (parent.info.status, parent.data.metrics["trials_failed"]) == ("FINISHED", 2)
    failed = [line for line in of_trials if line["status"] == "failed"]
    assert all("nowhere.safetensors" in line["reason"] for line in failed)
    done = next(line for line in of_trials if line["status"] == "finished")
    assert (done["metrics"]["drop.ci_low"], done["metrics"]["attention_fused"]) == (-0.2, 3)
    files = {path.name for path in (tmp_path / "runs" / parent.info.experiment_id / parent.info.run_id).rglob("*.*")}
    assert {"results.csv", "results.jsonl", "sweep.html"} <= files


def test_other_limits_make_a_newer_result_of_the_same_trial(swept: Path, tmp_path: Path) -> None:
    places = [f"jsonl:{tmp_path / 'log.jsonl'}", f"mlflow:{tmp_path / 'runs'}#digits"]
    sweep_again(swept, *places)
    record = next((tmp_path / "out" / "trials").glob("*/artifact")).with_name("trial.json")
    facts = json.loads(record.read_text(encoding="utf-8"))
    record.write_text(json.dumps({**facts, "p50_ms": 4.0}), encoding="utf-8")
    sweep_again(swept, *places)
    own = [line for line in lines(tmp_path / "log.jsonl") if line["name"] == facts["name"]]
    assert [line["metrics"]["latency_p50_ms"] for line in own] == [5.0, 4.0]
    assert own[0]["id"] == own[1]["id"]
    (run,) = (run for run in runs(tmp_path / "runs") if run.info.run_name == facts["name"])
    assert run.data.metrics["latency_p50_ms"] == 4.0


def test_other_seconds_of_the_bench_do_not_end_the_log_of_a_sweep(swept: Path, tmp_path: Path) -> None:
    place = f"mlflow:{tmp_path / 'runs'}#digits"
    sweep_again(swept, place)
    changed = swept.rename(tmp_path / "renamed.yaml")
    changed.write_text(changed.read_text(encoding="utf-8").replace("seconds: 0.2", "seconds: 0.1"), encoding="utf-8")
    steps = sweep_again(changed, place)[1]
    assert not [line for line in steps.lines if "not logged" in line]
    logged = runs(tmp_path / "runs")
    assert len(logged) == 5
    assert not [run for run in logged if run.info.status == "RUNNING"]
    tags = [run.data.tags for run in logged]
    assert [one["parameter.file"] for one in tags if one["vitdeploy.kind"] == "sweep"] == ["renamed.yaml"]
    assert {one["parameter.recipe.bench.seconds"] for one in tags if one["vitdeploy.kind"] == "trial"} == {"0.1"}


def test_a_trial_that_mlflow_refuses_stops_no_other(
    swept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking import MlflowClient

    create = MlflowClient.create_run
    (bad,) = (trial.name for trial in read_definition(swept, Naming()).trials[:1])

    def refuse_one(self: Any, *words: Any, run_name: str, **facts: Any) -> Any:
        if run_name == bad:
            raise OSError("this name is refused")
        return create(self, *words, run_name=run_name, **facts)

    monkeypatch.setattr(MlflowClient, "create_run", refuse_one)
    steps = sweep_again(swept, f"mlflow:{tmp_path / 'runs'}#digits")[1]
    assert sum("this name is refused" in line for line in steps.lines) == 2, "once, and once more at the end"
    logged = {run.info.run_name: run.info.status for run in runs(tmp_path / "runs")}
    assert (len(logged), logged["out"]) == (4, "FINISHED")


def test_an_interrupt_after_a_short_outage_leaves_no_sweep_running(
    swept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outages, write_entry = iter([True]), MLflow.write

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    def fail_once(self: MLflow, one: Entry, files: tuple[tuple[Path, str], ...]) -> str:
        if one.kind == "trial" and next(outages, False):
            raise RemoteError("no answer", fix="Wait.")
        return write_entry(self, one, files)

    states = iter([False, True])
    monkeypatch.setattr(MLflow, "answers", lambda _: next(states))
    monkeypatch.setattr(trials, "run_steps", interrupt)
    monkeypatch.setattr(MLflow, "write", fail_once)
    with pytest.raises(KeyboardInterrupt):
        sweep_again(swept, f"mlflow:{tmp_path / 'runs'}#digits")
    kinds = {run.data.tags["vitdeploy.kind"]: run.info.status for run in runs(tmp_path / "runs")}
    assert kinds == {"sweep": "KILLED", "trial": "FINISHED"}


def test_files_that_cannot_be_copied_leave_no_sweep_running(
    swept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking import MlflowClient

    def refuse(*_: object, **__: object) -> None:
        raise OSError("the bucket is gone")

    monkeypatch.setattr(MlflowClient, "log_artifact", refuse)
    steps = sweep_again(swept, f"mlflow:{tmp_path / 'runs'}#digits")[1]
    assert any("the bucket is gone" in line for line in steps.lines)
    assert not [run for run in runs(tmp_path / "runs") if run.info.status == "RUNNING"]


def test_only_changed_trials_are_described_and_the_versions_are_read_once(
    swept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    described: list[str] = []
    read: list[str] = []
    describe, read_versions = sweep_log.describe_trial, environment.library_versions
    result, _ = sweep_again(swept)
    recipes = {trial.name: trial.recipe for trial in read_definition(swept, Naming()).trials}

    def count(row: SweepRow, *others: Any) -> Entry:
        described.append(row.name)
        return describe(row, *others)

    monkeypatch.setattr(sweep_log, "describe_trial", count)

    def count_versions() -> dict[str, str]:
        read.append("versions")
        return read_versions()

    monkeypatch.setattr(environment, "library_versions", count_versions)
    logs = open_logs([f"jsonl:{tmp_path / 'log.jsonl'}"], Steps())
    with SweepLog(logs, "s", tmp_path / "out", swept, recipes).opened() as log:
        for _ in range(3):
            log.update(result.trials)
        assert sorted(described) == sorted(recipes)
        changed = result.trials[0].model_copy(update={"verdict": "fail"})
        log.update([changed, *result.trials[1:]])
        assert described[4:] == [changed.name]
    assert not read
    assert len(lines(tmp_path / "log.jsonl")) == 6


def test_a_trial_has_the_times_of_its_work(swept: Path, tmp_path: Path) -> None:
    exported, timed = ({"began": began, "ended": began + 5, "node": "n", "boot": "b"} for began in (86400.0, 86410.5))
    first, second = sorted((tmp_path / "out" / "trials").glob("*/trial.json"))
    facts = json.loads(first.read_text(encoding="utf-8"))
    first.write_text(json.dumps({**facts, "exported": exported, "timed": timed}), encoding="utf-8")
    os.utime(second, (172800, 172800))
    seconds = json.loads(second.read_text(encoding="utf-8"))["seconds"]
    sweep_again(swept, f"jsonl:{tmp_path / 'log.jsonl'}")
    times = {line["name"]: (line["started"], line["ended"]) for line in lines(tmp_path / "log.jsonl")}
    assert times[first.parent.name] == ("1970-01-02T00:00:00.000Z", "1970-01-02T00:00:15.500Z")
    assert times[second.parent.name] == (from_seconds(172800 - seconds), "1970-01-03T00:00:00.000Z")


def test_a_server_that_stops_during_a_sweep_is_tried_once_more_at_the_end(
    swept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with serve(Server(fails_from=2)) as server:
        result, steps = sweep_again(swept, f"mlflow:http://{server.address}", f"jsonl:{tmp_path / 'log.jsonl'}")
    assert len(result.trials) == 4
    assert sum("not logged" in line for line in steps.lines) == 2, "at the beginning and at the end, not for each trial"
    assert len(lines(tmp_path / "log.jsonl")) == 5
    with pytest.raises(RemoteError, match="does not answer"):
        sweep_again(swept, f"mlflow:http://{server.address}")


def test_an_interrupt_leaves_an_interrupted_sweep(swept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(trials, "run_steps", interrupt)
    with pytest.raises(KeyboardInterrupt):
        sweep_again(swept, f"mlflow:{tmp_path / 'runs'}#digits", f"jsonl:{tmp_path / 'log.jsonl'}")
    kinds = {run.data.tags["vitdeploy.kind"]: run.info.status for run in runs(tmp_path / "runs")}
    assert kinds == {"sweep": "KILLED", "trial": "FINISHED"}
    assert [line["status"] for line in lines(tmp_path / "log.jsonl")] == ["finished", "finished", "interrupted"]
