"""Annotations and a summary page for GitHub Actions; nothing happens elsewhere."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TextIO

from vitdeploy.errors import UsageError
from vitdeploy.escaping import break_commands, escape_lines
from vitdeploy.evidence import Gate
from vitdeploy.render import markdown
from vitdeploy.render.summary import Summary

_LEVELS = {"pass": "notice", "fail": "error", "invalid": "warning"}


def commands(gate: Gate) -> Iterator[str]:
    """Yield a workflow command for each check that did not pass, or one notice if all did.

    `::error title=…::…`, escaped as the runner expects it (actions/toolkit, packages/core/src/command.ts).
    """
    for check in gate.checks:
        if check.status != "pass":
            title = _escape_property(f"vitdeploy gate: {check.name}")
            yield f"::{_LEVELS[check.status]} title={title}::{_escape_data(check.why)}"
    if gate.verdict == "pass":
        yield f"::notice title=vitdeploy gate::{len(gate.checks)} checks passed"


def publish(
    gate: Gate,
    summary: Summary | None,
    stream: TextIO,
    environment: Mapping[str, str] = os.environ,
    *,
    about: Sequence[str] = (),
) -> None:
    """Print annotations to `stream`, which the runner reads, and append Markdown to the job's summary page.

    `about` says what was judged: see `markdown.render`.

    Raises:
        UsageError: GITHUB_STEP_SUMMARY names a file that cannot be written.
    """
    if environment.get("GITHUB_ACTIONS") == "true":
        for line in commands(gate):
            print(line, file=stream, flush=True)
    page = environment.get("GITHUB_STEP_SUMMARY")
    if page:
        try:
            with Path(page).open("a", encoding="utf-8") as file:
                file.write(markdown.render(gate, summary, about=about) + "\n")
        except OSError as error:
            message = f"GITHUB_STEP_SUMMARY names {page}, which cannot be written: {error.strerror}"
            raise UsageError(message, fix="Unset it, or name another file.") from None


def _escape_data(text: str) -> str:
    lines = break_commands(escape_lines(text.replace("\r\n", "\n")))
    return lines.replace("%", "%25").replace("\n", "%0A")


def _escape_property(text: str) -> str:
    return _escape_data(text).replace(":", "%3A").replace(",", "%2C")
