"""Logs of builds: written message by message, read back exactly, and shortened without losing a cause."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from vitdeploy.commands.board.messages import MessageLog, shorten
from vitdeploy.commands.board.recording import format_message, parse_messages

LINES = st.lists(st.text(st.characters(exclude_characters="\n\r", exclude_categories=["Cs"])), min_size=1, max_size=4)


@given(st.lists(st.tuples(st.sampled_from(["ERROR", "VERBOSE", "PHASE"]), LINES.map("\n".join)), max_size=5))
def test_messages_are_read_back_exactly(messages: list[tuple[str, str]]) -> None:
    text = "".join(format_message(severity, message) for severity, message in messages)
    assert list(parse_messages(text.split("\n"))) == messages


def test_a_message_is_on_the_disk_at_once(tmp_path: Path) -> None:
    with MessageLog(tmp_path / "log") as log:
        log.add("ERROR", "first\nsecond\n")
        assert (tmp_path / "log").read_text() == "[ERROR] first\n  | second\n"


def test_verbose_messages_are_dropped_but_layers_and_what_failed_last() -> None:
    messages = [("VERBOSE", f"tactic {n}") for n in range(1000)]
    messages += [("WARNING", "slow"), ("VERBOSE", "Layers:\nName: a, LayerType: gemm"), ("VERBOSE", "last")]
    lines = "".join(format_message(*message) for message in messages).split("\n")
    assert list(parse_messages(shorten(lines, failed=False).split("\n"))) == [
        ("WARNING", "slow"), ("VERBOSE", "Layers:\nName: a, LayerType: gemm"), ("CUT", "1001 verbose messages"),
    ]  # fmt: skip
    failed = list(parse_messages(shorten(lines, failed=True).split("\n")))
    assert [text for severity, text in failed if severity == "VERBOSE"][-1] == "last"
    assert len(failed) == 60 + 2 + 1


def test_a_long_log_loses_its_middle() -> None:
    lines = "".join(format_message("INFO", f"{n} {'x' * 1000}") for n in range(1000)).split("\n")
    short = shorten(lines, failed=False)
    texts = [text for _, text in parse_messages(short.split("\n"))]
    assert len(short) < 410_000
    assert texts[0].startswith("0 ")
    assert texts[-1].startswith("999 ")
    assert "the middle of a long log" in texts
