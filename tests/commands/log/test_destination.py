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
        ("mlflow:", "names no URI"),
        ("jsonl:", "names no file"),
    ],
)
def test_another_form_is_refused_without_its_password(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        parse_destination(text)
    assert "secret" not in str(caught.value)


def test_a_password_is_apart_from_the_address() -> None:
    place = parse_destination("mlflow:https://me:p%40ss@host:5000/mlflow#x")
    assert (place.user, place.password, place.shown) == ("me", "p@ss", "mlflow:https://host:5000/mlflow")
    assert hide_password("see http://me:secret@host/x") == "see http://***@host/x"
