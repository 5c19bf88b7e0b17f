"""Images that are none are named before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from vitdeploy.commands import predict
from vitdeploy.errors import DataError


class Opened:
    """Stands for an artifact and for its session."""

    manifest = None

    def close(self) -> None:
        """Nothing to free."""


def test_a_folder_is_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict.artifacts, "load", lambda path: Opened())
    monkeypatch.setattr(predict, "open_session", lambda artifact, threads: Opened())
    with (
        predict.Deployed("artifact") as deployed,
        pytest.raises(DataError, match="is a folder, not an image") as caught,
    ):
        deployed.predict([tmp_path])
    assert caught.value.fix == f"Give its files: {tmp_path}/*"
