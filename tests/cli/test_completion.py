"""Completion by the shell: commands, options and choices, through the script that users install."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vitdeploy import precision

ROOT = Path(__file__).parents[2]


@pytest.fixture
def shell(tmp_path: Path) -> dict[str, str]:
    """The environment of a user who has `vitdeploy` on the PATH and a home of their own."""
    script = tmp_path / "bin" / "vitdeploy"
    script.parent.mkdir()
    script.write_text(f"#!{sys.executable}\nfrom vitdeploy.cli import main\nmain()\n")
    script.chmod(0o755)
    (tmp_path / "home").mkdir()
    path = os.pathsep.join([str(script.parent), os.environ["PATH"]])
    return os.environ | {"PATH": path, "HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT), "SHELL": "/bin/bash"}


def bash(command: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    # Bash replaces itself by the last command, and then typer would not find a shell above it.
    return subprocess.run(
        ["bash", "--norc", "-c", f"{command}; true"], env=environment, capture_output=True, text=True, check=True
    )


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("vitdeploy exp", {"export"}),
        ("vitdeploy export --prec", {"--precision"}),
        ("vitdeploy export --target open", {"openvino"}),
        ("vitdeploy export model.onnx --precision int8", {name for name in precision.names() if name[:4] == "int8"}),
        ("vitdeploy bench dir --scenario o", {"offline"}),
    ],
)
def test_bash_completes(words: str, expected: set[str], shell: dict[str, str]) -> None:
    place = len(words.split()) - 1
    done = bash(
        f'eval "$(vitdeploy --show-completion)"; COMP_WORDS=({words}); COMP_CWORD={place}; '
        '_vitdeploy_completion vitdeploy; printf "%s\\n" "${COMPREPLY[@]}"',
        shell,
    )
    assert set(done.stdout.split()) == expected


def test_the_script_of_completion_is_all_that_is_on_stdout(shell: dict[str, str]) -> None:
    done = bash("vitdeploy --show-completion", shell)
    assert done.stdout.startswith("_vitdeploy_completion()")
    assert done.stderr == ""


def test_completion_is_installed_for_the_next_shell(shell: dict[str, str]) -> None:
    assert "completion installed" in bash("vitdeploy --install-completion", shell).stdout
    done = bash(". ~/.bashrc; complete -p vitdeploy", shell)
    assert done.stdout == "complete -o default -F _vitdeploy_completion vitdeploy\n"
