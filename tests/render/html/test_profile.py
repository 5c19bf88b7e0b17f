"""Profiles by part of the model, and the measured peak."""

import re

from tests.render.html.subjects import bench, subject
from vitdeploy.evidence import OperatorShare, Peak, Profile, Roofline
from vitdeploy.render.html import profile, render
from vitdeploy.render.html.latency import section
from vitdeploy.render.html.page import compose

ROLES = {"qkv": 3.0, "attention": 2.0, "mlp": 8.0, "norm": 0.5, "other": 1.5}
OPERATORS = tuple(OperatorShare(name=f"op.{n}", kind="FullyConnected", role="mlp", ms=0.25) for n in range(60))
PROFILE = Profile(name="openvino-int8", runs=50, total_ms=16.0, roles=ROLES, operators=OPERATORS, between_ms=1.0)
ROOFLINE = Roofline(
    threads=2,
    peaks={"fp32": Peak(gops=312.4, engine="onnxruntime 1"), "int8": Peak(gops=1120.0, engine="openvino 1")},
    operations={"fp32": 0.3e9, "int8": 2.2e9},
)


def test_nothing_profiled_shows_nothing() -> None:
    assert profile.parts(bench()) == ()
    assert [part.kind for part in section(subject()).parts] == ["figure", "figure", "table"]


def test_every_part_of_the_model_has_its_time_and_share() -> None:
    bars, longest = profile.parts(bench(profiles=(PROFILE,)))
    assert bars.kind == "figure"
    for drawn in (bars.wide, bars.narrow):
        for name, share in (
            ("qkv", "18.8 %"),
            ("attention", "12.5 %"),
            ("mlp", "50.0 %"),
            ("between operators", "6.2 %"),
        ):
            assert name in drawn
            assert share in drawn
    assert "openvino-int8 16.0 ms" in bars.caption
    assert longest.kind == "table"
    assert longest.title == "openvino-int8: the 40 longest of 60 operators"
    assert len(longest.rows) == 40


def test_bars_are_as_long_as_their_times() -> None:
    bars = profile.parts(bench(profiles=(PROFILE,)))[0]
    assert bars.kind == "figure"
    widths = [float(w) for w in re.findall(r'<rect[^>]* width="([0-9.]+)"', bars.wide)]
    assert len(widths) == len(ROLES) + 1
    assert abs(widths[2] / widths[0] - 8 / 3) < 0.01


def test_a_side_has_the_colour_that_it_has_in_the_distributions() -> None:
    other = PROFILE.model_copy(update={"name": "pytorch-fp32"})
    bars = profile.parts(bench(profiles=(PROFILE, other)))[0]
    assert bars.kind == "figure"
    assert re.findall(r'class="series (s\d)"', bars.wide)[:2] == ["s1", "s0"]


def test_efficiency_is_explained_by_the_peak() -> None:
    runs = tuple(run.model_copy(update={"efficiency_pct": 61.2}) for run in bench().runs)
    found = section(subject(bench=bench(runs=runs, roofline=ROOFLINE)))
    table = next(part for part in found.parts if part.kind == "table")
    assert [row[table.head.index("of the peak")] for row in table.rows] == ["61 %", "61 %"]
    facts = dict(next(part for part in found.parts if part.kind == "facts").rows)
    assert "fp32 312 (onnxruntime 1), int8 1,120 (openvino 1)" in facts["Peak of 2 threads"]
    assert "fp32 0.300, int8 2.20" in facts["Work of the model"]


def test_names_of_operators_are_inert() -> None:
    crafted = (OPERATORS[0].model_copy(update={"name": "<script>alert(1)</script>"}),)
    hostile = PROFILE.model_copy(update={"operators": crafted})
    page = render(compose(subject(bench=bench(profiles=(hostile,))), None))
    assert "<script" not in page
    assert "&lt;script&gt;" in page
