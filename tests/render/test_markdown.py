from pathlib import Path

import pytest

from tests.evidence import audit, bench, evaluation
from vitdeploy.errors import UsageError
from vitdeploy.evidence import Check, Gate
from vitdeploy.render import markdown
from vitdeploy.render.summary import summarize

GATE = Gate(
    verdict="invalid",
    checks=(
        Check(name="speed-up", observed=1.5, limit=1.2, status="pass", why="fast"),
        Check(name="accuracy drop", observed=None, limit=0.5, status="invalid", why="a | b\n`c` <img>"),
    ),
)


def rows(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("|")]


def test_heading_and_a_row_for_each_check() -> None:
    text = markdown.render(GATE)
    assert text.startswith("### vitdeploy gate: ⚠️ invalid\n\n| check |")
    assert len(rows(text)) == 4
    assert "| speed-up | 1.50 | 1.20 | ✅ pass | fast |" in text


def test_no_reason_breaks_out_of_its_cell() -> None:
    last = rows(markdown.render(GATE))[-1]
    assert last.endswith("| a \\| b \\`c\\` \\<img\\> |")


def test_with_both_sides(tmp_path: Path) -> None:
    path = tmp_path / "gate.md"
    markdown.write(
        GATE, path, summarize(audit(), bench(), evaluation(), GATE), about=("timm:x", "openvino int8", "deit")
    )
    text = path.read_text(encoding="utf-8")
    assert text.startswith("<!-- vitdeploy gate ")
    assert "\n### vitdeploy gate: " in text
    assert "\n- timm:x · openvino int8 · deit\n" in text
    assert "|  | FP32 PyTorch | openvino int8 |" in text
    assert "| attention fused (sites) | – | 12 of 12 |" in text


def test_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be written"):
        markdown.write(GATE, tmp_path / "no" / "gate.md")
