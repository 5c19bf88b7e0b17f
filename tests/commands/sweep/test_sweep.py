"""Real sweeps of the demo: what is done once stays done, whatever ends the process, and failures have reasons."""

from __future__ import annotations

import csv
import errno
import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import run, start
from tests.commands.sweep.running import BASE, Steps, go, write
from tests.conftest import shared_folder
from vitdeploy import artifact as artifacts
from vitdeploy.commands.sweep import trial as trials
from vitdeploy.commands.sweep import work as working
from vitdeploy.commands.sweep.store import SweepFolder
from vitdeploy.errors import ArtifactError, UsageError
from vitdeploy.evidence import Bench, Eval, Gate, Sweep

pytestmark = pytest.mark.slow

MATRIX = """
matrix:
  model: [demo:digits, {spec: demo:digits, weights: nowhere.safetensors}]
  target: [onnxruntime, openvino]
  precision: [fp32, int8]
exclude:
  - {target: openvino, precision: int8}
limits: {max_drop_pp: 50}
"""
PATIENCE_S = 300


def states(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file below a folder, with what changes if it is written again."""
    return {
        str(path.relative_to(folder)): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*")) if path.is_file()
    }  # fmt: skip


def same_facts(result: Sweep) -> dict[str, tuple[object, ...]]:
    """What does not depend on time: name -> status, accuracy, size and fusion."""
    return {
        row.name: (row.status, row.deployed, row.drop, row.agreement, row.size_bytes, row.fused, row.reason)
        for row in result.trials
    }


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Sweep, Steps]:
    """The file, the result and the steps of a whole sweep. Not to be changed: take a copy."""
    folder = shared_folder(tmp_path_factory) / f"sweep-{time.time_ns()}"
    file = write(folder, BASE + MATRIX)
    result, steps = go(file, folder / "out")
    return file, result, steps


@pytest.fixture
def copied(swept: tuple[Path, Sweep, Steps], tmp_path: Path) -> tuple[Path, Path]:
    """The file and a copy of the folder, which a test may change."""
    return swept[0], Path(shutil.copytree(swept[0].parent / "out", tmp_path / "copy"))


def test_each_trial_has_its_artifact_its_evidence_and_its_figures(swept: tuple[Path, Sweep, Steps]) -> None:
    _, result, _ = swept
    done = [row for row in result.trials if row.status == "done"]
    assert [(row.target, row.precision) for row in done] == [
        ("onnxruntime", "fp32"), ("onnxruntime", "int8"), ("openvino", "fp32"),
    ]  # fmt: skip
    assert len({row.model_digest for row in done}) == len({row.group for row in done}) == 1
    for row in done:
        artifact = artifacts.load(Path(result.sweep) / row.artifact)
        bench, evaluation, gate = (artifact.read_evidence(kind)[0] for kind in (Bench, Eval, Gate))
        assert isinstance(bench, Bench)
        assert isinstance(evaluation, Eval)
        assert isinstance(gate, Gate)
        assert bench.own is not None
        assert (bench.own.p50_ms, evaluation.metrics["top1"].drop) == (row.p50_ms, row.drop)
        assert (gate.verdict, dict(gate.limits)) == (row.verdict, {"max_drop_pp": 50.0})
        assert row.size_bytes == artifact.manifest.deployed_bytes
        assert artifact.manifest.recipe.target.kind == row.target
        assert row.latency_ms is not None
        assert row.basis == "speed-up"
    assert [row.drop for row in done if row.precision == "fp32"] == [0, 0]
    assert {row.sites for row in done} == {4}


def test_the_reference_answers_once_for_all_trials_of_a_model(swept: tuple[Path, Sweep, Steps]) -> None:
    _, result, steps = swept
    assert steps.titles.count("Answer demo:digits") == 1
    assert steps.titles.count("Evaluate on demo:digits") == 3
    assert len(list((Path(result.sweep) / "references").iterdir())) == 1


def test_what_always_fails_is_tried_and_reported_once(swept: tuple[Path, Sweep, Steps]) -> None:
    _, result, steps = swept
    failed = [row for row in result.trials if row.status == "failed"]
    assert len(failed) == 3
    assert [row.repeats for row in failed] == ["", *[failed[0].name] * 2]
    (failure,) = result.failures
    assert "nowhere.safetensors" in failure.reason
    assert (failure.step, len(failure.trials)) == ("export", 3)
    assert sum(line.startswith("failed at export") for line in steps.lines) == 1
    assert not (Path(result.sweep) / "trials" / failed[0].name / "artifact").exists()


def test_the_results_are_a_table_json_lines_and_a_page(swept: tuple[Path, Sweep, Steps]) -> None:
    _, result, _ = swept
    folder = Path(result.sweep)
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert [line["name"] for line in lines] == [row.name for row in result.trials]
    assert [line["latency_ms"] for line in lines] == [row.latency_ms for row in result.trials]
    with (folder / "results.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["axis.precision"] for row in table] == ["fp32", "int8", "fp32"] * 2
    assert float(table[0]["drop"]) == 0
    assert table[-1]["status"] == "failed"
    page = (folder / "sweep.html").read_text()
    assert all(row.name in page for row in result.trials)


def test_a_second_run_does_nothing_and_has_the_same_result(swept: tuple[Path, Sweep, Steps]) -> None:
    file, result, _ = swept
    before = states(Path(result.sweep) / "trials")
    again, steps = go(file, Path(result.sweep))
    assert steps.titles == []
    assert states(Path(result.sweep) / "trials") == before
    assert same_facts(again) == same_facts(result)
    assert all(row.reused for row in again.trials)
    assert [row.latency_ms for row in again.trials] == [row.latency_ms for row in result.trials]


def test_an_extended_sweep_does_only_what_is_new(copied: tuple[Path, Path], tmp_path: Path) -> None:
    """A value and a limit more: one trial is new, and the others are judged again, not measured again."""
    _, out = copied
    before = states(out / "trials")
    text = BASE + "matrix: {target: [onnxruntime], precision: [int8, int8-dynamic]}\nlimits: {max_drop_pp: 0.0001}\n"
    result, steps = go(write(tmp_path, text), out)
    assert [(row.precision, row.reused) for row in result.trials] == [("int8", True), ("int8-dynamic", False)]
    assert steps.titles.count("Time the sessions in turns") == 1
    old = result.trials[0]
    assert dict(old.limits) == {"max_drop_pp": 0.0001}
    assert old.verdict != "pass"
    assert any("drop" in line for line in old.failing)
    after = states(out / "trials")
    changed = {name for name in before if after[name] != before[name]}
    assert changed == {f"trials/{old.name}/{name}"[7:] for name in ("trial.json", "artifact/gate.json")}


def test_failed_trials_are_tried_again_only_if_asked(copied: tuple[Path, Path]) -> None:
    file, out = copied
    result, steps = go(file, out, retry=True)
    assert sum(line.startswith("failed at export") for line in steps.lines) == 1
    assert result.counts == {"done": 3, "failed": 3}
    assert "Time the sessions in turns" not in steps.titles


def test_other_machines_are_shown_beside_and_not_joined(copied: tuple[Path, Path]) -> None:
    """The folder of another machine: its trials have other names, the same setting, and a group of their own."""
    file, out = copied
    for place in sorted((out / "trials").iterdir()):
        record = json.loads((place / "trial.json").read_text())
        if record["status"] == "done" and record["target"] == "onnxruntime":
            name = f"{record['name'][:-4]}beef"
            shutil.copytree(place, out / "trials" / name)
            moved = {**record, "name": name, "machine": "another", "size_bytes": 1, "doubts": []}
            (out / "trials" / name / "trial.json").write_text(json.dumps(moved))
    result, steps = go(file, out)
    assert steps.titles == []
    assert result.counts == {"done": 3, "failed": 3}
    there = [row for row in result.trials if row.machine == "another"]
    assert len(there) == 2
    assert {row.group for row in there} == {2}
    assert any("2 groups" in note for note in result.notes)
    unsure, _ = go(file, out, pick="min size")
    assert unsure.picked is not None
    assert (unsure.picked.value, unsure.picked.notes[0]) == (
        1, "it was measured on another machine; no trial of this one is valid"
    )  # fmt: skip
    make_valid(out)
    sure, _ = go(file, out, pick="min size")
    assert sure.picked is not None
    assert sure.picked.value > 1


def make_valid(out: Path) -> None:
    """Take the doubts of a busy machine out of the records: this is about the choice, not about the figures."""
    for file in (out / "trials").glob("*/trial.json"):
        file.write_text(json.dumps({**json.loads(file.read_text()), "doubts": []}))


def test_pick_copies_the_winner_out(copied: tuple[Path, Path], tmp_path: Path) -> None:
    file, out = copied
    make_valid(out)
    best, _ = go(file, out, pick="min size where target = onnxruntime", to=tmp_path / "best")
    assert best.picked is not None
    chosen = next(row for row in best.trials if row.name == best.picked.trial)
    assert (chosen.target, chosen.precision) == ("onnxruntime", "int8")
    copy = artifacts.load(tmp_path / "best")
    assert copy.digest == artifacts.load(out / chosen.artifact).digest
    assert copy.read_evidence(Bench)[0] is not None
    with pytest.raises(ArtifactError, match="best exists"):
        go(file, out, pick="min size", to=tmp_path / "best")
    for _ in range(2):  # the default place is replaced
        again, _ = go(file, out, pick="min size where drop <= 50")
        assert again.picked is not None
        assert Path(again.picked.path) == out / "picked"
    with pytest.raises(UsageError, match="no valid trial passes"):
        go(file, out, pick="min size where drop < -99")


def test_a_budget_gives_more_time_to_what_may_be_on_the_front(
    copied: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, out = copied
    make_valid(out)
    text = BASE.replace("0.2", "0.4") + "matrix: {target: [onnxruntime, openvino], precision: [fp32]}\n"
    (place,) = (path.parent for path in (out / "trials").glob("*onnxruntime-fp32*/artifact"))
    record = json.loads((place / "trial.json").read_text())
    # Ten times as slow as FP32, for sure: more time would change nothing.
    slow = {**record, "speedup": 0.1, "speedup_ci95": [0.099, 0.101]}
    (place / "trial.json").write_text(json.dumps(slow))
    before = states(out / "trials")
    result, steps = go(write(tmp_path, text), out, budget_s=600.0)
    beaten, best = result.trials
    assert best.bench_seconds == 0.4
    longer = 1 if best.valid else 2  # on a busy machine the longer bench is in doubt, and then it beats nothing
    assert beaten.bench_seconds == (0.2 if best.valid else 0.4)
    assert steps.titles.count("Time the sessions in turns") == longer
    after = states(out / "trials")
    assert {Path(name).name for name in before if after[name] != before[name]} <= {
        "trial.json", "bench.json", "gate.json",
    }  # fmt: skip
    monkeypatch.setattr(working, "SHORT_SECONDS", 0.1)
    spent, _ = go(write(tmp_path, text.replace("[fp32]", "[int8-dynamic]")), out, budget_s=1e-9)
    assert spent.counts == {"pending": 2}
    assert {row.reason for row in spent.trials} == {"the budget was spent before"}


def test_a_full_disk_ends_the_sweep_and_keeps_what_is_done(
    copied: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, out = copied
    before = states(out / "trials")

    def fill(*_: object, **__: object) -> None:
        raise ArtifactError("the disk is full", fix="Free some space.") from OSError(errno.ENOSPC, "No space left")

    monkeypatch.setattr(trials, "run_steps", fill)
    with pytest.raises(ArtifactError, match="full"):
        go(write(tmp_path, BASE + "matrix: {target: [openvino], precision: [int8-dynamic, int8-weights]}\n"), out)
    assert states(out / "trials") == before, "no trial is blamed for it"
    assert [p.name for p in (out / "trials").glob(".*")] == []


def test_an_unexpected_error_is_the_reason_of_its_trial_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stumble(recipe: Any, *_: object, **__: object) -> None:
        raise ZeroDivisionError(f"of {recipe.target.kind}")

    monkeypatch.setattr(trials, "run_steps", stumble)
    result, _ = go(write(tmp_path, BASE + "matrix: {target: [openvino, onnxruntime]}\n"), tmp_path / "out")
    assert [f.reason for f in result.failures] == [
        "unexpected ZeroDivisionError: of openvino", "unexpected ZeroDivisionError: of onnxruntime",
    ]  # fmt: skip


def test_the_folder_must_be_a_sweep_and_free(tmp_path: Path) -> None:
    file = write(tmp_path / "files", BASE + "matrix: {target: [openvino]}\n")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="other exists and is not a sweep"):
        go(file, tmp_path / "other")
    with pytest.raises(UsageError, match="is not a folder"):
        go(file, tmp_path / "other" / "notes.txt")
    with (
        SweepFolder(tmp_path / "out").locked(file),
        pytest.raises(UsageError, match="another process runs a sweep"),
    ):
        go(file, tmp_path / "out")
    with pytest.raises(UsageError, match="--to is the place"):
        go(file, tmp_path / "out", to=tmp_path / "best")


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + PATIENCE_S
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.02)


def test_killed_twice_and_resumed_nothing_is_done_twice(swept: tuple[Path, Sweep, Steps], tmp_path: Path) -> None:
    """Ctrl-C in the first trial, SIGKILL in the second one; then the rest, with the result of an undisturbed sweep."""
    file = write(tmp_path, BASE + "matrix: {target: [onnxruntime], precision: [fp32, int8]}\n")
    out = tmp_path / "digits"

    def is_in_work(kind: str) -> bool:
        return any(out.glob(f"trials/.digits-onnxruntime-{kind}-*.partial-*/work"))

    process = start("sweep", file, "-o", out, "--quiet")
    wait_for(lambda: is_in_work("fp32"), process)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert "interrupted" in said
    assert list((out / "trials").iterdir()) == [], "the trial was taken back"
    process = start("sweep", file, "-o", out, "--quiet")
    wait_for(lambda: is_in_work("int8"), process)
    process.kill()
    process.communicate(timeout=PATIENCE_S)
    (first,) = [path for path in (out / "trials").iterdir() if not path.name.startswith(".")]
    before = states(first)
    assert before
    assert is_in_work("int8"), "it was killed in the middle"
    result, steps = go(file, out)
    assert steps.titles.count("Time the sessions in turns") == 1, "one trial was left"
    assert states(first) == before
    assert [p.name for p in (out / "trials").glob(".*")] == []
    whole = same_facts(swept[1])
    assert {name: facts[:6] for name, facts in same_facts(result).items()} == {
        row.name: whole[row.name][:6] for row in result.trials
    }
    assert [row.reused for row in result.trials] == [True, False]


def test_the_command_lists_what_is_there_and_what_would_run(copied: tuple[Path, Path], tmp_path: Path) -> None:
    _, out = copied
    before = states(out)
    file = write(tmp_path, BASE + "matrix: {target: [openvino], precision: [fp32, int8-dynamic]}\n")
    shown = run("sweep", file, "-o", out, "--dry-run", "--json")
    assert shown.code == 0
    answer = json.loads(shown.out)
    assert (answer["dry_run"], answer["counts"]) == (True, {"done": 1, "pending": 1})
    assert answer["estimate"]["trials"] == 1
    assert answer["estimate"]["seconds"] > 0
    assert "finished trials" in answer["estimate"]["basis"]
    assert states(out) == before
    text = run("sweep", file, "-o", out, "--dry-run").out
    assert "to do: openvino, int8-dynamic" in text
    assert "1 trials to run, about" in text


def test_the_command_without_a_finished_trial_fails(tmp_path: Path) -> None:
    file = write(tmp_path, "recipe: {model: {spec: demo:digits, weights: no.pt}}\nmatrix: {target: [openvino]}\n")
    ended = run("sweep", file, "-o", tmp_path / "out")
    assert ended.code == 1
    assert "failed at export" in ended.out
    assert run("sweep", file, "--budget", "soon").code == 2
    assert run("sweep", file, "--pick", "min latncy").code == 2
    assert "there is no sweep file" in run("sweep", tmp_path / "nowhere.yaml").error
