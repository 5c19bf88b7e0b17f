"""The parts of trials on a cluster that changes or refuses work; nothing runs on a node here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.commands.sweep.running import BASE, Steps, write
from tests.commands.sweep.test_places import HERE, node
from vitdeploy.artifact.parcel import Parcel
from vitdeploy.cluster import Cluster, NodeCall, NodeRequest, running
from vitdeploy.commands.sweep.definition import ClusterSpec, read_definition
from vitdeploy.commands.sweep.naming import Naming
from vitdeploy.commands.sweep.on_cluster import ClusterRun
from vitdeploy.commands.sweep.on_node import Delivery
from vitdeploy.commands.sweep.parts_out import PartsOut
from vitdeploy.commands.sweep.places import choose_places
from vitdeploy.commands.sweep.postponed import Postponed
from vitdeploy.commands.sweep.record import describe_trial
from vitdeploy.commands.sweep.store import SweepFolder
from vitdeploy.commands.sweep.trial import RECORD, Ended, Tools
from vitdeploy.commands.sweep.work import SweepPlan, SweepWork

NODES = (node("small", cpus=2), node("large", cpus=8))


class Scripted(Cluster):
    """A cluster on which each call ends at once. Its result is that of a function of the test."""

    def __init__(self, answer: Callable[[str], Any]) -> None:
        super().__init__(NODES)
        self.answer = answer
        self.sent: list[str] = []
        self.ended: list[NodeCall[Any]] = []

    def alive(self) -> tuple[Any, ...]:
        return self.nodes

    def share(self, value: object) -> Any:
        return value

    def start(self, function: Callable[..., Any], *arguments: object, request: NodeRequest) -> NodeCall[Any]:
        self.sent.append(function.__name__)
        answer = self.answer(function.__name__)
        return NodeCall(answer, request)

    def wait(self, calls: Sequence[NodeCall[Any]]) -> list[NodeCall[Any]]:
        return list(calls)

    def collect(self, call: NodeCall[Any]) -> Any:
        return call.ref

    def cancel(self, calls: Iterable[NodeCall[Any]]) -> None:
        self.ended += calls

    def interrupt(self, calls: Sequence[NodeCall[Any]], patience_s: float) -> None:
        self.ended += calls


def open_work(folder: Path) -> SweepWork:
    file, out = write(folder, BASE + "matrix: {target: [onnxruntime]}\n"), SweepFolder(folder / "out")
    naming = Naming()
    with out.locked(file):
        return SweepWork(read_definition(file, naming), out, Tools(Steps(), naming), SweepPlan(), 0.0)


def test_nothing_begins_that_no_node_could_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = PartsOut(open_work(tmp_path), Cluster(NODES), choose_places(NODES, HERE.machine, ClusterSpec()))
    living = ["small", "large"]
    monkeypatch.setattr(running, "list_alive", lambda: [{"NodeID": name} for name in living])
    assert (parts.count_free(), parts.count_free_nodes()) == (5, 1)
    living.remove("large")
    assert (parts.count_free(), parts.count_free_nodes()) == (0, 0)


def test_a_part_that_cannot_begin_ends_those_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The evaluation is split in two. The second part is refused, so that the trial fails, and the first part ends."""
    work = open_work(tmp_path)
    (trial,) = work.definition.trials
    monkeypatch.setattr(Postponed, "split", lambda *_: ["first", "second"])

    def answer(name: str) -> Delivery | str:
        if name == "prepare":
            return Delivery(Ended(describe_trial(trial, "done"), postponed=Postponed(4000, 1)), Parcel({}, {}), {}, ())
        if cluster.sent.count(name) == 2:
            raise ValueError("the second part is too large to be sent")
        return "the first part runs"

    cluster = Scripted(answer)
    ClusterRun(work, cluster, choose_places(NODES, HERE.machine, ClusterSpec())).run()
    assert cluster.sent == ["prepare", "answer_part", "answer_part"]
    assert [call.ref for call in cluster.ended] == ["the first part runs"]
    assert work.records[trial.name].status == "failed"
    assert (work.folder.path / "trials" / trial.name / RECORD).is_file()
