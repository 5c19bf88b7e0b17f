"""A signal ends a command with exit code 130, wherever it arrives."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="there is no SIGHUP here")

START = """
import os, signal, sys, time
import typer
from vitdeploy.cli import command, signals
app = typer.Typer()
def hang_up():
    os.kill(os.getpid(), signal.SIGHUP)
"""
END = """
@app.callback()
def main() -> None: ...
command.command(app)(work)
command.run_app(app)
"""


def run(code: str, folder: Path, modules: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a command `work` in a process of its own, with these modules beside it."""
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(text)
    script = folder / "script.py"
    script.write_text(START + code + END)
    return subprocess.run(
        [sys.executable, script, "work"], env={"PYTHONPATH": f"{ROOT}:{folder}", "PATH": ""}, capture_output=True,
        text=True, timeout=300, check=False,
    )  # fmt: skip


def test_an_import_is_not_interrupted(tmp_path: Path) -> None:
    code = """
def work(console) -> None:
    import imported
    print(imported.done, flush=True)
    time.sleep(60)
"""
    imported = "import __main__, time\n__main__.hang_up()\ntime.sleep(0.2)\ndone = 'imported whole'\n"
    ended = run(code, tmp_path, {"imported": imported})
    assert ended.returncode == 130, ended.stderr
    assert "imported whole" in ended.stderr
    assert ended.stderr.splitlines()[-1].startswith("note: interrupted")


def test_an_import_that_does_not_end_is_interrupted(tmp_path: Path) -> None:
    code = "signals._LONGEST_IMPORT = 0.3\ndef work(console) -> None:\n    import endless\n"
    ended = run(code, tmp_path, {"endless": "import __main__, time\n__main__.hang_up()\ntime.sleep(60)\n"})
    assert ended.returncode == 130, ended.stderr


@pytest.mark.parametrize("function", ["__call__", "__setattr__"])
def test_an_extension_that_is_being_initialized_does_not_abort(tmp_path: Path, function: str) -> None:
    """The `onnx` package makes enumerations while it is initialized, and crashes if Python raises."""
    code = f"""
def profile(frame, event, function):
    global inside
    if event == "c_call" and function.__name__ == "exec_dynamic":
        inside = True
    elif event == "c_return" and function.__name__ == "exec_dynamic":
        inside = False
    elif event == "call" and inside and frame.f_code.co_name == {function!r}:
        sys.setprofile(None)
        print("in the extension", flush=True)
        hang_up()
inside = False
def work(console) -> None:
    sys.setprofile(profile)
    import onnx
    time.sleep(60)
"""
    ended = run(code, tmp_path, {})
    assert ended.returncode == 130, ended.stderr
    assert "in the extension" in ended.stderr


def test_an_error_that_an_extension_makes_of_an_interrupt_is_none(tmp_path: Path) -> None:
    code = """
def work(console) -> None:
    from pydantic import BaseModel, model_serializer
    class Slow(BaseModel):
        @model_serializer
        def write(self):
            hang_up()
            time.sleep(60)
    Slow().model_dump_json()
"""
    ended = run(code, tmp_path, {})
    assert ended.returncode == 130, ended.stderr
    assert "error" not in ended.stderr


def test_a_signal_before_a_command_begins_ends_with_its_exit_code(tmp_path: Path) -> None:
    code = "def work(console) -> None: ...\n"
    callback = "@app.callback()\ndef first() -> None:\n    hang_up()\n    time.sleep(60)\n"
    script = tmp_path / "script.py"
    script.write_text(START + code + callback + "command.command(app)(work)\ncommand.run_app(app)\n")
    ended = subprocess.run(
        [sys.executable, script, "work"], env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip
    assert ended.returncode == 130, ended.stderr
    assert "Traceback" not in ended.stderr
