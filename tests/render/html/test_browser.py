"""The page in a browser: on a phone, in the dark theme, printed; it requests nothing and logs no error."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.render.html.chromium import DESK, PHONE, Browser, Media, browser, find
from tests.render.html.subjects import audit, bench, gate, maps, subject
from vitdeploy.render.html import render
from vitdeploy.render.html.page import compose

pytestmark = pytest.mark.skipif(find() is None, reason="no Chromium on PATH: apt-get install chromium")
LONG = "blocks.11.a_module_with_a_long_name.attention"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as found:
        yield found


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A good report, one with nothing in it, and one where everything is bad and long."""
    folder = tmp_path_factory.mktemp("pages")
    doubt = f"the speed-up of {LONG}-{LONG} drifted by 7 % from start to end"
    bad = subject(
        LONG * 2, bench=bench(1.5, doubt), gate=gate("fail", why=doubt), audit=audit({"blocks.1.attn": LONG * 3})
    )
    texts = {
        "good": render(compose(subject(), maps())),
        "empty": render(compose(subject(none=True), None)),
        "bad": render(compose(bad, maps())),
    }
    for name, text in texts.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in texts}


@pytest.mark.parametrize("name", ["good", "empty", "bad"])
@pytest.mark.parametrize("width", [320, PHONE, DESK])
def test_nothing_is_wider_than_the_screen(chromium: Browser, pages: dict[str, Path], name: str, width: int) -> None:
    chromium.open(pages[name], width=width)
    assert chromium.evaluate("document.documentElement.scrollWidth") <= width
    # Text of a chart may end outside of its drawing, which scrolls nothing but cannot be read.
    outside = """[...document.querySelectorAll('svg text')].filter(e => e.getClientRects().length &&
        (e.getBoundingClientRect().right > innerWidth || e.getBoundingClientRect().left < 0)).map(e => e.textContent)"""
    assert chromium.evaluate(outside) == []


def test_it_requests_nothing_and_logs_nothing(chromium: Browser, pages: dict[str, Path]) -> None:
    chromium.requests.clear()
    chromium.complaints.clear()
    for path in pages.values():
        chromium.open(path, width=DESK)
    assert {address.partition(":")[0] for address in chromium.requests} <= {"file", "data"}
    assert sorted(a for a in chromium.requests if a.startswith("file:")) == sorted(p.as_uri() for p in pages.values())
    assert chromium.complaints == []


def test_the_browser_reports_requests_errors_and_width(chromium: Browser, tmp_path: Path) -> None:
    path = tmp_path / "noisy.html"
    path.write_text(
        '<img src="http://127.0.0.1:9/x.png"><p style="width:2000px">wide<script>console.error("no")</script>'
    )
    chromium.open(path, width=PHONE)
    assert any("127.0.0.1" in address for address in chromium.requests)
    assert chromium.complaints
    assert chromium.evaluate("document.documentElement.scrollWidth") > PHONE


def test_images_are_shown(chromium: Browser, pages: dict[str, Path]) -> None:
    chromium.open(pages["good"], width=DESK)
    widths = chromium.evaluate("[...document.images].map(i => i.naturalWidth)")
    assert len(widths) == 2 * 4
    assert all(widths)


@pytest.mark.parametrize(("media", "light"), [("light", True), ("dark", False), ("print", True)])
def test_it_follows_the_theme_and_can_be_read(
    chromium: Browser, pages: dict[str, Path], media: Media, light: bool
) -> None:
    chromium.open(pages["good"], width=DESK, media=media)
    pixels = np.asarray(Image.open(io.BytesIO(chromium.screenshot(height=400))).convert("L"))
    assert (np.median(pixels) > 128) == light
    assert np.ptp(pixels) > 150, "ink and paper differ"


@pytest.mark.parametrize("media", ["light", "dark"])
def test_text_has_contrast(chromium: Browser, pages: dict[str, Path], media: Media) -> None:
    """WCAG 2.2, success criterion 1.4.3: at least 4.5 to 1 for every text on its card."""
    chromium.open(pages["bad"], width=DESK, media=media)
    script = """(() => {
        const luminance = c => { const v = c.match(/[\\d.]+/g).slice(0, 3).map(x => x / 255)
            .map(x => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
            return 0.2126 * v[0] + 0.7152 * v[1] + 0.0722 * v[2]; };
        const card = luminance(getComputedStyle(document.querySelector('main > section')).backgroundColor);
        const kinds = 'p, h1, h2, h3, td, th, li span, li b, dt, dd, figcaption, svg text';
        const texts = [...document.querySelectorAll(kinds)]
            .filter(e => !e.closest('.badge') && e.getClientRects().length);
        return texts.map(e => { const s = getComputedStyle(e), ink = luminance(e.closest('svg') ? s.fill : s.color);
            return [(Math.max(ink, card) + 0.05) / (Math.min(ink, card) + 0.05), e.textContent]; })
            .filter(p => p[0] < 4.5);
    })()"""
    assert chromium.evaluate(script) == []


def test_it_prints_on_a_few_pages(chromium: Browser, pages: dict[str, Path]) -> None:
    chromium.open(pages["good"], width=DESK)
    found = chromium.pdf()
    assert found.startswith(b"%PDF")
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b", found)) <= 10
