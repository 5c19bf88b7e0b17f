"""The gate and its evidence as Markdown, for a pull request."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from vitdeploy.artifact import atomic_file
from vitdeploy.errors import UsageError
from vitdeploy.escaping import escape
from vitdeploy.evidence import Gate
from vitdeploy.render import numbers
from vitdeploy.render.numbers import is_digest
from vitdeploy.render.summary import Summary

MARK = "vitdeploy gate"
_SIGNS = {"pass": "✅ pass", "fail": "❌ fail", "invalid": "⚠️ invalid"}


def render(
    gate: Gate, summary: Summary | None = None, *, title: str = "vitdeploy gate", about: Sequence[str] = ()
) -> str:
    """Return the verdict as a heading, the summary as a table if there is one, and all checks.

    `about` says what was judged: model, target and precision, artifact. By the first line, which is hidden, a script
    finds the comment about the same artifact, to replace it.
    """
    mark = hashlib.sha256("\n".join(about).encode(errors="replace")).hexdigest()[:16]
    lines = [f"<!-- {MARK} {mark} -->", ""] if about else []
    lines += [f"### {_cell(title)}: {_SIGNS[gate.verdict]}", ""]
    lines += [f"- {' · '.join(map(_cell, about))}", ""] if about else []
    if summary is not None:
        rows = [[row.label, row.reference, row.artifact] for row in summary.rows]
        lines += _table(["", summary.reference, summary.artifact], "lrr", rows)
        lines += [f"- {_cell(note)}" for note in summary.notes] + [""]
    checks = [
        [c.name, numbers.observed(c.observed), numbers.observed(c.limit), _SIGNS[c.status], c.why] for c in gate.checks
    ]
    lines += _table(["check", "observed", "limit", "status", "reason"], "lrrll", checks)
    for check in gate.checks:
        if check.details and check.status != "pass":
            lines += [*(f"- {_cell(f'{check.name}: {line}')}" for line in check.details), ""]
    if is_digest(gate.digest):
        lines += [f"Evidence: {gate.digest} (sha256 over manifest, evidence and raw data)", ""]
    return "\n".join(lines)


def write(gate: Gate, path: Path, summary: Summary | None = None, *, about: Sequence[str] = ()) -> None:
    """Write the Markdown to a file, atomically.

    Raises:
        UsageError: the file cannot be written.
    """
    try:
        with atomic_file(path) as temporary:
            temporary.write_text(render(gate, summary, about=about), encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"{path} cannot be written: {error.strerror}", fix="Choose another file with --markdown."
        ) from None


def _table(head: list[str], align: str, rows: list[list[str]]) -> list[str]:
    rule = ["---:" if side == "r" else "---" for side in align]
    lines = [[_cell(value) for value in head], rule, *([_cell(value) for value in row] for row in rows)]
    return [*(f"| {' | '.join(line)} |" for line in lines), ""]


def _cell(text: str) -> str:
    """Escape a text so that it cannot end its cell, start other Markdown, link somewhere or mention somebody."""
    text = escape(" ".join(text.split()))
    text = re.sub(r"[\\`|<>\[\]*_~$&#!]", r"\\\g<0>", text)
    text = re.sub(r"://|www\.", lambda link: link[0].replace(":", r"\:").replace(".", r"\."), text, flags=re.IGNORECASE)
    return text.replace("@", "@<!-- -->")
