"""The composite action: its inputs reach the script, and the script does what they say, with the real command line."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from vitdeploy.artifact import Artifact

ROOT = Path(__file__).parents[1]
ACTION: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
SCRIPT = ROOT / ".ci" / "gate"
STEP = next(step for step in ACTION["runs"]["steps"] if step.get("id") == "gate")
COMMENT = ROOT / ".ci" / "comment"


@pytest.fixture(scope="module")
def artifact(demo: Callable[..., Artifact], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(demo(target="onnxruntime").path, tmp_path_factory.mktemp("action") / "artifact"))


def act(folder: Path, **inputs: str) -> tuple[int, str, str]:
    """Run the action's gate as a runner does; (exit code, log, outputs)."""
    (folder / "bin").mkdir(exist_ok=True)
    command = folder / "bin" / "vitdeploy"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m vitdeploy "$@"\n')
    command.chmod(0o755)
    given = {name: str(spec.get("default", "")) for name, spec in ACTION["inputs"].items()} | inputs
    variables = {
        name: re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda found: given[found[1]], value)
        for name, value in STEP["env"].items()
    }
    runner = {
        "PATH": f"{command.parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "GITHUB_ACTIONS": "true",
        "GITHUB_OUTPUT": str(folder / "output"),
        "GITHUB_STEP_SUMMARY": str(folder / "summary.md"),
        "GITHUB_ACTION_PATH": str(ROOT),
    }
    done = subprocess.run(
        ["bash", "-c", STEP["run"]], cwd=folder, env=os.environ | variables | runner, capture_output=True, text=True
    )
    outputs = folder / "output"
    return done.returncode, done.stdout + done.stderr, outputs.read_text() if outputs.exists() else ""


def test_every_input_is_used_and_every_variable_is_given() -> None:
    text = yaml.safe_dump(ACTION["runs"])
    assert set(re.findall(r"inputs\.([\w-]+)", text)) == set(ACTION["inputs"])
    script = SCRIPT.read_text(encoding="utf-8")
    named = set(re.findall(r"\$\{?([A-Z_]{4,})", script)) - {"GITHUB_OUTPUT"}
    options = re.search(r"for option in (.*); do", script)
    assert options is not None
    named |= {option.upper().replace("-", "_") for option in options[1].split()}
    assert named == set(STEP["env"])
    assert "${{" not in STEP["run"]  # an input that is pasted into a script is a way in


def test_a_pass(artifact: Path, tmp_path: Path) -> None:
    code, log, outputs = act(tmp_path, artifact=str(artifact), **{"min-fused": "100", "max-size": "50"})
    assert (code, outputs) == (0, "verdict=pass\n"), log
    assert "::notice title=vitdeploy gate::2 checks passed" in log
    assert "✅ pass" in (tmp_path / "summary.md").read_text()
    assert (tmp_path / "vitdeploy-gate.xml").exists()


def test_a_fail_fails_whatever_is_done_on_invalid(artifact: Path, tmp_path: Path) -> None:
    inputs = {"max-size": "0.001", "min-speedup": "1", "on-invalid": "pass"}
    code, log, outputs = act(tmp_path, artifact=str(artifact), **inputs)
    assert (code, outputs) == (1, "verdict=fail\n"), log
    assert "::error title=vitdeploy gate%3A size (MiB)" in log
    assert "::warning title=vitdeploy gate%3A speed-up" in log


@pytest.mark.parametrize(("choice", "code"), [("fail", 3), ("warn", 0), ("pass", 0)])
def test_invalid_does_what_was_chosen(artifact: Path, tmp_path: Path, choice: str, code: int) -> None:
    inputs = {"min-fused": "100", "min-speedup": "1", "on-invalid": choice}
    found, log, outputs = act(tmp_path, artifact=str(artifact), **inputs)
    assert (found, outputs) == (code, "verdict=invalid\n"), log
    assert ("on-invalid is warn" in log) == (choice == "warn")


@pytest.mark.parametrize(
    ("inputs", "code", "told"),
    [
        ({"on-invalid": "ignore"}, 2, "on-invalid is 'ignore', not fail, warn or pass"),
        ({"measure": "yes"}, 2, "measure is 'yes'"),
        ({"artifact": "none"}, 1, "none does not exist"),
        ({"min-fused": "-5"}, 2, "is not above 0"),
        ({"min-fused": "many"}, 2, "Input should be a valid number"),
        ({"artifact": "$(touch pwned); `touch pwned`"}, 1, "does not exist"),
        ({"recipe": "none.yaml"}, 1, "there is no recipe none.yaml"),
    ],
)
def test_what_goes_wrong_says_so_and_is_no_verdict(
    artifact: Path, tmp_path: Path, inputs: dict[str, str], code: int, told: str
) -> None:
    found, log, outputs = act(tmp_path, **{"artifact": str(artifact)} | inputs)
    assert (found, outputs) == (code, ""), log
    assert told in log
    assert not (tmp_path / "pwned").exists()


@pytest.mark.long
def test_a_recipe_is_run_and_then_judged_against_the_baseline(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(
        "model: demo:digits\ntarget: {kind: onnxruntime}\ndata: {evaluation: demo:digits}\n"
        "bench: {seconds: 0.3, threads: 1}\ngate: {max_drop_pp: 2, min_fused_pct: 100}\n"
    )
    code, log, outputs = act(tmp_path, recipe="recipe.yaml", artifact="made")
    assert (code, outputs) == (0, "verdict=pass\n"), log
    assert log.count("::notice title=vitdeploy gate::") == 1
    shutil.copytree(tmp_path / "made", tmp_path / "old")
    inputs = {"measure": "true", "baseline": "old", "max-slowdown": "400", "data": "demo:digits", "on-invalid": "warn"}
    code, log, outputs = act(tmp_path, artifact="made", **inputs)
    assert code == 0, log
    assert outputs.splitlines()[-1] in ("verdict=pass", "verdict=invalid")
    assert "slow-down" in (tmp_path / "vitdeploy-gate.md").read_text()


GH = """#!{python}
# Answers as GitHub's API would for these comments, with the filter that gh has; notes every call.
import json, os, sys
from pathlib import Path
here = Path(__file__).parent
words = sys.argv[1:]
with (here / "calls").open("a") as file:
    file.write(json.dumps(words) + "\\n")
if "--jq" in words:
    assert words[words.index("--jq") + 1] == ".[] | select(.body | startswith(env.MARK)) | .id"
    for comment in json.loads((here / "comments.json").read_text()):
        if comment["body"].startswith(os.environ["MARK"]):
            print(comment["id"])
elif "PATCH" in words and (here / "forbidden").exists():
    sys.exit(1)
"""


def comment(folder: Path, text: str, comments: list[dict[str, Any]]) -> tuple[int, list[list[str]]]:
    """Run .ci/comment with a `gh` that has these comments; return the exit code and the calls."""
    gh = folder / "gh"
    gh.write_text(GH.replace("{python}", sys.executable))
    gh.chmod(0o755)
    (folder / "comments.json").write_text(json.dumps(comments))
    (folder / "table.md").write_text(text)
    (folder / "calls").unlink(missing_ok=True)
    environment = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}", "GITHUB_REPOSITORY": "me/mine"}
    words = ["bash", COMMENT, "table.md", "7"]
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
    calls = folder / "calls"
    return done.returncode, [json.loads(line) for line in calls.read_text().splitlines()] if calls.exists() else []


def test_a_comment_replaces_only_the_one_about_the_same_artifact(tmp_path: Path) -> None:
    mine, other = ("<!-- vitdeploy gate 0123456789abcdef -->", "<!-- vitdeploy gate ffffffffffffffff -->")
    comments = [{"id": 1, "body": "hello"}, {"id": 2, "body": f"{other}\n\nx"}, {"id": 3, "body": f"{mine}\n\nold"}]
    code, calls = comment(tmp_path, f"{mine}\n\n### new\n", comments)
    assert (code, len(calls)) == (0, 2)
    assert "repos/me/mine/issues/comments/3" in calls[1]
    assert "PATCH" in calls[1]
    code, calls = comment(tmp_path, f"{mine}\n\n### new\n", comments[:2])
    assert (code, "POST" in calls[1], "repos/me/mine/issues/7/comments" in calls[1]) == (0, True, True)
    (tmp_path / "forbidden").touch()  # somebody else wrote a comment with this mark
    code, calls = comment(tmp_path, f"{mine}\n\n### new\n", comments)
    assert (code, ["PATCH" in calls[1], "POST" in calls[2]]) == (0, [True, True])
    assert comment(tmp_path, "### of something else\n", comments) == (2, [])


def test_the_table_names_what_was_judged(artifact: Path, tmp_path: Path) -> None:
    code, _, _ = act(tmp_path, artifact=str(artifact), **{"min-fused": "100"})
    first, _, _, _, about, *_ = (tmp_path / "vitdeploy-gate.md").read_text().splitlines()
    assert code == 0
    assert re.fullmatch("<!-- vitdeploy gate [0-9a-f]{16} -->", first)
    assert about == "- demo:digits · onnxruntime fp32 · artifact"
