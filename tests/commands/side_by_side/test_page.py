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
from tests.evidence import evaluation, timed_bench
from vitdeploy import artifact as artifacts
from vitdeploy.artifact import Artifact
from vitdeploy.commands.figures import record_artifact
from vitdeploy.commands.side_by_side.folders import load_folders
from vitdeploy.commands.side_by_side.runs import name_apart, read_runs
from vitdeploy.errors import UsageError
from vitdeploy.frozen import replace
from vitdeploy.measure.front import compare


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


def test_evaluations_of_different_samples_are_apart(
    demo: Callable[..., Artifact], copy: Callable[..., Artifact], tmp_path: Path
) -> None:
    few, every = copy(demo(target="onnxruntime"), "few"), copy(demo(target="openvino", precision="int8"), "every")
    vitdeploy.evaluate(few, data="demo:digits", limit=40)
    vitdeploy.evaluate(every, data="demo:digits")
    for artifact in (few, every):
        artifact.write_evidence(timed_bench(artifact, 2.0))
    ended = run("report", few.path, every.path, "-o", tmp_path / "page.html", "--json")
    answer = json.loads(ended.out)
    assert [group["runs"] for group in answer["groups"]] == [[1], [2]]
    assert answer["groups"][1]["apart"] == "Not compared with group 1: the number of samples differs."
    assert answer["groups"][0]["conditions"]["number of samples"] == "40"


def test_references_of_other_versions_are_apart(pair: tuple[Artifact, Artifact]) -> None:
    records = []
    for artifact, version in zip(pair, ("2.4.1", "2.8.0"), strict=True):
        bench = timed_bench(artifact, 2.0)
        origin = replace(bench.provenance, versions={"torch": version})
        bench = replace(bench, provenance=origin)
        records.append(record_artifact(artifact.path.name, artifact, evaluation(), None, bench))
    assert [one.reference_version for one in records] == ["torch 2.4.1", "torch 2.8.0"]
    assert [one.engine.partition(" ")[0] for one in records] == ["onnxruntime", "openvino"]
    assert [row.group for row in compare(records)] == [1, 2]


def test_the_library_of_each_kind_of_reference_is_recorded(pair: tuple[Artifact, Artifact]) -> None:
    timed, _ = pair
    versions = {"torch": "2.8.0", "onnxruntime-gpu": "1.22.0"}
    expected = {"torch-compile": "torch 2.8.0", "onnxruntime-fp32": "onnxruntime-gpu 1.22.0", "openvino-fp32": ""}
    for name, version in expected.items():
        bench = timed_bench(timed, 2.0, against=name)
        bench = replace(bench, provenance=replace(bench.provenance, versions=versions))
        assert record_artifact("a", timed, None, None, bench).reference_version == version
    assert record_artifact("a", timed, None, None, replace(bench, provenance=None)).reference_version == ""


def test_a_bench_after_the_gate_gives_one_verdict_with_a_remark(
    pair: tuple[Artifact, Artifact], tmp_path: Path
) -> None:
    timed, bare = pair
    timed.write_evidence(timed_bench(timed, 1.1))
    ended = run("report", timed.path, bare.path, "-o", tmp_path / "page.html", "--json")
    answer = json.loads(ended.out)
    assert (answer["runs"][0]["verdict"], answer["verdict"]) == ("fail", "fail"), "1.1 is below the limit of 1.2"
    gaps = {gap["name"]: (gap["missing"], gap["fix"]) for gap in answer["runs"][0]["missing"]}
    assert gaps["gate"] == (
        "out of date: the verdict (pass) was given before the last bench", f"vitdeploy gate {timed.path}"
    )  # fmt: skip
    (row,) = read_runs([artifacts.load(timed.path)])
    assert (row.verdict, row.record.verdict, row.outdated) == ("fail", "fail", True)
    assert ">out of date</b>" in (tmp_path / "page.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (["/a/x", "/a/x/artifact"], ["x", "x/artifact"]),
        (["/s/trials/t1/artifact", "/s/trials/t2/artifact"], ["t1", "t2"]),
        (["/a/x", "/a/x/artifact", "/a/x/artifact/artifact"], ["x", "x/artifact", "artifact/artifact"]),
        (["/deit", "/b/deit"], ["/deit", "b/deit"]),
        (["/artifact", "/b"], ["/artifact", "b"]),
        (["/a/b", "/x/a/b"], ["/a/b", "x/a/b"]),
    ],
)
def test_names_are_the_shortest_that_are_unique(folders: list[str], names: list[str]) -> None:
    assert name_apart([Path(folder) for folder in folders]) == names


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
    samples = run("report", timed.path, bare.path, "-o", bare.path / "eval.samples.npz")
    assert "is a file of the artifact" in samples.error
    with pytest.raises(UsageError, match="evidence is for the page of one artifact"):
        vitdeploy.report(timed, bare, evidence="x")


def test_the_report_of_an_artifact_alone_is_not_replaced(
    pair: tuple[Artifact, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    timed, bare = pair
    own = timed.path / "report.html"
    own.write_text("of timed alone", encoding="utf-8")
    monkeypatch.chdir(timed.path)
    ended = run("report", ".", bare.path)
    assert (ended.code, ended.error) == (1, "error: report.html is the report of . alone. Choose another file with -o.")
    with pytest.raises(UsageError, match="is the report of"):
        vitdeploy.report(timed, bare, output=own)
    assert own.read_text(encoding="utf-8") == "of timed alone"
    assert vitdeploy.report(timed, images=0, output=own) == own, "its own page may be written again"


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
    page = vitdeploy.report(sweep, output=tmp_path / "api.html")
    assert page.read_text(encoding="utf-8") == (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "is a file of the sweep" in run("report", sweep, "-o", sweep / "sweep.json").error
    with pytest.raises(UsageError, match="data is for the page of one artifact"):
        vitdeploy.report(sweep, data="x")
