"""Sweeps with hosts: exported here; compiled, evaluated and timed on a vitdeploy without torch behind a real sshd."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Ended, run, start
from tests.cli.test_contract import answer
from tests.commands.sweep.running import BASE, write
from tests.remote.conftest import wait_until, when, working
from tests.remote.cutter import Wire
from tests.remote.far import Far
from vitdeploy import artifact as artifacts
from vitdeploy.evidence import Audit, Bench, Eval, TrialRecord
from vitdeploy.remote.near import ssh

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("near")]

ONE = "matrix: {target: [onnxruntime], precision: [fp32], host: [lab]}\n"


def sweep(folder: Path, text: str, *, base: str = BASE) -> Ended:
    return run("sweep", write(folder, base + text), "-o", folder / "out", "--json")


def read_files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in (folder / "out" / "trials").rglob("*") if path.is_file()}


def read_record(folder: Path, row: dict[str, Any]) -> TrialRecord:
    return TrialRecord.model_validate_json((folder / "out" / "trials" / row["name"] / "trial.json").read_bytes())


def test_trials_are_exported_here_and_finished_on_their_host(lab: Callable[..., Far], tmp_path: Path) -> None:
    far = lab()
    text = "matrix: {target: [onnxruntime], precision: [int8], host: [here, lab]}\nlimits: {max_drop_pp: 50}\n"
    result = answer(sweep(tmp_path, text))
    assert result["counts"] == {"done": 2}, result["failures"]
    here, there = result["trials"]
    assert here["setting"] == there["setting"]
    assert here["name"] != there["name"]
    assert (here["drop"], here["deployed"], here["samples"]) == (there["drop"], there["deployed"], there["samples"])
    assert here["data_digest"] == there["data_digest"]
    assert here["basis"] == "speed-up"
    assert there["basis"] == "p50", "the host has no PyTorch to be compared with"
    assert here["group"] != there["group"]
    assert there["verdict"] in ("pass", "invalid")
    record = read_record(tmp_path, there)
    assert record.timed is not None and record.exported is not None
    assert record.timed.node == "lab"
    assert record.exported.node != "lab"
    assert record.exported.ended <= record.timed.began
    assert record.timed.boot != record.exported.boot
    loaded = artifacts.load(tmp_path / "out" / there["artifact"])
    for kind in (Audit, Bench, Eval):
        evidence, reason = loaded.read_evidence(kind)
        assert evidence is not None, reason
        assert evidence.manifest == loaded.digest
        assert evidence.provenance is not None
        assert "torch" not in evidence.provenance.versions, "it was made there"
    assert len(list((tmp_path / "out" / "references").iterdir())) == 1, "the reference answers once, for both places"

    before, jobs = read_files(tmp_path), far.jobs()
    again = answer(sweep(tmp_path, text))
    assert all(row["reused"] for row in again["trials"])
    judged = answer(sweep(tmp_path, text.replace("max_drop_pp: 50", "max_size_mib: 0.001")))
    assert {row["verdict"] for row in judged["trials"]} == {"fail"}
    assert far.jobs() == jobs, "nothing ran there again"
    changed = {path.name for path, contents in read_files(tmp_path).items() if before[path] != contents}
    assert changed == {"trial.json", "gate.json"}

    longer = answer(sweep(tmp_path, text, base=BASE.replace("0.2", "0.3")))
    assert {(row["bench_seconds"], row["axes"]["host"]) for row in longer["trials"]} == {(0.3, "here"), (0.3, "lab")}
    assert len(far.jobs()) == len(jobs) + 1, "it was timed there again, and nothing else"


def test_hosts_of_one_kind_share_trials_and_the_others_go_on_when_one_is_lost(
    far: Far, wire: Wire, named: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh, "PATIENCE_S", 0.5)
    caches = [str(tmp_path / name) for name in ("one", "two")]
    named(json.dumps({
        "nano-1": {"url": far.through(wire.port), "cache": caches[0]}, "nano-2": {"url": far.url, "cache": caches[1]},
    }))  # fmt: skip
    first = Far(far.port, far.venv, tmp_path / "one", far.folder)

    def lose() -> None:
        wire.then_to(1)
        wire.cut()

    losing = when(lambda: working(first), lose)
    ended = sweep(tmp_path, ONE.replace("lab", "nano-1, nano-2"))
    losing.join()
    result = answer(ended)
    assert "; the sweep goes on without nano-1" in ended.err
    [row] = result["trials"]
    assert row["status"] == "done", result["failures"]
    assert row["axes"]["host"] == "nano-1, nano-2"
    timed = read_record(tmp_path, row).timed
    assert timed is not None
    assert timed.node == "nano-2"


def test_a_trial_whose_host_is_lost_stays_pending_and_the_same_command_goes_on(
    lab: Callable[..., Far], wire: Wire, far: Far, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh, "PATIENCE_S", 0.5)
    there = lab(port=wire.port)
    text = ONE.replace("[lab]", "[here, lab]")

    def lose() -> None:
        wire.then_to(1)
        wire.cut()

    losing = when(lambda: working(there), lose)
    ended = sweep(tmp_path, text)
    losing.join()
    result = answer(ended)
    assert result["counts"] == {"done": 1, "pending": 1}
    assert result["trials"][1]["reason"].startswith("lab cannot be reached: ")
    assert "1 trial has no host that answers; the same command goes on" in ended.err
    assert len(list((tmp_path / "out" / "trials").iterdir())) == 1, "nothing half-written"
    wire.then_to(far.port)
    assert answer(sweep(tmp_path, text))["counts"] == {"done": 2}


def test_a_host_that_cannot_do_it_fails_its_trials_before_any_export(lab: Callable[..., Far], tmp_path: Path) -> None:
    lab()
    ended = sweep(tmp_path, ONE.replace("[onnxruntime]", "[tensorrt, onnxruntime]"))
    result = answer(ended)
    assert result["counts"] == {"done": 1, "failed": 1}
    [failure] = result["failures"]
    assert failure["step"] == "export"
    assert failure["reason"] == 'lab cannot compile for tensorrt; it reports: "TensorRT is not installed here"'
    assert ended.err.count("Export to ONNX") + ended.err.count("Load demo:digits") <= 1


@pytest.mark.parametrize(
    ("hosts", "message"),
    [
        ("[3]", "matrix.host has 3, which is no name of a host"),
        ("[null]", "matrix.host has null, which is no name of a host"),
        ("[lap]", "there is no host 'lap' in "),
        ("['ssh://me:secret@lab']", "the host has a password in it"),
        ("['ssh://nobody@127.0.0.1:1']", "ssh://nobody@127.0.0.1:1 cannot be reached"),
    ],
)
def test_hosts_that_cannot_be_used_are_refused_before_anything_runs(
    lab: Callable[..., Far], tmp_path: Path, hosts: str, message: str
) -> None:
    lab()
    ended = sweep(tmp_path, ONE.replace("[lab]", hosts))
    assert ended.code == 1
    assert message in ended.error
    assert "secret" not in ended.err + ended.out
    assert not (tmp_path / "out").exists()


def test_an_interrupt_ends_the_job_on_the_host(lab: Callable[..., Far], tmp_path: Path) -> None:
    there = lab()
    file = write(tmp_path, BASE.replace("0.2", "60") + ONE)
    process = start("sweep", file, "-o", tmp_path / "out")
    try:
        wait_until(lambda: len(there.jobs()) == 3 and working(there), "the bench is at work there")
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 130, said
    assert not working(there)
    assert list((tmp_path / "out" / "trials").glob("*")) == []


def test_a_sweep_that_was_killed_finds_the_job_that_still_runs(lab: Callable[..., Far], tmp_path: Path) -> None:
    there = lab()
    file = write(tmp_path, BASE.replace("0.2", "4") + ONE)
    process = start("sweep", file, "-o", tmp_path / "out")
    try:
        wait_until(lambda: len(there.jobs()) == 3 and working(there), "the bench is at work there")
    finally:
        process.kill()
        process.communicate()
    ended = run("sweep", file, "-o", tmp_path / "out", "--json")
    assert answer(ended)["counts"] == {"done": 1}
    assert "lab already has this job from an earlier run" in ended.err
    assert len(there.jobs()) == 3
