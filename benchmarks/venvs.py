"""Virtual environments for tools whose pinned dependencies clash with those of vitdeploy or of each other."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from vitdeploy import telemetry


class ToolError(Exception):
    """A tool cannot be installed, or it fails. The message is the last line that it printed."""


def read_pins(name: str) -> list[str]:
    """Read the pinned packages of the environment `name`."""
    lines = _requirements(name).read_text(encoding="utf-8").splitlines()
    return [line.partition(" ")[0] for line in lines if not line.startswith("#")]


def run_in_venv(name: str, script: Path, *arguments: Path | str) -> None:
    """Run a script in the environment `name`, which is made first if it does not exist.

    Raises:
        ToolError: pip cannot make the environment, or the script fails.
    """
    _run_quietly([make_venv(name), "-P", script, *arguments])  # -P: modules beside the script must not hide packages


def make_venv(name: str) -> Path:
    """Return the Python of the environment `name`, which is made first if it does not exist.

    Raises:
        ToolError: pip cannot make it.
    """
    home = Path(tempfile.gettempdir()) / f"vitdeploy-venv-{name}"
    python = home / "bin" / "python"
    if not (home / "complete").exists():
        shutil.rmtree(home, ignore_errors=True)
        _run_quietly([sys.executable, "-m", "venv", home])
        _run_quietly([python, "-m", "pip", "install", "-q", "-r", _requirements(name)])
        (home / "complete").touch()
    return python


def _requirements(name: str) -> Path:
    return Path(__file__).with_name(f"requirements-{name}.txt")


def _run_quietly(command: list[Path | str]) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=telemetry.environment_without())
    if done.returncode:
        messages = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise ToolError(messages[-1] if messages else f"{command[0]} ended with {done.returncode}")
