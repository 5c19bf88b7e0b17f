"""What a sweep does when something goes wrong in it, beside it, or on the disk; no trial is really run here."""

from __future__ import annotations

import errno
import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from tests.cli.conftest import run
from tests.commands.sweep.running import BASE, go, store, write
from vitdeploy.commands.sweep import store as storing
from vitdeploy.commands.sweep import trial as trials
from vitdeploy.commands.sweep import work as working
from vitdeploy.commands.sweep.definition import TrialSpec, read_definition
from vitdeploy.commands.sweep.naming import Naming
from vitdeploy.commands.sweep.store import SweepFolder
from vitdeploy.errors import ArtifactError, SourceError, UsageError
from vitdeploy.recipe import Recipe
from vitdeploy.render import sweep_tables

TWO = BASE + "matrix: {target: [openvino, onnxruntime]}\n"


def read(file: Path) -> tuple[TrialSpec, ...]:
    return read_definition(file, Naming()).trials


def full_disk(*_: object, **__: object) -> None:
    """Fail as `save_reference` does: the partial file is gone, and the cause is hidden."""
    try:
        raise OSError(errno.ENOSPC, "No space left on device")
    except OSError as error:
        raise ArtifactError(f"w.npz cannot be written: {error.strerror}", fix="Choose another file.") from None


def crash(*_: object, **__: object) -> None:
    raise RuntimeError("the engine is broken")


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[Recipe]:
    """The recipes of trials that were begun; all of them fail in the same way."""
    begun: list[Recipe] = []

    def fail(recipe: Recipe, *_: object, on_step: Callable[[str], None], **__: object) -> None:
        begun.append(recipe)
        on_step("export")
        raise ZeroDivisionError("of the model")

    monkeypatch.setattr(trials, "run_steps", fail)
    return begun


def test_a_model_that_fails_with_one_batch_or_task_is_tried_with_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file is run within limits of memory and time, which a batch of 64 may exceed and one of 1 not."""
    begun = []

    def load(recipe: Recipe, *_: object, on_step: Callable[[str], None], **__: object) -> None:
        begun.append((recipe.target.batch.opt, recipe.task.kind, recipe.target.kind))
        on_step("export")
        raise SourceError(f"a batch of {recipe.target.batch.opt} takes too much memory", fix="Use a smaller one.")

    monkeypatch.setattr(trials, "run_steps", load)
    text = BASE + "matrix: {batch: [64, 1], task: [classification, raw], target: [openvino, onnxruntime]}\n"
    result, _ = go(write(tmp_path, text), tmp_path / "out")
    assert begun == [(batch, task, "openvino") for batch in (64, 1) for task in ("classification", "raw")]
    assert [bool(row.repeats) for row in result.trials] == [False, True] * 4, "its other target is not tried"
    assert result.trials[4].reason == "a batch of 1 takes too much memory"


def test_a_process_that_is_killed_first_of_all_leaves_a_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its folders are there, so the mark has to be: or the next run refuses the folder as somebody else's."""
    file, folder = write(tmp_path / "files", TWO), SweepFolder(tmp_path / "out")

    def kill(_: int) -> str:
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(storing, "locks", SimpleNamespace(try_lock=kill))
        with pytest.raises(SystemExit), folder.locked(file):
            pass
    folder.check()
    with monkeypatch.context() as patch:
        other = SweepFolder(tmp_path / "other")
        patch.setattr(SweepFolder, "write", full_disk)
        with pytest.raises(ArtifactError, match="No space left"), other.locked(file):
            pass
    other.check()
    (tmp_path / "third").mkdir()
    (tmp_path / "third" / ".sweep.json.partial-00ff").write_text("{")
    third = SweepFolder(tmp_path / "third")
    third.check()
    (third.path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="is not a sweep"):
        third.check()


def test_a_trial_without_its_record_runs_again(tmp_path: Path, ran: list[Recipe]) -> None:
    """The user deletes trial.json to have a trial done again."""
    file, out = write(tmp_path, TWO), tmp_path / "out"
    first, second = read(file)
    for trial in (first, second):
        store(trial, out)
    (out / "trials" / first.name / "trial.json").unlink()
    result, _ = go(file, out)
    assert [recipe.target.kind for recipe in ran] == ["openvino"]
    assert [row.status for row in result.trials] == ["failed", "done"]


def test_a_full_disk_is_recognized_behind_a_hidden_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, out = write(tmp_path, TWO), tmp_path / "out"
    monkeypatch.setattr(trials, "run_steps", full_disk)
    with pytest.raises(ArtifactError, match="No space left"):
        go(file, out)
    assert list((out / "trials").iterdir()) == [], "no trial is blamed for it"


def plain_full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("work", [full_disk, plain_full_disk])
def test_a_disk_that_fills_while_a_trial_is_judged_ends_the_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, work: Callable[..., None]
) -> None:
    file, out = write(tmp_path, TWO + "limits: {max_drop_pp: 1}\n"), tmp_path / "out"
    for trial in read(file):
        store(trial, out)
    monkeypatch.setattr(working, "judge_again", work)
    with pytest.raises(ArtifactError, match="No space left"):
        go(file, out)


@pytest.mark.parametrize(("facts", "text"), [
    ({"bench_seconds": 0.1}, TWO), ({}, TWO + "limits: {max_drop_pp: 1}\n"),
])  # fmt: skip
def test_an_error_of_an_engine_leaves_a_finished_trial_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, facts: dict[str, Any], text: str
) -> None:
    """A longer bench fails, or a judgement: the others go on, and the page is written."""
    file, out = write(tmp_path, text), tmp_path / "out"
    for trial in read(file):
        store(trial, out, **facts)
    monkeypatch.setattr(working, "lengthen_bench", crash)
    monkeypatch.setattr(working, "judge_again", crash)
    result, steps = go(file, out)
    assert [row.status for row in result.trials] == ["done", "done"]
    reasons = [line for line in steps.lines if "stays as it is: unexpected RuntimeError: the engine is broken" in line]
    assert len(reasons) == 2
    assert (out / "sweep.html").is_file()


def test_a_trial_that_another_process_finished_meanwhile_is_not_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ran: list[Recipe]
) -> None:
    """Its lock is released between the start of this process and its turn."""
    file, out = write(tmp_path, TWO), tmp_path / "out"
    locked = SweepFolder.locked

    @contextmanager
    def lock_after_another(folder: SweepFolder, path: Path) -> Iterator[None]:
        for trial in read(file):
            store(trial, out)
        with locked(folder, path):
            yield

    monkeypatch.setattr(SweepFolder, "locked", lock_after_another)
    result, _ = go(file, out)
    assert ran == []
    assert [row.status for row in result.trials] == ["done", "done"]


def test_a_trial_that_does_not_fit_into_the_budget_is_not_begun(tmp_path: Path, ran: list[Recipe]) -> None:
    text = BASE + "matrix: {target: [openvino, onnxruntime], precision: [fp32, int8]}\n"
    file, out = write(tmp_path, text), tmp_path / "out"
    facts = {"openvino": {"seconds": 100.0}, "onnxruntime": {"seconds": 5.0}}
    for trial in read(file):
        if trial.recipe.precision.kind == "fp32":
            kind = trial.recipe.target.kind
            store(trial, out, target=kind, precision="fp32", **facts[kind])
    result, steps = go(file, out, budget_s=50.0)
    assert ran == [], "52.5 s are expected, the mean of its model's trials"
    waiting = [row for row in result.trials if row.status == "pending"]
    assert [row.target for row in waiting] == ["openvino", "onnxruntime"]
    assert all(re.match(r"it takes about 52 s, and \d\d s of the budget were left", row.reason) for row in waiting)
    assert any("2 trials do not fit into the budget" in line for line in steps.lines)
    go(file, out, budget_s=60.0)
    assert [recipe.target.kind for recipe in ran] == ["openvino", "onnxruntime"]


def test_a_reason_that_trials_share_is_printed_once(tmp_path: Path, ran: list[Recipe]) -> None:
    result, steps = go(write(tmp_path, TWO), tmp_path / "out")
    assert len(ran) == 2
    assert [len(failure.trials) for failure in result.failures] == [2]
    assert sum(line.startswith("failed at export: unexpected ZeroDivisionError") for line in steps.lines) == 1


def test_a_dry_run_estimates_longer_benches_too(tmp_path: Path) -> None:
    file, out = write(tmp_path, TWO.replace("0.2", "20")), tmp_path / "out"
    for trial in read(file):
        store(trial, out, bench_seconds=2.0)
    result, _ = go(file, out, dry_run=True)
    assert (result.estimate.trials, result.estimate.seconds) == (0, 60.0)
    lines = [str(part) for part in sweep_tables.sweep(result)]
    assert "2 longer benches of finished trials to run, about 1 min 0 s" in lines
    nothing, _ = go(write(tmp_path, TWO), out, dry_run=True)
    assert not any("to run" in str(part) for part in sweep_tables.sweep(nothing))


def test_trials_of_another_machine_are_told_apart_and_not_counted(tmp_path: Path, ran: list[Recipe]) -> None:
    file, out = write(tmp_path, TWO), tmp_path / "out"
    first, second = read(file)
    store(first, out)
    for trial in (first, second):
        store(trial.model_copy(update={"name": f"{trial.name}-there"}), out, machine="another")
    result, _ = go(file, out)
    assert len(ran) == 1
    assert result.counts == {"done": 1, "failed": 1}
    shown = io.StringIO()
    Console(width=200, file=shown).print(*sweep_tables.sweep(result))
    text = shown.getvalue()
    assert "1 done, 1 failed (1 finished before, 2 of other machines)" in text
    assert [line.split()[-1] for line in text.splitlines() if line.strip().startswith("openvino")] == ["1", "2"]


@pytest.mark.usefixtures("ran")
def test_a_command_whose_own_trials_fail_fails_beside_those_of_another_machine(tmp_path: Path) -> None:
    text = "recipe: {model: {spec: demo:digits, weights: no.pt}}\nmatrix: {target: [openvino]}\n"
    file, out = write(tmp_path, text), tmp_path / "out"
    for trial in read(file):
        store(trial.model_copy(update={"name": f"{trial.name}-there"}), out, machine="another")
    assert run("sweep", file, "-o", out).code == 1
