"""Point 11: tables, Markdown, annotations, JUnit and pages show every name, and act on none."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from markdown_it import MarkdownIt
from rich.text import Text

from tests.evidence import audit, bench, evaluation
from tests.proofs.hostile import NAMES, find_harm, poison
from vitdeploy.cli import views
from vitdeploy.cli.console import Console
from vitdeploy.errors import ArtifactError
from vitdeploy.escaping import escape, escape_json, escape_lines, escape_strings, is_shown
from vitdeploy.evidence import Availability, Check, Gate
from vitdeploy.remote.near.listing import HostState, Listing
from vitdeploy.render import bench_tables, github, junit, markdown, tables
from vitdeploy.render.summary import summarize

GATE = Gate(
    verdict="fail",
    checks=(
        Check(name="accuracy drop", observed=1.0, limit=0.5, status="fail", why="too much"),
        Check(name="speed-up", observed="1.5", limit="1.2", status="pass", why="fast"),
    ),
    manifest="m",
)


def printed(result: Any, *renderables: Any) -> str:
    out = io.StringIO()
    Console(out=out).show(result, *renderables)
    return out.getvalue()


def make_renderables(name: str) -> Iterator[Any]:
    """Everything that is printed for people, with `name` in every text of its evidence."""
    gate, stored = poison(GATE, name), poison(audit(fused=10, doubts=("one",)), name)
    timed, accuracy = poison(bench(1.4, 1.5, 1.6, "busy"), name), poison(evaluation(doubts=("few",)), name)
    yield tables.gate(gate)
    yield tables.audit(stored)
    yield tables.evaluation(accuracy)
    yield from bench_tables.bench(timed)
    yield tables.summary(summarize(stored, timed, accuracy, gate))
    yield tables.doctor({f"target{name}": Availability(available=False, why=f"why{name}", fix=f"fix{name}")})
    host = HostState(name=f"nano{name}", url=f"ssh://{name}", state="unreachable", why=f"why{name}", fix=f"fix{name}")
    yield from views.show_hosts(Listing(file=f"hosts{name}", hosts=(host,)))
    yield from views.show_hosts(Listing(file=f"hosts{name}", hosts=()))
    yield from views.show_recipes({f"recipe{name}": f"purpose{name}"})


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_tables_show_every_name(name: str) -> None:
    seen = printed(GATE, *make_renderables(name))
    assert find_harm(seen) == []
    shown = escape(name).replace("##[", "#\\#[")
    assert re.sub(r"\s", "", shown) in re.sub(r"\s", "", seen), "markup and emoji codes stay what they are"


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_lines_on_stderr_show_every_name(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    console.warn(f"{name} is {name}")
    console.relay(name)
    console.fail(f"{name} is missing", f"Use {name}.")
    with console.step(f"Load {name}"):
        pass
    with pytest.raises(Exception, match="1"), console.errors_as_lines(traceback=True):
        raise ArtifactError(f"{name} is damaged", fix="No.")
    with pytest.raises(Exception, match="1"), console.errors_as_lines(traceback=True):
        raise KeyError(name)
    err = capsys.readouterr().err
    assert find_harm(err) == []
    assert sum(line.startswith("error:") for line in err.splitlines()) == 3, "an error is one line"
    assert sum(line.startswith("note:") for line in err.splitlines()) == 1


@pytest.mark.parametrize("width", [20, 40, 80])
def test_no_line_break_of_ours_starts_a_command(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long name is wrapped, and the next line begins somewhere inside of it."""
    monkeypatch.setenv("COLUMNS", str(width))
    for start in range(width):
        name = f"{'x' * start} ::error::pwned ##[error]pwned"
        seen = printed(GATE, tables.gate(poison(GATE, name)), Text(name), name)
        assert find_harm(seen) == []


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_json_is_exact_and_harmless(name: str) -> None:
    out = io.StringIO()
    Console(json=True, out=out).show({"label": name, "more": [name]})
    assert find_harm(out.getvalue()) == []
    expected = name if not any("\ud800" <= character <= "\udfff" for character in name) else escape(name)
    assert json.loads(out.getvalue()) == {"label": expected, "more": [expected]}


def test_the_usual_letters_stay() -> None:
    for text in ("Grüße, 東京 タワー, عربي, עברית, 🙂", "a\u00a0b", "日\u3000本", "αβ × 10⁹ – „so“", "C:\\new\\table"):
        assert escape(text) == text
        assert json.loads(escape_json(json.dumps(text, ensure_ascii=False))) == text
    assert escape("a\x1b\n\u202e\U000e0041") == r"a\x1b\n\u202e\U000e0041"
    assert escape(escape("\x1b")) == escape("\x1b")


def test_every_character_is_shown_or_escaped() -> None:
    for code in range(0x110000):
        assert all(map(is_shown, escape(chr(code)))), hex(code)


def test_all_texts_of_a_result_are_escaped() -> None:
    poisoned = poison(bench(), "\x1b")
    assert "\x1b" in poisoned.runs[0].name
    assert "\\u001b" not in escape_strings(poisoned).model_dump_json()
    assert escape_strings(poisoned).runs[0].p50_ms == bench().runs[0].p50_ms


# ------------------------------------------------------------------------------------------- Markdown


def parse(text: str) -> Iterator[tuple[str, str]]:
    """The kinds of tokens of a Markdown page, as GitHub sees it, with their contents."""
    for token in MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text):
        yield token.type, ""
        for child in token.children or ():
            yield child.type, child.content


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_markdown_is_not_opened_by_a_name(name: str) -> None:
    summary = summarize(poison(audit(), name), poison(bench(1.4, 1.5, 1.6, "busy"), name), evaluation(), GATE)
    plain = summarize(audit(), bench(1.4, 1.5, 1.6, "busy"), evaluation(), GATE)
    page = markdown.render(poison(GATE, name), summary, title=f"gate {name}")
    tokens = list(parse(page))
    inline = {kind for kind, _ in tokens if not kind.endswith(("_open", "_close"))}
    assert inline <= {"inline", "text", "text_special", "html_inline", "softbreak"}
    assert {text for kind, text in tokens if kind == "html_inline"} <= {"<!-- -->"}, "only ours, which breaks @mentions"
    blocks = [kind for kind, _ in tokens if kind.endswith("_open")]
    assert blocks == [kind for kind, _ in parse(markdown.render(GATE, plain)) if kind.endswith("_open")]
    assert find_harm(page) == []
    assert not re.search(r"(?<!\\)(https?:/|www\.)|@\w|(?<!\\)[$~]", page.replace("@<!-- -->", "")), (
        "GitHub's own links"
    )
    text = "".join(content for kind, content in tokens if kind.startswith("text"))
    assert "".join(escape(" ".join(name.split())).split()) in "".join(text.split()), "it is shown as it is"


# ------------------------------------------------------------------------------------------- GitHub, JUnit


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_annotations_are_the_commands_of_ours(name: str) -> None:
    lines = list(github.commands(poison(GATE, name)))
    assert len(lines) == 1
    (line,) = lines
    assert "\n" not in line
    assert "\r" not in line
    found = re.fullmatch(r"::error title=([^:,]*)::(.*)", line)
    assert found is not None, "the name ends neither the title nor the command"
    assert find_harm(found[2]) in ([], [ascii(found[2])]), "inside of a command another one is text"
    assert "##[" not in line
    assert all(map(is_shown, line))


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_junit_is_well_formed(name: str) -> None:
    root = ET.fromstring(junit.render(poison(GATE, name)))
    names = [case.get("name") for case in root.iter("testcase")]
    assert names == [escape_lines(f"{check.name}{name}") for check in GATE.checks]
    texts = [text for element in root.iter() for text in (*element.attrib.values(), element.text or "")]
    assert all(is_shown(character) or character == "\n" for text in texts for character in text)
