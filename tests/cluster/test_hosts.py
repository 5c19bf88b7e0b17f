"""Sweeps on nodes whose trials hosts finish, each over a real sshd to a vitdeploy without torch."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import start
from tests.commands.sweep.running import BASE, go, write
from tests.remote.conftest import wait_until, when, working
from tests.remote.cutter import Wire
from tests.remote.far import Far
from vitdeploy import artifact as artifacts
from vitdeploy.evidence import Bench, Eval
from vitdeploy.progress import Silent
from vitdeploy.remote.near.sweep_host import ReachedHost, connect_host

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("near", "cluster")]

TAIL = "cluster: {memory_gib: 1}\n"


def find_host(name: str) -> ReachedHost:
    return connect_host(name, Silent())


def test_hosts_finish_what_nodes_export_and_one_that_is_lost_costs_nothing(
    far: Far, named: Callable[[str], None], tmp_path: Path
) -> None:
    first = Far(far.port, far.venv, tmp_path / "one", far.folder)
    with Wire(far.port) as wire:
        named(json.dumps({
            "nano-1": {"url": far.through(wire.port), "cache": str(tmp_path / "one")},
            "nano-2": {"url": far.url, "cache": str(tmp_path / "two")},
        }))  # fmt: skip

        def lose() -> None:
            wire.then_to(1)
            wire.cut()

        losing = when(lambda: working(first), lose)
        text = "matrix: {precision: [fp32, int8], host: [nano-1, nano-2, here]}\nlimits: {max_drop_pp: 50}\n"
        text += "exclude: [{host: here, precision: fp32}]\n"
        base = BASE.replace("bench", "target: onnxruntime, bench")
        result, steps = go(write(tmp_path, base + text + TAIL), tmp_path / "out", ray="auto", find_host=find_host)
        losing.join()
    assert result.counts == {"done": 3}, (result.failures, steps.lines)
    [line] = [line for line in steps.lines if "the sweep goes on without nano-1" in line]
    assert "nano-1 cannot be reached" in line
    there = [row for row in result.trials if row.axes["host"] != "here"]
    assert [row.axes["host"] for row in there] == ["nano-1, nano-2"] * 2, "they are of one kind"
    for row in there:
        assert row.exported is not None
        assert row.timed is not None
        assert row.timed.node == "nano-2"
        assert row.exported.node not in ("nano-1", "nano-2")
        loaded = artifacts.load(tmp_path / "out" / row.artifact)
        evaluation, timing = loaded.read_evidence(Eval)[0], loaded.read_evidence(Bench)[0]
        assert evaluation is not None
        assert timing is not None
        assert evaluation.manifest == timing.manifest == loaded.digest
    assert there[0].timed.ended <= there[1].timed.began or there[1].timed.ended <= there[0].timed.began  # type: ignore[union-attr]
    int8 = {row.axes["host"]: row for row in result.trials if row.precision == "int8"}
    assert int8["here"].drop == int8["nano-1, nano-2"].drop
    assert len(list((tmp_path / "out" / "references").iterdir())) == 1


def test_ctrl_c_ends_the_job_on_the_host_too(lab: Callable[..., Far], ray_nodes: Any, tmp_path: Path) -> None:
    there = lab()
    text = BASE.replace("0.2", "60") + "matrix: {target: [onnxruntime], host: [lab]}\n" + TAIL
    process = start("sweep", write(tmp_path, text), "-o", tmp_path / "out", "--quiet", "--ray", ray_nodes.address)
    try:
        wait_until(lambda: (len(there.jobs()) == 3 and working(there)) or process.poll() is not None, "it is timed")
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 130, said
    [ended] = [job / "ended.json" for job in there.jobs() if "bench" in (job / "job.json").read_text()]
    assert json.loads(ended.read_text())["code"] == 130
    assert list((tmp_path / "out" / "trials").glob("*")) == []
