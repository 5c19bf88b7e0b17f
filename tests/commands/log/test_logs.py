"""Logs of commands: the verdict of the gate, a run that fails, and a sweep whose trials are logged once."""

from __future__ import annotations

import json
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
from vitdeploy.artifact import Artifact
from vitdeploy.commands.log.logs import open_logs
from vitdeploy.commands.sweep import trial as trials
from vitdeploy.commands.sweep.definition import read_definition
from vitdeploy.commands.sweep.naming import Naming
from vitdeploy.errors import RemoteError, SourceError
from vitdeploy.evidence import Sweep


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
