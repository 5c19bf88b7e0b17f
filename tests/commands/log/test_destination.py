"""Destinations as users write them. A password is never shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from vitdeploy.commands.log.destination import hide_password, parse_destination
from vitdeploy.errors import UsageError


def test_a_folder_a_database_and_a_server_with_their_experiments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    read = {
        text: (place.place, place.experiment)
        for text in (
            "runs",
            "runs#a b",
            "file:///data/runs",
            "sqlite:///runs.db#x",
            "http://host:5000/",
            "https://h/m#x",
        )
        for place in [parse_destination(f"mlflow:{text}")]
    }
    assert read == {
        "runs": ((tmp_path / "runs").as_uri(), "vitdeploy"),
        "runs#a b": ((tmp_path / "runs").as_uri(), "a b"),
        "file:///data/runs": ("file:///data/runs", "vitdeploy"),
        "sqlite:///runs.db#x": ("sqlite:///runs.db", "x"),
        "http://host:5000/": ("http://host:5000", "vitdeploy"),
        "https://h/m#x": ("https://h/m", "x"),
    }
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "of the environment")
    assert parse_destination("mlflow:runs").experiment == "of the environment"
    assert parse_destination("jsonl:a#b.jsonl").place == "a#b.jsonl"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("results.jsonl", "is no destination of --log"),
        ("json:a", r"did you mean 'jsonl'"),
        ("mlfow:http://me:secret@host", r"did you mean 'mlflow'"),
        ("mlflow:htp://me:secret@host", r"'htp'.*did you mean 'http'"),
        ("mlflow:postgresql://me:secret@host/db", "does not know 'postgresql'"),
        ("mlflow:http://me:secret@host:port", "names no server"),
        ("mlflow:http://", "names no server"),
        ("mlflow:https://me:se/cret@host", r"'https://\*\*\*@host' has an @ behind its host.*percent-encode it"),
        ("mlflow:https://me:se?cret@host", "percent-encode it"),
        ("mlflow:https://me:se#cret@host", "percent-encode it"),
        ("mlflow:https://me:12/cret@host", "percent-encode it"),
        ("mlflow:https://me:12?cret@host", "percent-encode it"),
        ("mlflow:https://me:se cret/cret@host", "percent-encode it"),
        ("mlflow:htp://me:se/cret@host#x", r"did you mean 'http'"),
        ("mlflow:me:cret@host", "does not know 'me'"),
        ("me:cret@host", "'me:...@host' is no destination"),
        ("mlfow:https://me:se/cret@host", r"'mlfow:https://\*\*\*@host' is no destination"),
        ("mlfow:https://me:se#cret@host", r"did you mean 'mlflow'"),
        ("mlfow:https://host?token=secret", "'mlfow:https://host' is no destination"),
        ("mlfow:https:host?token=secret", "'mlfow:https:host' is no destination"),
        ("jsonl:https://me:se/cret@host", "names no file"),
        ("mlflow://me:se/cret@host", "names no server"),
        ("mlflow:https:/me:se/cret@host", "names no server"),
        ("mlflow:http://[host", "names no server"),
        ("mlflow:http://me:secret@[host", "names no server"),
        ("mlflow:http://host:99999", "names no server"),
        ("mlflow:", "names no URI"),
        ("jsonl:", "names no file"),
    ],
)
def test_another_form_is_refused_without_its_password(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        parse_destination(text)
    assert "cret" not in str(caught.value)
    assert "me:se" not in str(caught.value)


def test_a_query_reaches_the_server_and_is_not_shown() -> None:
    place = parse_destination("mlflow:https://host?token=secret#x")
    assert (place.place, place.shown) == ("https://host?token=secret", "mlflow:https://host")
    assert hide_password("no answer of https://host/x?token=secret (500)") == "no answer of https://host/x (500)"
    assert hide_password("see https://me:se/cr?e#t@host/x") == "see https://***@host/x"


def test_an_at_in_a_folder_or_a_database_is_no_password() -> None:
    assert parse_destination("mlflow:sqlite:////data/me@lab.db").shown == "mlflow:sqlite:////data/me@lab.db"
    assert parse_destination("mlflow:file:///data/me@lab").shown == "mlflow:file:///data/me@lab"


def test_a_tilde_is_the_folder_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    places = [
        parse_destination(text).place for text in ("jsonl:~/log.jsonl", "mlflow:~/runs#x", "mlflow:sqlite:///~/r.db")
    ]
    assert places == [f"{tmp_path}/log.jsonl", (tmp_path / "runs").as_uri(), f"sqlite:///{tmp_path}/r.db"]


def test_a_password_is_apart_from_the_address() -> None:
    place = parse_destination("mlflow:https://me:p%40ss@host:5000/mlflow#x")
    assert (place.user, place.password, place.shown) == ("me", "p@ss", "mlflow:https://host:5000/mlflow")
    assert hide_password("see http://me:secret@host/x") == "see http://***@host/x"
