"""Trials for hosts, as a sweep file describes them. No host is reached: see tests/remote/test_sweep.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.commands.sweep.rows import row
from tests.commands.sweep.running import BASE, Steps, store, write
from vitdeploy import environment
from vitdeploy.artifact import Artifact
from vitdeploy.commands.log.describe import describe_trial
from vitdeploy.commands.sweep.budget import expect_seconds
from vitdeploy.commands.sweep.definition import Definition, read_definition
from vitdeploy.commands.sweep.hosts import HostPool
from vitdeploy.commands.sweep.naming import Naming
from vitdeploy.commands.sweep.store import SweepFolder
from vitdeploy.commands.sweep.trial import Tools
from vitdeploy.commands.sweep.work import SweepPlan, SweepWork
from vitdeploy.environment import Host
from vitdeploy.errors import HostUnreachable, UsageError
from vitdeploy.evidence import Bench, Eval
from vitdeploy.progress import Progress
from vitdeploy.recipe import TargetSpec

TEXT = BASE + "matrix: {target: [onnxruntime], host: [here, one, two, other]}\n"


@dataclass(frozen=True)
class Described:
    """What a host reports. It cannot work."""

    name: str
    kind: str = "board"
    versions: Mapping[str, str] = field(default_factory=lambda: {"vitdeploy": "1"})

    @property
    def facts(self) -> Host:
        return environment.host()

    def with_folder(self, folder: Path) -> Described:
        raise NotImplementedError

    def require(self, target: TargetSpec) -> None:
        raise NotImplementedError

    def compile(self, bundle: Artifact, progress: Progress) -> Artifact:
        raise NotImplementedError

    def evaluate(self, artifact: Artifact, reference: Path, progress: Progress) -> Eval:
        raise NotImplementedError

    def bench(self, artifact: Artifact, seconds: float, progress: Progress) -> Bench:
        raise NotImplementedError


def read(folder: Path, text: str = TEXT, **versions: str) -> Definition:
    def find(name: str) -> Described:
        return Described(name, "gateway" if name == "other" else "board", {"vitdeploy": "1", **versions})

    return read_definition(write(folder, text), Naming(), find)


def test_hosts_of_one_kind_share_a_trial(tmp_path: Path) -> None:
    trials = read(tmp_path).trials
    assert [(trial.hosts, trial.axes["host"]) for trial in trials] == [
        ((), "here"), (("one", "two"), "one, two"), (("other",), "other"),
    ]  # fmt: skip
    assert len({trial.name for trial in trials}) == 3
    assert len({trial.setting for trial in trials}) == 1


def test_an_exclude_of_one_host_leaves_the_trial_to_the_others(tmp_path: Path) -> None:
    text = TEXT.replace("[onnxruntime]", "[onnxruntime, openvino]") + "exclude: [{host: one, target: openvino}]\n"
    definition = read(tmp_path, text)
    assert {t.recipe.target.kind: t.hosts for t in definition.trials if "two" in t.hosts} == {
        "onnxruntime": ("one", "two"), "openvino": ("two",),
    }  # fmt: skip
    assert sorted(definition.hosts) == ["one", "other", "two"]


def test_the_name_depends_on_the_kind_and_the_versions_not_on_the_host(tmp_path: Path) -> None:
    [_, first, _] = read(tmp_path).trials
    [_, alone, _] = read(tmp_path, TEXT.replace("one, two", "two")).trials
    [_, newer, _] = read(tmp_path, vitdeploy="2").trials
    assert alone.name == first.name != newer.name


def test_what_a_host_did_before_an_upgrade_is_not_shown_beside_it(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for version in ("1", "2"):
        definition = read(tmp_path, vitdeploy=version)
        for trial in definition.trials[1:]:
            store(trial, out, machine="far")
    folder = SweepFolder(out)
    folder.check()
    work = SweepWork(definition, folder, Tools(Steps()), SweepPlan(), 0.0)
    assert len(work.records) == 4
    assert [row.name for row in work.rows()] == [trial.name for trial in definition.trials]


def test_the_time_of_a_trial_is_expected_from_those_of_its_host(tmp_path: Path) -> None:
    out = tmp_path / "out"
    definition = read(tmp_path, TEXT.replace("[onnxruntime]", "[onnxruntime, openvino]"))
    done, waiting = definition.trials[:3], definition.trials[3:]
    for trial, seconds in zip(done, (10.0, 100.0, 1000.0), strict=True):
        store(trial, out, seconds=seconds)
    records = SweepFolder(out).read_records().values()
    assert [expect_seconds(trial, records, 1.0) for trial in waiting] == [10.0, 100.0, 1000.0]


def test_a_lost_host_gets_no_more_work(tmp_path: Path) -> None:
    definition = read(tmp_path)
    trial = definition.trials[1]
    pool = HostPool(definition.hosts)
    first = pool.find_free(trial.hosts)
    assert first is not None
    assert first.name == "one"
    pool.take(first)
    second = pool.find_free(trial.hosts)
    assert second is not None
    assert second.name == "two"
    pool.lose(first, HostUnreachable("one cannot be reached", fix="Start it."))
    pool.release(first)
    pool.take(second)
    assert pool.find_free(trial.hosts) is None
    assert [host.name for host in pool.list_living(trial.hosts)] == ["two"]
    pool.lose(second, HostUnreachable("two cannot be reached", fix="Start it."))
    assert pool.explain(trial.hosts) == "one cannot be reached; two cannot be reached"


def test_no_host_is_reached_where_none_can_be(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the host one cannot be used here"):
        read_definition(write(tmp_path, TEXT), Naming())


def test_a_log_names_the_host_and_its_versions(tmp_path: Path) -> None:
    [here, there, _] = read(tmp_path).trials
    entries = [
        describe_trial(row(trial.name, axes=dict(trial.axes)), trial.recipe, "s", tmp_path, {"torch": "2"}, versions)
        for trial, versions in ((here, {}), (there, {"vitdeploy": "1"}))
    ]
    assert "host" not in entries[0].parameters
    assert entries[1].parameters["host"] == "one, two"
    assert entries[1].parameters["host.version.vitdeploy"] == "1"
    assert all(entry.parameters["version.torch"] == "2" for entry in entries), "that of the machine that exports"
