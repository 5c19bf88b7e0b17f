"""Public reports of wrong numbers: which versions and graphs they are named for, and where."""

from __future__ import annotations

from itertools import takewhile
from pathlib import Path
from typing import get_args

import pytest

from tests.fakes.compiling import Device, target
from tests.graphs import images
from tests.toys.lowered import eva, lower
from vitdeploy import frozen
from vitdeploy.commands.doctor import doctor
from vitdeploy.graph.risky_forms import find_risky_forms
from vitdeploy.graph.structure import RiskyForm, Structure
from vitdeploy.pipeline.safe_forms import list_safe_forms as list_forms
from vitdeploy.targets._tensorrt.known_faults import (
    FAULTS,
    KnownFault,
    find_faults,
    list_preferred_forms,
    list_safe_forms,
)

ROOT = Path(__file__).parents[3]

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
    two = target().known_faults(structure("detector", "sampled features"))
    all_three = target().known_faults(structure("detector", "sampled features", "instance masks"))
    assert not any("RF-DETR with masks" in line for line in two)
    assert any("RF-DETR with masks" in line for line in all_three)


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


@pytest.mark.parametrize(
    ("release", "form", "expected"),
    [
        ("10.3", "rotary positions", ("baked-positions", "fp32-scores")),
        ("10.16", "rotary positions", ()),
        ("10.3", "float16 decoder", ("fp32-block-0",)),
        ("10.3", "refined maps", ()),
    ],
)
def test_the_safe_forms_that_helped(release: str, form: RiskyForm, expected: tuple[str, ...], device: Device) -> None:
    device(release)
    assert target().reported_safe_forms(structure(form)) == expected


@pytest.mark.parametrize(
    ("release", "form", "expected"),
    [
        ("10.3", "rotary positions", ["baked-positions"]),
        ("10.16", "rotary positions", []),
        ("10.3", "float16 decoder", []),  # a block in FP32 is slower: FP16 is built first, and checked
        ("10.3", "refined maps", []),
    ],
)
def test_the_safe_forms_to_build_first(release: str, form: RiskyForm, expected: list[str], device: Device) -> None:
    device(release)
    assert [*target().preferred_safe_forms(structure(form))] == expected


def test_a_form_to_build_first_names_its_report() -> None:
    faults = find_faults(["separate q, k, v"], release=(10, 13), generation="sm110", takes_batch_one=True)
    [(form, report)] = list_preferred_forms(faults).items()
    assert form == "separate-qkv"
    assert report.startswith(THOR)
    assert report.endswith("(NVIDIA/TensorRT-Edge-LLM#151, NVIDIA/TensorRT-Edge-LLM#105)")
    orin = find_faults(["separate q, k, v"], release=(10, 13), generation="sm87", takes_batch_one=True)
    assert list_preferred_forms(orin) == {}


def test_a_safe_form_that_answers_several_faults_is_named_once() -> None:
    faults = find_faults(get_args(RiskyForm), release=None, generation=None, takes_batch_one=True)
    assert list_safe_forms(faults) == ("baked-positions", "fp32-scores", "separate-qkv", "fp32", "fp32-block-0")


ANSWERS: dict[str, tuple[RiskyForm, ...]] = {
    "baked-positions": ("rotary positions",),
    "separate-qkv": ("separate q, k, v",),
    "fp32": ("float16 norm", "float16 decoder"),
}
"""The safe forms after which a graph no longer has a risky form. Those of scores and blocks change a part."""


def test_a_safe_form_takes_the_form_away_that_it_answers() -> None:
    x = images()
    for fault in FAULTS:
        for name in set(fault.safe_forms) & set(ANSWERS):
            assert fault.forms & set(ANSWERS[name]), name
    graph, plain = lower(eva(), x)
    plain = frozen.replace(plain, risky_forms=find_risky_forms(graph, plain))
    assert {"rotary positions", "separate q, k, v", "float16 norm"} <= set(plain.risky_forms)
    forms = list_forms(graph, plain)
    for name, answered in ANSWERS.items():
        form = forms.find(name)
        assert form is not None
        left = form.rewrite(graph, plain).structure.risky_forms
        assert set(left) == set(plain.risky_forms) - set(answered)


def test_the_table_of_the_documentation_is_this_list() -> None:
    lines = (ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8").splitlines()
    start = lines.index(f"| {' | '.join(COLUMNS)} |") + 2
    rows = list(takewhile(lambda line: line.startswith("|"), lines[start:]))
    assert rows == [table_row(fault) for fault in FAULTS]


COLUMNS = ("what happens", "with", "reports", "what helped", "safe form", "built first", "here")


def table_row(fault: KnownFault) -> str:
    links = ", ".join(
        f"[{report}](https://github.com/{report.replace('#', '/issues/')})" for report in fault.reports
    )  # GitHub leads from the number of an issue to a pull request
    forms, preferred = (", ".join(f"`{form}`" for form in names) for names in (fault.safe_forms, fault.preferred_forms))
    cells = (fault.what, fault.where, links, fault.helped.rstrip(","), forms, preferred, "not reproduced here")
    return f"| {' | '.join(cell or '–' for cell in cells)} |"
