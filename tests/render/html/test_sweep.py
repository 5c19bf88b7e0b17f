"""The page of a sweep: what it draws, what it does not join, and what its filters do in a browser."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands.sweep.rows import MIB, record
from tests.render.html.chromium import DESK, PHONE, Browser, browser, find
from vitdeploy.evidence import Sweep, SweepEstimate, SweepFailure, TrialRecord
from vitdeploy.measure.front import compare, describe_comparison
from vitdeploy.render.html.sweep import compose_sweep, render_sweep

HOSTILE = '<script>alert("x")</script>'


def trial(name: str, speedup: float, deployed: float, **facts: object) -> TrialRecord:
    interval = (0.95 * speedup, 1.05 * speedup)
    return record(
        name, speedup=speedup, speedup_ci95=interval, deployed=deployed, drop=90.0 - deployed,
        drop_ci95=(89.8 - deployed, 90.2 - deployed), **facts,
    )  # fmt: skip


RECORDS = [
    trial("exact", 1.25, 90.0, size_bytes=40 * MIB, precision="fp32"),
    trial("fast", 4.0, 88.0, size_bytes=10 * MIB),
    trial("between", 2.0, 89.0, size_bytes=20 * MIB),
    trial("beaten", 1.5, 88.5, size_bytes=10 * MIB, limits={"max_drop_pp": 1.0}, verdict="fail", failing=("drop: 1",)),
    trial("doubtful", 8.0, 89.9, doubts=(f"latency: {HOSTILE}",)),
    trial("there", 3.0, 89.5, machine="m2"),
    trial("there too", 3.5, 89.2, machine="m2"),
    record(
        "bad", status="failed", step="export", reason=HOSTILE, fix="Fix it.", deployed=None, drop=None, p50_ms=None,
        speedup=None, size_bytes=None, memory_bytes=None, sites=None,
    ),
]  # fmt: skip


def make_sweep(records: list[TrialRecord]) -> Sweep:
    rows = compare(records)
    failures = [SweepFailure(step=r.step, reason=r.reason, fix=r.fix, trials=(r.name,)) for r in rows if r.reason]
    return Sweep(
        sweep="a-sweep", file="sweep.yaml", counts={"done": 7}, excluded=2, trials=tuple(rows),
        failures=tuple(failures), notes=tuple(describe_comparison(rows)),
        estimate=SweepEstimate(trials=0, seconds=0.0, basis=""),
    )  # fmt: skip


def page(records: list[TrialRecord] | None = None) -> str:
    return render_sweep(make_sweep(RECORDS if records is None else records))


def test_points_in_doubt_are_hollow_and_off_the_front() -> None:
    text = page()
    wide = text.partition('<div class="wide">')[2].partition('<div class="narrow">')[0]
    kinds = {}
    for name in ("exact", "fast", "between", "beaten", "doubtful"):
        mark = re.search(rf'<g class="point s1" data-name="{name}".*?<g class="badge (\w+)"', wide)
        assert mark is not None, name
        kinds[name] = mark[1]
    assert kinds == {"exact": "on", "fast": "on", "between": "on", "beaten": "off", "doubtful": "doubt"}


def test_other_machines_are_not_joined() -> None:
    wide = page().partition('<div class="wide">')[2].partition('<div class="narrow">')[0]
    lines = re.findall(r'<path d="(M[^"]*)" class="frontier" data-group="(\d)"', wide)
    assert [group for _, group in lines] == ["1", "2"]
    assert [line.count("L") for line, _ in lines] == [4, 2], "steps: two corners for each further point"
    assert "2 groups are not compared with each other" in page()


def test_what_others_wrote_is_text() -> None:
    text = page()
    assert HOSTILE not in text
    assert text.count("<script>") == 1
    script = text.partition("<script>")[2].partition("</script>")[0]
    allowed = re.search(r"script-src 'sha256-([^']+)'", text)
    assert allowed is not None
    assert base64.b64decode(allowed[1]) == hashlib.sha256(script.encode()).digest()
    assert "default-src 'none'" in text
    assert not re.search(r'(?:src|href)="(?!#)', text), "nothing is fetched"


def test_failures_and_limits_are_named() -> None:
    text = page()
    assert "Fix it." in text
    assert 'placeholder="limit 1"' in text
    assert "beyond the limits" in text


def test_each_trial_has_its_place_and_its_verdict() -> None:
    """Without data nothing is compared, and the front is about two figures, not about the limits."""
    limits = {"limits": {"max_drop_pp": 1.0}}
    records = [
        record("no data", deployed=None, drop=None, drop_ci95=None),
        trial("on the front", 4.0, 88.0, verdict="fail", failing=("drop: 2 is above 1",), **limits),
        trial("exact", 2.0, 90.0, verdict="pass", **limits),
        trial("slow", 1.5, 89.0, verdict="invalid", failing=("drop: may be up to 1.2",), **limits),
        trial("unlimited", 1.2, 89.0),
        trial("doubtful", 8.0, 89.9, doubts=("latency: busy",), verdict="invalid", **limits),
    ]
    rows = compose_sweep(make_sweep(records)).rows
    assert {row.name: row.states for row in rows} == {
        "no data": ("not compared",),
        "on the front": ("front", "beyond the limits"),
        "exact": ("front", "within the limits"),
        "slow": ("beaten", "not decided"),
        "unlimited": ("beaten",),
        "doubtful": ("in doubt", "not decided"),
    }
    assert rows[1].why == "drop: 2 is above 1"
    text = page(records)
    assert '<b class="front">front</b><b class="beyond-the-limits">beyond the limits</b>' in text
    assert '<b class="not-compared">not compared</b>' in text


def test_a_sweep_without_any_figure_has_a_page() -> None:
    assert "no trial has both an accuracy and a latency" in page([RECORDS[-1]])


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    if find() is None:
        pytest.skip("no Chromium on PATH: apt-get install chromium")
    with browser() as found:
        yield found


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "sweep.html").write_text(page(), encoding="utf-8")
    return tmp_path / "sweep.html"


@pytest.mark.parametrize("width", [320, PHONE, DESK])
def test_nothing_is_wider_than_the_screen(chromium: Browser, file: Path, width: int) -> None:
    chromium.requests.clear()
    chromium.complaints.clear()
    chromium.open(file, width=width)
    assert chromium.evaluate("document.documentElement.scrollWidth") <= width
    outside = """[...document.querySelectorAll('svg text')].filter(e => e.getClientRects().length &&
        (e.getBoundingClientRect().right > innerWidth || e.getBoundingClientRect().left < 0)).map(e => e.textContent)"""
    assert chromium.evaluate(outside) == []
    assert chromium.requests == [file.as_uri()]
    assert chromium.complaints == []


SHOWN = "[...document.querySelectorAll('tr[data-name]:not(.hidden)')].map(e => e.dataset.name)"
FRONT = "[...document.querySelectorAll('.wide .frontier')].map(e => e.getAttribute('d').split('H').length - 1)"


def fill(chromium: Browser, selector: str, value: str) -> None:
    chromium.evaluate(
        f"(() => {{ const field = document.querySelector('{selector}'); field.value = '{value}';"
        "field.dispatchEvent(new Event('input', {bubbles: true})); })()"
    )


def test_filters_hide_trials_and_draw_the_front_of_the_rest(chromium: Browser, file: Path) -> None:
    chromium.open(file, width=DESK)
    assert len(chromium.evaluate(SHOWN)) == 8
    before = chromium.evaluate("[...document.querySelectorAll('.wide .frontier')].map(e => e.getTotalLength())")
    fill(chromium, "input[data-figure=size]", "15")
    assert chromium.evaluate(SHOWN) == ["fast", "beaten", "doubtful", "there", "there too"]
    assert chromium.evaluate("document.getElementById('shown').textContent") == "5 of 8 trials"
    assert chromium.evaluate(FRONT) == [1, 1], "beaten by a larger one only, which is hidden: it is on the front now"
    fill(chromium, "input[data-figure=drop]", "1.6")
    assert chromium.evaluate(SHOWN) == ["beaten", "doubtful", "there", "there too"]
    fill(chromium, "input[data-figure=speedup]", "3.2")
    assert chromium.evaluate(SHOWN) == ["doubtful", "there too"]
    chromium.evaluate("document.getElementById('filters').reset()")
    chromium.evaluate("new Promise(done => setTimeout(done, 20))")
    assert len(chromium.evaluate(SHOWN)) == 8
    after = chromium.evaluate("[...document.querySelectorAll('.wide .frontier')].map(e => e.getTotalLength())")
    assert after == pytest.approx(before, abs=0.5), "the script draws what the page had"
    fill(chromium, "select[data-axis=precision]", "between")
    assert chromium.evaluate(SHOWN) == ["between"]
