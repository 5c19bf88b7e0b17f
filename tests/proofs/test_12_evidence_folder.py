"""Point 12: an artifact that cannot be written is measured and gated all the same, with `--evidence DIR`."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Ended, run
from vitdeploy import artifact as artifacts
from vitdeploy.artifact import Artifact, temporary
from vitdeploy.errors import ArtifactError
from vitdeploy.evidence import Gate


@pytest.fixture
def read_only(demo: Callable[..., Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An artifact in which nothing can be created, as on a read-only disk; root may write where modes forbid it."""
    folder = tmp_path / "artifact"
    shutil.copytree(demo(target="onnxruntime").path, folder)
    real = temporary.os.open

    def open_elsewhere(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        if flags & temporary.os.O_CREAT and Path(path).resolve().is_relative_to(folder.resolve()):
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        return real(path, flags, *arguments, **options)

    monkeypatch.setattr(temporary.os, "open", open_elsewhere)
    return folder


def succeed(*words: object) -> Ended:
    ended = run(*words)
    assert ended.code == 0, ended.err
    return ended


def test_a_read_only_artifact_is_measured_gated_and_reported(read_only: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in read_only.rglob("*")}
    evidence = tmp_path / "new" / "evidence"
    succeed("eval", read_only, "--evidence", evidence)
    succeed("bench", read_only, "--seconds", "0.5", "--evidence", evidence)
    gate = succeed("gate", read_only, "--min-fused", "100", "--max-drop", "50", "--evidence", evidence, "--json")
    verdict = Gate.model_validate_json(gate.out)
    assert {check.name for check in verdict.checks} >= {"attention fused", "accuracy drop"}
    succeed("inspect", read_only, "--evidence", evidence)  # the audit was made with the artifact
    succeed("report", read_only, "--images", "0", "--evidence", evidence)
    assert {path.name for path in evidence.iterdir()} >= {"bench.json", "eval.json", "gate.json", "report.html"}
    assert json.loads((evidence / "gate.json").read_text())["manifest"] == artifacts.load(read_only).digest
    assert {path: path.stat().st_mtime_ns for path in read_only.rglob("*")} == before


def test_without_it_one_line_names_it(read_only: Path) -> None:
    error = run("gate", read_only, "--min-fused", "100").error
    assert "gate.json cannot be written: Read-only file system" in error
    assert "--evidence DIR" in error


def test_evidence_of_another_artifact_counts_there_no_more_than_here(
    read_only: Path, tmp_path: Path, demo: Callable[..., Artifact]
) -> None:
    evidence = tmp_path / "evidence"
    evidence.mkdir()
    shutil.copy(demo(target="openvino").path / "audit.json", evidence)
    loaded = artifacts.load(read_only)
    from vitdeploy.cli import options
    from vitdeploy.evidence import Audit

    assert loaded.read_evidence(Audit)[0] is not None
    assert options.load_artifact(read_only, evidence).read_evidence(Audit) == (
        None,
        "audit.json is about another manifest",
    )


def test_another_artifact_is_no_folder_for_evidence(read_only: Path, demo: Callable[..., Artifact]) -> None:
    other = demo(target="openvino").path
    assert "is an artifact, and" in run("gate", read_only, "--evidence", other).error
    file = read_only.parent / "file"
    file.touch()
    assert "is a file" in run("gate", read_only, "--evidence", file).error


def test_the_artifacts_own_folder_may_be_named(demo: Callable[..., Artifact]) -> None:
    from vitdeploy.cli import options

    path = demo(target="onnxruntime").path
    assert options.load_artifact(path, path).evidence_folder is None


def test_evidence_is_not_written_about_an_artifact_that_is_gone(read_only: Path, tmp_path: Path) -> None:
    from vitdeploy.cli import options
    from vitdeploy.evidence import Audit

    loaded = options.load_artifact(read_only, tmp_path / "evidence")
    audit, _ = loaded.read_evidence(Audit)
    assert audit is not None
    shutil.rmtree(read_only)
    with pytest.raises(ArtifactError, match="was replaced by another artifact"):
        loaded.write_evidence(audit)
