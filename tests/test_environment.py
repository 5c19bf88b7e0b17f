"""The facts that measurements depend on are read from the host, and named in a stable digest."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from typing import Any

import psutil
import pytest

import vitdeploy
from vitdeploy import environment
from vitdeploy.environment import Host

JETSON = {
    "/proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd asimddp asimdhp aes\nCPU part\t: 0xd42\n",
    "/proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
    "/etc/nv_tegra_release": "# R36 (release), REVISION: 4.7, GCID: 42132812, BOARD: generic, EABI: aarch64\n# more\n",
}


def make(**more: Any) -> Host:
    facts: dict[str, Any] = {
        "cpu": "a",
        "isa": ("avx2",),
        "cores": 2,
        "memory_gib": 4.0,
        "system": "Linux x86_64",
        "python": "3.11.0",
    }
    return Host(**facts | more)


def test_this_host() -> None:
    host = environment.host()
    assert host.cpu
    assert host.python == platform.python_version()
    assert 1 <= host.cores <= (os.cpu_count() or 1)
    assert host.memory_gib == pytest.approx(psutil.virtual_memory().total / 2**30, abs=0.1)
    assert host == environment.host()


def test_cores_are_those_this_process_may_use() -> None:
    cpus = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(cpus)})
        assert environment.available_cores() == 1
    finally:
        os.sched_setaffinity(0, cpus)


@pytest.mark.parametrize(
    ("quota", "cores"), [("150000 100000", 1), ("max 100000", None), ("50000 100000", 1), ("", None)]
)
def test_a_containers_quota_bounds_the_cores(monkeypatch: pytest.MonkeyPatch, quota: str, cores: int | None) -> None:
    monkeypatch.setattr(environment, "_read", {"/sys/fs/cgroup/cpu.max": quota}.__getitem__)
    assert environment.available_cores() == (cores or len(os.sched_getaffinity(0)))


def test_the_machine_is_what_latencies_depend_on() -> None:
    assert make().machine == make(memory_gib=8.0, python="3.12.1").machine
    others = [make(cpu="b"), make(isa=("avx2", "avx_vnni")), make(cores=4), make(gpu="g"), make(jetpack="36.4")]
    assert len({make().machine, *(h.machine for h in others)}) == 1 + len(others)


@pytest.mark.parametrize(
    ("isa", "exact"),
    [
        ((), False),
        (("avx2",), False),
        (("avx2", "avx512f"), False),
        (("avx_vnni",), True),
        (("asimd", "asimddp"), True),
    ],
)
def test_int8_products_accumulate_exactly_with_dot_product_instructions(isa: tuple[str, ...], exact: bool) -> None:
    assert make(isa=isa).int8_dot_product is exact


def test_a_jetson_is_read_from_its_device_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_read", lambda path: JETSON.get(path, ""))
    host = environment.host()
    assert host.cpu == "NVIDIA Jetson Orin Nano Developer Kit"
    assert host.isa == ("asimd", "asimddp", "asimdhp")
    assert host.jetpack == "36.4.7"
    assert host.int8_dot_product


@pytest.mark.parametrize(("release", "shown"), [("", None), ("# R39 (new form)\nmore", "# R39 (new form)")])
def test_an_unknown_release_is_shown_as_it_stands(
    monkeypatch: pytest.MonkeyPatch, release: str, shown: str | None
) -> None:
    monkeypatch.setattr(environment, "_read", lambda path: release if path == "/etc/nv_tegra_release" else "")
    assert environment.host().jetpack == shown


def test_its_own_version_is_that_of_the_code_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The metadata of an editable installation are those of the last installation."""
    monkeypatch.setattr(metadata, "version", lambda name: "0.0.0")
    assert environment.library_versions()["vitdeploy"] == vitdeploy.__version__


def test_versions_are_those_of_the_installed_libraries() -> None:
    versions = environment.library_versions()
    assert versions["numpy"] == metadata.version("numpy")
    assert set(versions) <= {"vitdeploy", *environment.LIBRARIES}
    assert all(versions.values())
