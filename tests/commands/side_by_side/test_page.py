"""`vitdeploy report DIR DIR…`: real artifacts side by side, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import vitdeploy
from tests.cli.conftest import run
from tests.commands.sweep.rows import record
from tests.evidence import timed_bench
from vitdeploy import artifact as artifacts
from vitdeploy.artifact import Artifact
from vitdeploy.commands.side_by_side.folders import load_folders
from vitdeploy.commands.side_by_side.runs import read_runs
from vitdeploy.errors import UsageError


@pytest.fixture
def pair(demo: Callable[..., Artifact], copy: Callable[..., Artifact]) -> tuple[Artifact, Artifact]:
    """One artifact with a bench and a verdict, and one without any."""
    timed = copy(demo(target="onnxruntime"), "timed")
    timed.write_evidence(timed_bench(timed, 2.0))
    vitdeploy.gate(timed, min_speedup=1.2)
    return timed, copy(demo(target="openvino", precision="int8"), "bare")


def test_artifacts_are_listed_with_what_is_missing(pair: tuple[Artifact, Artifact], tmp_path: Path) -> None:
    timed, bare = pair
    ended = run("report", timed.path, bare.path, "-o", tmp_path / "page.html", "--json")
    assert ended.code == 0, ended.err
    answer = json.loads(ended.out)
    first, second = answer["runs"]
    assert (first["verdict"], second["verdict"], answer["verdict"]) == ("pass", "not judged", "not judged")
    assert {gap["name"] for gap in first["missing"]} == {"eval"}
    assert {gap["name"]: gap["fix"] for gap in second["missing"]} == {
        "bench": f"vitdeploy bench {bare.path}",
        "eval": f"vitdeploy eval {bare.path}",
        "gate": f"vitdeploy gate {bare.path}",
    }
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert answer["bytes"] == len(text.encode())
    assert "<mark>" in text
    assert f"vitdeploy bench {bare.path}" in text
    assert run("report", timed.path, bare.path, "-o", tmp_path / "again.html").code == 0
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == text, "the same evidence gives the same page"


def test_figures_are_computed_again_and_forged_ones_are_in_doubt(pair: tuple[Artifact, Artifact]) -> None:
    timed, _ = pair
    file = timed.path / "bench.json"
    bench = json.loads(file.read_text(encoding="utf-8"))
    own = next(one for one in bench["runs"] if one["role"] == "artifact")
    own["p50_ms"] /= 10
    file.write_text(json.dumps(bench), encoding="utf-8")
    (forged,) = read_runs([artifacts.load(timed.path)])
    assert any("bench recomputed" in doubt for doubt in forged.record.doubts)
    assert not forged.record.valid
    assert forged.record.p50_ms == pytest.approx(own["p50_ms"] * 10)


def test_the_same_artifact_twice_is_refused(pair: tuple[Artifact, Artifact], tmp_path: Path) -> None:
    timed, bare = pair
    again = run("report", timed.path, timed.path, "-o", tmp_path / "page.html")
    assert (again.code, again.error) == (1, f"error: {timed.path} is given twice. Give it once.")
    copied = Path(shutil.copytree(bare.path, tmp_path / "copied"))
    with pytest.raises(UsageError, match=r"is the same artifact as .* with the same evidence"):
        load_folders([bare.path, copied])
    assert not (tmp_path / "page.html").exists()


def test_options_for_one_artifact_and_files_of_artifacts_are_refused(pair: tuple[Artifact, Artifact]) -> None:
    timed, bare = pair
    assert "--data is for the page of one artifact" in run("report", timed.path, bare.path, "--data", "x").error
    assert "is a file of the artifact" in run("report", timed.path, bare.path, "-o", bare.path / "manifest.json").error
    with pytest.raises(UsageError, match="evidence is for the page of one artifact"):
        vitdeploy.report(timed, bare, evidence="x")


def test_without_a_place_the_page_is_in_the_current_folder(
    pair: tuple[Artifact, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert vitdeploy.report(*pair) == Path("report.html")
    assert "2 artifacts side by side" in Path("report.html").read_text(encoding="utf-8")


def test_a_sweep_is_its_trials_and_names_those_that_failed(pair: tuple[Artifact, Artifact], tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    for one in (*pair, None):
        name = "broken" if one is None else one.path.name
        folder = sweep / "trials" / name
        folder.mkdir(parents=True)
        facts = {"status": "failed", "step": "export", "reason": "no weights"} if one is None else {}
        (folder / "trial.json").write_text(record(name, **facts).model_dump_json(), encoding="utf-8")
        if one is not None:
            shutil.copytree(one.path, folder / "artifact")
    (sweep / "sweep.json").write_text("{}", encoding="utf-8")
    loaded = load_folders([sweep])
    assert sorted(run.record.name for run in read_runs(loaded.artifacts)) == sorted(p.path.name for p in pair)
    assert loaded.notes == (f"{sweep / 'trials' / 'broken'} failed at export: no weights",)
    (trial,) = load_folders([sweep / "trials" / pair[0].path.name]).artifacts
    assert trial.manifest == pair[0].manifest
    ended = run("report", sweep, "-o", tmp_path / "page.html", "--json")
    assert len(json.loads(ended.out)["runs"]) == 2
