"""Public reports of wrong numbers: which versions and graphs they are named for, and where."""

from __future__ import annotations

from typing import get_args

import pytest

from tests.fakes.compiling import Device, target
from vitdeploy.commands.doctor import doctor
from vitdeploy.graph.structure import RiskyForm, Structure
from vitdeploy.targets._tensorrt.known_faults import FAULTS, find_faults

ROTARY, THOR = "rotary positions give wrong numbers", "q, k and v of one attention are mixed up"


def structure(*forms: RiskyForm) -> Structure:
    return Structure(attention=(), linears=(), norms=(), risky_forms=forms)


@pytest.mark.parametrize(("release", "is_named"), [("10.3", True), ("10.16", False), ("11.4", False)])
def test_by_the_installed_version(release: str, device: Device, *, is_named: bool) -> None:
    device(release)
    lines = target().known_faults(structure("rotary positions"))
    assert [line.startswith(ROTARY) for line in lines] == [True] * is_named
    for line in lines:
        assert line.endswith("; not reproduced here")
        assert "NVIDIA/TensorRT#4742" in line


def test_without_a_library_every_version_counts() -> None:
    assert [line.startswith(ROTARY) for line in target().known_faults(structure("rotary positions"))] == [True]
    assert target().known_faults(structure()) == ()
    assert target().known_faults() == (), "nothing is reported of what is not installed"


def test_all_forms_of_a_fault_have_to_be_there() -> None:
    one = target().known_faults(structure("detector"))
    both = target().known_faults(structure("detector", "sampled features"))
    assert not any("RT-DETR loses" in line for line in one)
    assert any("RT-DETR loses" in line for line in both)


@pytest.mark.parametrize(
    ("release", "generation", "takes_batch_one", "is_named"),
    [
        ((10, 13, 3, 9), "sm110", True, True),
        ((10, 13, 3, 9), "sm110", False, False),
        ((10, 13, 3, 9), "sm87", True, False),
        ((10, 14), "sm110", True, False),
        ((10, 12), "sm110", True, False),
        (None, None, True, True),
    ],
)
def test_by_device_and_batch(
    release: tuple[int, ...] | None, generation: str | None, *, takes_batch_one: bool, is_named: bool
) -> None:
    faults = find_faults(["separate q, k, v"], release=release, generation=generation, takes_batch_one=takes_batch_one)
    assert any(fault.what.startswith(THOR) for fault in faults) is is_named


def test_every_form_is_read_by_a_fault() -> None:
    assert {form for fault in FAULTS for form in fault.forms} == set(get_args(RiskyForm))


def test_the_doctor_lists_what_is_reported_of_an_installed_version(device: Device) -> None:
    device("10.3")
    named = doctor().known_faults
    assert set(named) == {"tensorrt"}
    assert any(line.startswith(ROTARY) for line in named["tensorrt"])
    device("11.4")
    assert not any(line.startswith(ROTARY) for line in doctor().known_faults.get("tensorrt", ()))
