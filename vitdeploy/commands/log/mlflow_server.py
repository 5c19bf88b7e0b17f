"""A log in MLflow: each entry is a run, and the trials of a sweep are child runs of the sweep."""

from __future__ import annotations

import io
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitdeploy.commands.log.destination import Destination, hide_password
from vitdeploy.commands.log.entry import Entry, to_milliseconds
from vitdeploy.errors import RemoteError, UsageError

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

_CHECK = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
_WRITE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "30", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}
"""MLflow's own settings wait for up to two minutes, and try seven times more: the user's count, if there are any."""
_STATES = {"running": "RUNNING", "finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
_LIMIT, _PARAMETER = "limit.", "parameter."
_ID, _PARENT, _DIGEST = "vitdeploy.id", "vitdeploy.parent", "vitdeploy.digest"
_LONGEST_KEY, _LONGEST_PARAMETER, _LONGEST_TAG = 250, 6000, 5000  # MLflow refuses longer ones
_MOST_AT_ONCE = 100  # parameters in one request, and tags
_NOT_IN_KEYS = re.compile(r"[^\w./ -]", re.ASCII)
_LONGEST_REASON = 300
_PAGE = 1000


class MLflow:
    """An experiment of MLflow."""

    def __init__(self, destination: Destination) -> None:
        self._to = destination
        self.shown = destination.shown
        self._experiment = ""
        self._runs: dict[str, str] = {}
        """id of an entry -> id of its run"""

    @property
    def _client(self) -> MlflowClient:
        from mlflow.tracking import MlflowClient

        return MlflowClient(tracking_uri=self._to.place)

    def check(self) -> None:
        """Check, before any work, that MLflow answers, and open the experiment. A missing one is created.

        Raises:
            UsageError: MLflow is not installed, or the experiment is deleted.
            RemoteError: the server does not answer, or refuses.
        """
        if find_spec("mlflow") is None:
            raise UsageError("mlflow is not installed", fix="pip install 'vitdeploy[log]'.")
        if self._to.place.startswith("sqlite:") and not _is_whole():
            raise UsageError("mlflow-skinny has no databases", fix="pip install mlflow, or log to a folder.")
        with self._connected(_CHECK):
            client, name = self._client, self._to.experiment
            experiment = client.get_experiment_by_name(name)
            self._experiment = client.create_experiment(name) if experiment is None else experiment.experiment_id
        if experiment is not None and experiment.lifecycle_stage != "active":
            raise UsageError(
                f"the experiment {name!r} is deleted in {self.shown}", fix="Restore it, or add #NAME of another one."
            )

    def list_digests(self, sweep: str) -> dict[str, str]:
        """Return the trials of a sweep that were logged: id -> digest; empty for one that is not logged completely.

        Raises:
            RemoteError: the server does not answer, or refuses.
        """
        with self._connected(_WRITE):
            for run in self._search(_ID, sweep):
                self._runs[sweep] = run.info.run_id
            trials = list(self._search(_PARENT, sweep))
        self._runs |= {run.data.tags.get(_ID, ""): run.info.run_id for run in trials}
        return {run.data.tags.get(_ID, ""): run.data.tags.get(_DIGEST, "") for run in trials}

    def _search(self, tag: str, value: str) -> Iterator[Any]:
        token: str | None = None
        while True:
            page = self._client.search_runs(
                [self._experiment], f"tags.`{tag}` = '{value}'", max_results=_PAGE, page_token=token
            )
            yield from page
            token = page.token
            if not token:
                return

    def write(self, entry: Entry, files: tuple[tuple[Path, str], ...]) -> str:
        """Write an entry as a run, or as the newer result of its run, and return the run's address.

        Raises:
            RemoteError: the server does not answer, or refuses.
        """
        with self._connected(_WRITE):
            client, run = self._client, self._runs.get(entry.id)
            tags, parameters = self._list_all_tags(entry), _list_parameters(entry)
            if run is None:
                tags = {key: value for key, value in tags.items() if value}
                created = client.create_run(
                    self._experiment, start_time=to_milliseconds(entry.started), tags=tags, run_name=entry.name
                )
                run, tags = created.info.run_id, {}
                self._runs[entry.id] = run
            else:
                before = client.get_run(run).data
                tags |= _list_changes(before.params, parameters)
                parameters = {name: value for name, value in parameters.items() if name not in before.params}
                for name in before.tags:
                    if name.startswith((_LIMIT, _PARAMETER)) and name not in tags:
                        client.delete_tag(run, name)
            self._fill(client, run, entry, parameters, tags)
            if entry.status == "running":
                client.update_run(run, status=_STATES[entry.status])
            else:
                with redirect_stdout(io.StringIO()):  # it prints an address
                    client.set_terminated(run, _STATES[entry.status], to_milliseconds(entry.ended or entry.started))
            for path, folder in files:
                client.log_artifact(run, str(path), folder or None)
            client.set_tag(run, _DIGEST, entry.digest)  # the last step: without it the entry is written again
        if self._to.place.startswith("http"):
            return f"{self._to.address}/#/experiments/{self._experiment}/runs/{run}"
        return f"run {run}"

    def answers(self) -> bool:
        """Return True if the server answers, so that another entry may be written."""
        try:
            with self._connected(_CHECK):
                self._client.get_experiment(self._experiment)
        except RemoteError:
            return False
        return True

    def _list_all_tags(self, entry: Entry) -> dict[str, str]:
        tags = {**_list_tags(entry), _ID: entry.id}
        if entry.parent:
            tags |= {_PARENT: entry.parent, "mlflow.parentRunId": self._runs.get(entry.parent, "")}
        return {_key(name): value[:_LONGEST_TAG] for name, value in tags.items()}

    def _fill(
        self, client: MlflowClient, run: str, entry: Entry, parameters: Mapping[str, str], tags: Mapping[str, str]
    ) -> None:
        """Log parameters, metrics and tags, as many at once as MLflow takes."""
        from mlflow.entities import Metric, Param, RunTag

        time = to_milliseconds(entry.ended or entry.started)
        metrics = [Metric(_key(k), v, time, 0) for k, v in entry.metrics.items() if math.isfinite(v)]
        params = [Param(name, value) for name, value in parameters.items()]
        labels = [RunTag(name, value) for name, value in tags.items()]
        for first in range(0, max(len(metrics), len(params), len(labels)), _MOST_AT_ONCE):
            part = slice(first, first + _MOST_AT_ONCE)
            client.log_batch(run, metrics=metrics[part], params=params[part], tags=labels[part])

    @contextmanager
    def _connected(self, waiting: Mapping[str, str]) -> Iterator[None]:
        """Give MLflow its settings for a moment, and turn what goes wrong into one line.

        The password is not part of the URI that MLflow gets, because its errors and its output quote the URI.
        """
        settings = {key: value for key, value in waiting.items() if key not in os.environ}
        if self._to.place.startswith("file:"):
            settings["MLFLOW_ALLOW_FILE_STORE"] = "true"  # MLflow asks for it, since it prefers databases
        if self._to.user is not None:
            settings["MLFLOW_TRACKING_USERNAME"] = self._to.user
            settings["MLFLOW_TRACKING_PASSWORD"] = self._to.password or ""
        before = {key: os.environ.get(key) for key in settings}
        os.environ.update(settings)
        try:
            yield
        except Exception as error:  # MLflow, requests and the disk raise what they like, and results are worth more
            fix = "Check the server, its address and the password." if self._to.place.startswith("http") else ""
            raise RemoteError(
                f"{self.shown} cannot be used: {_shorten(error)}", fix=fix or "Check the folder and the disk."
            ) from error
        finally:
            for key, value in before.items():
                if value is None:
                    os.environ.pop(key, None)
                else:
                    os.environ[key] = value


def _is_whole() -> bool:
    """Return True if MLflow is installed with its databases, which mlflow-skinny has not."""
    try:
        metadata.version("mlflow")
    except metadata.PackageNotFoundError:
        return False
    return True


def _list_tags(entry: Entry) -> dict[str, str]:
    """Return the tags of a run. Those that do not apply are empty."""
    return {
        "vitdeploy.kind": entry.kind,
        "valid": "true" if entry.valid else "false",
        "verdict": entry.verdict,
        "doubts": "; ".join(entry.doubts),
        "failing": "; ".join(entry.failing),
        "reason": entry.reason,
        "fix": entry.fix,
        "mlflow.source.name": "vitdeploy",
        **{f"{_LIMIT}{name}": str(value) for name, value in entry.limits.items()},
    }


def _list_parameters(entry: Entry) -> dict[str, str]:
    return {_key(name): str(value)[:_LONGEST_PARAMETER] for name, value in entry.parameters.items()}


def _list_changes(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, str]:
    """Return tags of parameters that differ from those of the run, which MLflow does not change; "" without a value."""
    changed = {name: after.get(name, "") for name, value in before.items() if after.get(name, "") != value}
    return {_key(f"{_PARAMETER}{name}"): value[:_LONGEST_TAG] for name, value in changed.items()}


def _key(name: str) -> str:
    return _NOT_IN_KEYS.sub("_", name)[:_LONGEST_KEY]


def _shorten(error: Exception) -> str:
    """Return the first line of an error, without what MLflow puts before the reason."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if "Max retries exceeded" in line:
        reason = re.search(r"\[Errno -?\d+\] ([^'\")]+)|(Read timed out|timed out)", line)
        line = f"the server does not answer{f' ({(reason[1] or reason[2]).strip()})' if reason else ''}"
    return hide_password(line)[:_LONGEST_REASON]
