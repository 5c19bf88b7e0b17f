"""Environments of their own for tools whose pins clash with vitdeploy's, or with one another's."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path


class ToolError(Exception):
    """A tool that cannot be installed or does not do its work; the message is the last line that it said."""


def requirements(name: str) -> Path:
    """What the environment `name` holds."""
    return Path(__file__).with_name(f"requirements-{name}.txt")


def packages(name: str) -> list[str]:
    """The pins of the environment `name`."""
    lines = requirements(name).read_text(encoding="utf-8").splitlines()
    return [line.partition(" ")[0] for line in lines if not line.startswith("#")]


def run_in(name: str, script: Path, *arguments: Path | str) -> None:
    """Run a script in the environment `name`, which is made when it is not there yet.

    Raises:
        ToolError: pip cannot make it, or the script fails.
    """
    home = Path(tempfile.gettempdir()) / f"vitdeploy-venv-{name}"
    python = home / "bin" / "python"
    if not (home / "complete").exists():
        shutil.rmtree(home, ignore_errors=True)
        _quiet([sys.executable, "-m", "venv", home])
        _quiet([python, "-m", "pip", "install", "-q", "-r", requirements(name)])
        (home / "complete").touch()
    _quiet([python, "-P", script, *arguments])  # -P: modules beside the script do not hide packages


def _quiet(command: list[Path | str]) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise ToolError(said[-1] if said else f"{command[0]} ended with {done.returncode}")
