"""Inside GitHub Actions: annotations the runner understands, and the summary page."""

import io
from pathlib import Path

import pytest

from vitdeploy.errors import UsageError
from vitdeploy.evidence import Check, Gate, Status
from vitdeploy.render import github


def gate(*statuses: Status) -> Gate:
    checks = [
        Check(name="slow-down: 100%, x", observed=1.0, limit=2.0, status=status, why="50 % more\nthan: 2, too much")
        for status in statuses
    ]
    worst: Status = "fail" if "fail" in statuses else "invalid" if "invalid" in statuses else "pass"
    return Gate(verdict=worst, checks=tuple(checks))


def test_annotations_are_escaped_as_the_runner_wants() -> None:
    title = "vitdeploy gate%3A slow-down%3A 100%25%2C x"
    assert list(github.commands(gate("pass", "fail", "invalid"))) == [
        f"::error title={title}::50 %25 more%0Athan: 2, too much",
        f"::warning title={title}::50 %25 more%0Athan: 2, too much",
    ]
    assert list(github.commands(gate("pass", "pass"))) == ["::notice title=vitdeploy gate::2 checks passed"]


def test_nothing_happens_elsewhere() -> None:
    stream = io.StringIO()
    github.publish(gate("fail"), None, stream, {})
    github.publish(gate("fail"), None, stream, {"GITHUB_ACTIONS": "false"})
    assert stream.getvalue() == ""


def test_the_summary_page_is_added_to(tmp_path: Path) -> None:
    page, stream = tmp_path / "summary.md", io.StringIO()
    page.write_text("before\n")
    github.publish(gate("fail"), None, stream, {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(page)})
    assert stream.getvalue().startswith("::error title=")
    assert page.read_text().startswith("before\n### vitdeploy gate: ❌ fail")
    with pytest.raises(UsageError, match="GITHUB_STEP_SUMMARY"):
        github.publish(gate("fail"), None, stream, {"GITHUB_STEP_SUMMARY": str(tmp_path)})
