"""Logs in MLflow: runs of a real store, and a server that does not answer, refuses, or stops half-way."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.commands.log.entries import Server, entry, serve
from vitdeploy.commands.log.destination import parse_destination
from vitdeploy.commands.log.mlflow_server import MLflow
from vitdeploy.errors import RemoteError, UsageError


def open_folder(folder: Path, experiment: str = "digits") -> MLflow:
    place = MLflow(parse_destination(f"mlflow:{folder}#{experiment}"))
    place.check()
    return place


def runs(folder: Path, experiment: str = "digits") -> list[Any]:
    """The runs, as MLflow's own client sees them."""
    from mlflow.tracking import MlflowClient

    os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
    try:
        client = MlflowClient(tracking_uri=folder.as_uri())
        return list(client.search_runs([client.get_experiment_by_name(experiment).experiment_id]))
    finally:
        del os.environ["MLFLOW_ALLOW_FILE_STORE"]


def test_a_run_has_parameters_metrics_with_intervals_tags_and_files(tmp_path: Path) -> None:
    evidence = tmp_path / "bench.json"
    evidence.write_text("{}", encoding="utf-8")
    one = entry(valid=False, doubts=("latency: busy", "x" * 9000), parameters={"a": "v" * 9000, "odd[0]": 1})
    where = open_folder(tmp_path / "runs").write(one, ((evidence, ""), (evidence, "artifact/reference")))
    (run,) = runs(tmp_path / "runs")
    assert where == f"run {run.info.run_id}"
    assert (run.info.status, run.info.run_name) == ("FINISHED", "digits")
    assert dict(run.data.metrics) == {"drop": 0.1, "drop.ci_low": -0.2, "drop.ci_high": 0.4}
    assert (run.data.params["odd_0_"], len(run.data.params["a"])) == ("1", 6000)
    tags = run.data.tags
    assert (tags["verdict"], tags["valid"], tags["limit.max_drop_pp"]) == ("pass", "false", "0.5")
    assert tags["doubts"].startswith("latency: busy; xxx")
    assert (tags["vitdeploy.id"], tags["vitdeploy.digest"]) == (one.id, one.digest)
    folder = tmp_path / "runs" / run.info.experiment_id / run.info.run_id / "artifacts"
    assert {str(p.relative_to(folder)) for p in folder.rglob("*.json")} == {
        "bench.json", "artifact/reference/bench.json",
    }  # fmt: skip


def test_trials_are_children_and_a_newer_result_is_no_second_run(tmp_path: Path) -> None:
    place = open_folder(tmp_path / "runs")
    place.write(entry(kind="sweep", id="s", status="running"), ())
    failed = entry(kind="trial", id="s-1", parent="s", status="failed", reason="no weights", verdict="", metrics={})
    place.write(failed, ())
    again = open_folder(tmp_path / "runs")  # another process
    assert again.list_digests("s") == {"s-1": failed.digest}
    new = entry(kind="trial", id="s-1", parent="s")
    again.write(new, ())
    again.write(entry(kind="sweep", id="s"), ())
    trial, sweep = sorted(runs(tmp_path / "runs"), key=lambda run: run.data.tags["vitdeploy.kind"], reverse=True)
    assert (sweep.info.status, trial.info.status) == ("FINISHED", "FINISHED")
    assert trial.data.tags["mlflow.parentRunId"] == sweep.info.run_id
    assert (trial.data.tags["reason"], trial.data.metrics["drop"]) == ("", 0.1)
    assert open_folder(tmp_path / "runs").list_digests("s") == {"s-1": new.digest}


def test_a_parameter_that_changed_is_a_tag_and_not_an_error(tmp_path: Path) -> None:
    first, key = {"recipe.bench.seconds": 2, "samples": 600, "timing": "1 thread"}, "parameter.recipe.bench.seconds"
    for changed, tags in (
        ({"recipe.bench.seconds": 4, "samples": 600, "new": "x"}, {key: "4", "parameter.timing": ""}),
        (first, {}),
    ):
        for parameters in (first, changed):
            place = open_folder(tmp_path / "runs")
            place.list_digests("s")
            place.write(entry(kind="trial", id="s-1", parent="s", parameters=parameters), ())
        (run,) = runs(tmp_path / "runs")
        assert dict(run.data.params).items() >= {"recipe.bench.seconds": "2", "samples": "600"}.items()
        assert {k: v for k, v in run.data.tags.items() if k.startswith("parameter.") and k != "parameter.new"} == tags
    assert run.data.params["new"] == "x"


def test_the_tag_of_a_limit_that_is_gone_is_removed(tmp_path: Path) -> None:
    place = open_folder(tmp_path / "runs")
    for limits in ({"max_drop_pp": 0.5, "min_speedup": 2.0}, {"max_drop_pp": 1.0}):
        place.write(entry(id="one", limits=limits), ())
    (run,) = runs(tmp_path / "runs")
    assert {k: v for k, v in run.data.tags.items() if k.startswith("limit.")} == {"limit.max_drop_pp": "1.0"}


def test_a_run_that_was_not_filled_is_filled_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.tracking import MlflowClient

    def refuse(*_: object, **__: object) -> None:
        raise OSError("the database is gone")

    trial = entry(kind="trial", id="s-1", parent="s")
    with monkeypatch.context() as gone:
        gone.setattr(MlflowClient, "log_batch", refuse)
        with pytest.raises(RemoteError, match="the database is gone"):
            open_folder(tmp_path / "runs").write(trial, ())
    again = open_folder(tmp_path / "runs")
    assert again.list_digests("s") == {"s-1": ""}
    again.write(trial, ())
    (run,) = runs(tmp_path / "runs")
    assert (run.info.status, run.data.params["samples"]) == ("FINISHED", "600")


def test_a_failed_trial_is_a_failed_run(tmp_path: Path) -> None:
    open_folder(tmp_path / "runs").write(entry(status="failed", reason="at export: no weights"), ())
    (run,) = runs(tmp_path / "runs")
    assert (run.info.status, run.data.tags["reason"]) == ("FAILED", "at export: no weights")


def test_a_deleted_experiment_is_named(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    place = open_folder(tmp_path / "runs")
    os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
    try:
        MlflowClient(tracking_uri=(tmp_path / "runs").as_uri()).delete_experiment(place._experiment)
    finally:
        del os.environ["MLFLOW_ALLOW_FILE_STORE"]
    with pytest.raises(UsageError, match="'digits' is deleted"):
        open_folder(tmp_path / "runs")


def test_what_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"mlflow-skinny has no databases.*pip install mlflow"):
        MLflow(parse_destination(f"mlflow:sqlite:///{tmp_path}/runs.db")).check()
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(UsageError, match=r"mlflow is not installed.*vitdeploy\[log\]"):
        open_folder(tmp_path / "runs")


def test_a_server_that_is_not_there_is_named_at_once() -> None:
    started = time.monotonic()
    with pytest.raises(RemoteError, match=r"127.0.0.1:9 cannot be used: the server does not answer \(Connection"):
        MLflow(parse_destination("mlflow:http://me:secret@127.0.0.1:9")).check()
    assert time.monotonic() - started < 10


def test_a_server_that_never_answers_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with serve(Server(silent_s=3)) as server, pytest.raises(RemoteError, match=r"does not answer \(Read timed out\)"):
        MLflow(parse_destination(f"mlflow:http://{server.address}")).check()
    assert len(server.paths) == 1


def test_a_password_reaches_the_server_and_no_message(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD", raising=False)
    with serve(Server(fails_from=2, status=403)) as server:
        place = MLflow(parse_destination(f"mlflow:http://me:secret@{server.address}"))
        place.check()
        with pytest.raises(RemoteError, match="the database is gone") as caught:
            place.write(entry(), ())
    assert server.authorizations[0] == "Basic bWU6c2VjcmV0"
    assert "secret" not in "".join((str(caught.value), place.shown, *capfd.readouterr()))
    assert "MLFLOW_TRACKING_PASSWORD" not in os.environ
