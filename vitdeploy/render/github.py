"""What GitHub Actions shows: annotations at the job, and the job's summary page. Elsewhere nothing happens."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TextIO

from vitdeploy.errors import UsageError
from vitdeploy.evidence import Gate
from vitdeploy.render import markdown
from vitdeploy.render.summary import Summary

_LEVELS = {"pass": "notice", "fail": "error", "invalid": "warning"}


def commands(gate: Gate) -> Iterator[str]:
    """One workflow command for each check that did not pass; one notice when all did.

    `::error title=…::…`, escaped as the runner wants it (actions/toolkit, packages/core/src/command.ts).
    """
    for check in gate.checks:
        if check.status != "pass":
            yield f"::{_LEVELS[check.status]} title={_property(f'vitdeploy gate: {check.name}')}::{_data(check.why)}"
    if gate.verdict == "pass":
        yield f"::notice title=vitdeploy gate::{len(gate.checks)} checks passed"


def publish(gate: Gate, summary: Summary | None, stream: TextIO, environment: Mapping[str, str] = os.environ) -> None:
    """Inside GitHub Actions: annotations to `stream`, which the runner reads, and Markdown to the summary page.

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
                file.write(markdown.render(gate, summary) + "\n")
        except OSError as error:
            raise UsageError(f"GITHUB_STEP_SUMMARY {page}: {error.strerror}", fix="Unset it.") from None


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
