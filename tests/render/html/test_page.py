"""The page as a file: missing evidence is named, foreign text is escaped, equal evidence gives equal bytes."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

from tests.evidence import evaluation
from tests.render.html.subjects import audit, bench, gate, manifest, maps, runs, subject
from vitdeploy.artifact import Trial
from vitdeploy.render.html import render
from vitdeploy.render.html.page import compose

EVIL = "<script>alert(1)</script>\"'&"
SECTIONS = ["latency", "accuracy", "tradeoff", "fusion", "sensitivity", "attention", "environment", "recipe"]


class Tags(HTMLParser):
    """What stands open, and every tag with its attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}>"


def page(none: bool = False) -> str:
    return render(compose(subject(none=none), None if none else maps()))


def test_sections_stand_in_this_order_and_every_tag_is_closed() -> None:
    tags = Tags(page())
    assert tags.open == []
    assert [a["id"] for tag, a in tags.seen if tag == "section"] == ["verdict", *SECTIONS]


def test_missing_evidence_says_what_to_run() -> None:
    found = compose(subject(none=True), None)
    gaps = {section.name: section.missing.fix for section in found.sections if section.missing is not None}
    assert gaps == {
        "latency": "vitdeploy bench deit",
        "accuracy": "vitdeploy eval deit",
        "tradeoff": "vitdeploy bench deit",
        "fusion": "vitdeploy inspect deit",
        "sensitivity": "vitdeploy inspect --sensitivity deit",
        "attention": "vitdeploy report deit",
    }
    text = page(none=True)
    assert all(f"<code>{fix}</code>" in text for fix in gaps.values())
    assert 'class="word not-judged"' in text
    assert 'class="word pass"' not in text


def test_the_recipe_lists_what_was_tried_and_where_an_engine_is_off() -> None:
    off = Trial(precision="fp16", why="other numbers", located="blocks.1 is the first that is off")
    held = Trial(precision="fp16", form="separate-qkv", kept=True)
    text = render(compose(subject(manifest=manifest(trials=(off, held))), None))
    assert "Precisions that were tried" in text
    assert "other numbers; blocks.1 is the first that is off" in text
    assert "fp16-separate-qkv" in text
    assert "Precisions that were tried" not in page()


def test_nothing_foreign_becomes_markup() -> None:
    evil = subject(
        EVIL,
        manifest=manifest(spec=f"timm:{EVIL}", versions={EVIL: EVIL}, trials=(Trial(precision=EVIL, why=EVIL),) * 2),
        audit=audit({"blocks.1.attn": EVIL}, **{"blocks.0.attn.qkv": EVIL}).model_copy(update={"doubts": (EVIL,)}),
        bench=bench(1.5, EVIL, runs=tuple(run.model_copy(update={"name": EVIL}) for run in runs())),
        evaluation=evaluation(data=EVIL, metrics={EVIL: evaluation().metrics["top1"]}),
        gate=gate("fail", why=EVIL),
    )
    found = maps()
    found = replace(found, data=EVIL, left_out=((EVIL, EVIL),), sites=tuple(replace(s, name=EVIL) for s in found.sites))
    text = render(compose(evil, found))
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert {tag for tag, _ in Tags(text).seen}.isdisjoint({"script", "link", "iframe", "form", "object"})


def test_it_asks_for_nothing() -> None:
    tags = Tags(page())
    addresses = [
        value or "" for _, a in tags.seen for name, value in a.items() if name in ("src", "href", "xlink:href")
    ]
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert len(addresses) > len(SECTIONS)
    assert not re.search(r"url\(|@import", page())


def test_the_same_evidence_gives_the_same_page() -> None:
    assert page() == page()
    assert len(page().encode()) < 2_000_000
