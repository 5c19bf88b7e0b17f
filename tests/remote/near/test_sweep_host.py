"""The kind of a host: what it reports, and what hosts.yaml sets for its jobs."""

from __future__ import annotations

import pytest

from vitdeploy.commands.doctor import doctor
from vitdeploy.errors import MeasureError
from vitdeploy.evidence import Availability
from vitdeploy.frozen import replace
from vitdeploy.remote.messages import INTERFACE, ClockSettings, Condition, LockHolder, Probe
from vitdeploy.remote.near.address import Address
from vitdeploy.remote.near.hosts import RemoteHost
from vitdeploy.remote.near.sweep_host import ReachedHost
from vitdeploy.version import __version__


@pytest.fixture(scope="module")
def probe() -> Probe:
    return Probe(
        interface=INTERFACE, version=__version__, python="python3", cache="/c", doctor=doctor(),
        condition=Condition(module="Orin NX"),
    )  # fmt: skip


def host(probe: Probe, **clocks: object) -> ReachedHost:
    remote = RemoteHost("orin", Address("orin"), clocks=ClockSettings.model_validate(clocks))
    return ReachedHost(remote, probe)


def with_host(probe: Probe, **facts: object) -> Probe:
    return replace(probe, doctor=probe.doctor.model_copy(update={"host": probe.doctor.host.model_copy(update=facts)}))


def test_equal_boards_are_of_one_kind_whatever_their_names(probe: Probe) -> None:
    other = ReachedHost(RemoteHost("orin-2", Address("10.0.0.2")), probe)
    assert other.kind == host(probe).kind


@pytest.mark.parametrize("facts", [{"cores": 3}, {"cpu": "another"}, {"memory_gib": 999.0}, {"power_mode": "15W"}])
def test_another_machine_is_another_kind(probe: Probe, facts: dict[str, object]) -> None:
    assert host(with_host(probe, **facts)).kind != host(probe).kind


def test_module_targets_and_clocks_count(probe: Probe) -> None:
    none = {"targets": {name: Availability(available=False) for name in probe.doctor.targets}}
    kinds = [
        host(probe).kind,
        host(replace(probe, condition=Condition(module="Orin Nano"))).kind,
        host(replace(probe, doctor=probe.doctor.model_copy(update=none))).kind,
        host(probe, lock_clocks=True).kind,
        host(probe, power_mode=0).kind,
        host(probe, power_mode=1).kind,
    ]
    assert len(set(kinds)) == len(kinds)


def test_the_mode_of_now_does_not_count_where_jobs_set_another(probe: Probe) -> None:
    now = with_host(probe, power_mode="15W", cores=2)
    assert host(now, power_mode=0).kind == host(probe, power_mode=0).kind


def test_a_host_that_changed_is_refused(probe: Probe) -> None:
    reached = host(probe)
    reached._refuse_change(probe)
    with pytest.raises(MeasureError, match="orin has another machine, other targets or another power mode than when"):
        reached._refuse_change(with_host(probe, cores=3))
    newer = replace(probe, doctor=probe.doctor.model_copy(update={"libraries": {"vitdeploy": "9.9"}}))
    with pytest.raises(MeasureError, match="orin has other versions than when the sweep began"):
        reached._refuse_change(newer)


def test_the_power_mode_of_somebody_elses_job_is_no_change(probe: Probe) -> None:
    busy = replace(with_host(probe, power_mode="15W", cores=2), busy=LockHolder(client="a", words=("bench",), since=0))
    host(probe)._refuse_change(busy)
    with pytest.raises(MeasureError, match="orin has another machine"):
        host(probe)._refuse_change(replace(with_host(busy, cpu="another"), busy=busy.busy))
