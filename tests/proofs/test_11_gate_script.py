"""Point 11: the script of the action takes every input as data, whatever it is called."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.proofs.hostile import NAMES, find_harm
from vitdeploy.artifact import Artifact

ROOT = Path(__file__).parents[2]
LIMITS = (
    "MAX_DROP",
    "MIN_SPEEDUP",
    "MAX_SLOWDOWN",
    "MIN_FUSED",
    "MIN_QUANTIZED",
    "MAX_SIZE",
    "MAX_MEMORY",
    "MAX_GROWTH",
)
EMPTY = dict.fromkeys(("RECIPE", "DATA", "BASELINE", "JUNIT", "MARKDOWN", *LIMITS), "")
GIVEN = [name for name in NAMES if "\x00" not in name and not any("\ud800" <= c <= "\udfff" for c in name)]

RECORDER = """#!/bin/sh
printf '%s\\0' "$@" >>"$CALLS"
printf '\\1' >>"$CALLS"
echo '{"checks": []}'
"""


def act(folder: Path, command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the script in a folder with `command` as vitdeploy."""
    (folder / "bin").mkdir(exist_ok=True)
    program = folder / "bin" / "vitdeploy"
    program.write_text(command)
    program.chmod(0o755)
    given = {**EMPTY, "MEASURE": "false", "ON_INVALID": "fail", **variables}
    path = {"PATH": f"{program.parent}:{os.environ['PATH']}", "CALLS": str(folder / "calls"), "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        ["bash", ROOT / ".ci" / "gate"], cwd=folder, env=os.environ | path | given, capture_output=True, text=True,
        check=False,
    )  # fmt: skip


def read_calls(folder: Path) -> list[list[str]]:
    text = (folder / "calls").read_bytes().decode()
    return [call.split("\0")[:-1] for call in text.split("\1") if call]


@pytest.mark.parametrize("name", GIVEN, ids=ascii)
def test_an_input_is_one_word_and_no_option(name: str, tmp_path: Path) -> None:
    (tmp_path / "a file that a star would find").touch()
    done = act(tmp_path, RECORDER, ARTIFACT=name, MEASURE="true", DATA=name, BASELINE=name, JUNIT=name, MAX_DROP=name)
    assert done.returncode == 0, done.stderr
    evaluate, bench, gate = read_calls(tmp_path)
    assert evaluate == ["eval", f"--data={name}", "--", name]
    assert bench == ["bench", "--", name]
    assert gate[0] == "gate"
    assert gate[-2:] == ["--", name]
    assert {f"--junit={name}", f"--baseline={name}", f"--max-drop={name}"} < set(gate)
    (tmp_path / "calls").unlink()
    act(tmp_path, RECORDER, ARTIFACT=name, RECIPE=name)
    (run, _) = read_calls(tmp_path)
    assert run[:2] == ["run", f"--output={name}"]
    assert run[-2:] == ["--", name]
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("name", ["x\n::add-mask::y", "\r\n::error::y", "%0A::error::y"], ids=ascii)
@pytest.mark.parametrize("variable", ["ON_INVALID", "MEASURE"])
def test_a_wrong_input_starts_no_command(variable: str, name: str, tmp_path: Path) -> None:
    done = act(tmp_path, RECORDER, ARTIFACT="a", **{variable: name})
    assert done.returncode == 2
    (line,) = done.stdout.splitlines()
    assert line.startswith("::error title=vitdeploy gate::")


@pytest.mark.parametrize(
    "name", ["--help", "-o", "--version", "a b", "*", "$(touch pwned)", "two\nlines", "::error::x"]
)
def test_an_artifact_of_any_name_is_gated(name: str, demo: Callable[..., Artifact], tmp_path: Path) -> None:
    shutil.copytree(demo(target="onnxruntime").path, tmp_path / name)
    command = f'#!/bin/sh\nexec "{sys.executable}" -m vitdeploy "$@"\n'
    done = act(tmp_path, command, ARTIFACT=name, MIN_FUSED="100", MARKDOWN="-gate.md", JUNIT="--junit.xml")
    assert done.returncode == 0, done.stderr
    assert "✅ pass" in done.stdout
    assert find_harm(done.stdout + done.stderr) == []
    assert (tmp_path / name / "gate.json").exists()
    assert (tmp_path / "-gate.md").exists()
    assert (tmp_path / "--junit.xml").exists()
    assert not (tmp_path / "pwned").exists()


def test_the_action_gives_no_input_to_a_shell() -> None:
    action = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
    for step in action["runs"]["steps"]:
        assert "${{" not in step["run"]
    assert ' -- "$GITHUB_ACTION_PATH[$EXTRAS]"' in action["runs"]["steps"][0]["run"]
