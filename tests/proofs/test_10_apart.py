"""Point 10: foreign models are compiled and run in a process of their own, whose bad end is one line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import psutil
import pytest
import torch
from onnx import helper, numpy_helper

from vitdeploy import apart

_CHILD = "tests.proofs.crashing"


def _run(task: str, *, seconds: int = 60) -> bytes:
    return apart.run(_CHILD, task.encode(), seconds=seconds, memory=8 << 30)


def test_a_child_answers() -> None:
    assert _run("") == b"answer"


def test_what_an_engine_prints_is_no_answer() -> None:
    assert _run("print") == b"answer"


@pytest.mark.parametrize(
    ("task", "reason"),
    [
        ("segfault", "crashed with SIGSEGV"),
        ("memory", "needs more memory than it may take"),
        ("raise", "ended with 1: RuntimeError: unexpected"),
    ],
)
def test_a_bad_end_is_a_reason(task: str, reason: str) -> None:
    with pytest.raises(apart.Failed) as error:
        _run(task)
    assert error.value.reason == reason


def test_an_error_on_purpose_keeps_message_and_fix() -> None:
    with pytest.raises(apart.Refused) as error:
        _run("refuse")
    assert (error.value.message, error.value.fix) == ("it is odd", "Make it even.")


def test_an_endless_child_is_ended(tmp_path: Path) -> None:
    with pytest.raises(apart.Failed, match="took more than 3 s"):
        _run(f"endless {tmp_path / 'pid'}", seconds=3)
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_child_dies_with_its_parent(tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C ends it although native code would not notice, and so does the death of the parent."""
    task = f"endless {tmp_path / 'pid'}"
    script = f"from vitdeploy import apart; apart.run({_CHILD!r}, {task.encode()!r}, seconds=100, memory=8 << 30)"
    with subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL) as parent:
        deadline = time.monotonic() + 300
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        parent.send_signal(number)
        parent.wait(30)
    child = int((tmp_path / "pid").read_text())
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_child_imports_nothing_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -m` would: a received folder with a `numpy.py` in it would run."""
    for name in ("numpy", "pydantic", "typer", "vitdeploy"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('it ran')")
    monkeypatch.chdir(tmp_path)
    assert _run("") == b"answer"
    done = subprocess.run(apart.command("vitdeploy", "--version"), capture_output=True, text=True, check=False)
    assert done.stdout.startswith("vitdeploy ")


# ------------------------------------------------------------------------------------------------------ whole commands


def _vitdeploy(*words: object, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vitdeploy", *map(str, words), "--quiet"]
    return subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, check=False, timeout=300)


def _save(path: Path, *nodes: onnx.NodeProto, **constants: Any) -> Path:
    """A stem of patches, and behind it `nodes` from `patches` to `scores`."""
    kernel = np.random.default_rng(0).standard_normal((8, 3, 4, 4)).astype(np.float32)
    stem = helper.make_node("Conv", ["image", "kernel"], ["patches"], strides=[4, 4])
    image, scores = (helper.make_tensor_value_info(n, 1, s) for n, s in (("image", [1, 3, 16, 16]), ("scores", [1, 8])))
    constants = {"kernel": kernel, "axes": np.array([2, 3]), **constants}
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph([stem, *nodes], "g", [image], [scores], initializers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def _mean(name: str = "patches") -> onnx.NodeProto:
    return helper.make_node("ReduceMean", [name, "axes"], ["scores"], keepdims=0)


def _only_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 1, done.stderr
    assert len(lines) == 1, done.stderr
    return lines[0]


def test_a_graph_that_fills_the_memory_is_one_line(tmp_path: Path) -> None:
    """A constant of 4 TB from a file of 1 KB, as part of what is computed."""
    model = _save(
        tmp_path / "m.onnx",
        helper.make_node("ConstantOfShape", ["sizes"], ["zeros"]),
        helper.make_node("ReduceMean", ["zeros"], ["zero"], keepdims=0),
        helper.make_node("Add", ["patches", "zero"], ["sum"]),
        _mean("sum"),
        sizes=np.array([1 << 20, 1 << 20]),
    )
    line = _only_line(_vitdeploy("export", model, "--target", "onnxruntime", "-o", tmp_path / "a"))
    assert "m.onnx" in line
    assert not (tmp_path / "a").exists()


_TRIAL, _COMPILE = "vitdeploy.runtime.trial", "vitdeploy.pipeline.compile_apart"
_CRASH, _HANG = "os.kill(os.getpid(), signal.SIGSEGV)", "time.sleep(200)"


def _let_child(folder: Path, module: str, act: str) -> dict[str, str]:
    """Variables with which a child that runs `module` acts so at its start."""
    (folder / "sitecustomize.py").write_text(
        f"import os, signal, sys, time\nif {module!r} in sys.argv or {module!r} in sys.orig_argv:\n    {act}\n"
    )
    return {"PYTHONPATH": os.pathsep.join([str(folder), str(Path.cwd()), os.environ.get("PYTHONPATH", "")])}


def test_too_little_memory_for_the_trial_is_named(tmp_path: Path) -> None:
    model = _save(tmp_path / "m.onnx", _mean())
    variables = {"VITDEPLOY_MAX_TRIAL_BYTES": "100000000"}
    done = _vitdeploy("export", model, "--target", "onnxruntime", "-o", tmp_path / "a", **variables)
    assert "VITDEPLOY_MAX_TRIAL_BYTES" in _only_line(done)
    assert not (tmp_path / "a").exists()


def test_too_little_time_for_the_trial_is_named(tmp_path: Path) -> None:
    model = _save(tmp_path / "m.onnx", _mean())
    variables = {"VITDEPLOY_MAX_TRIAL_SECONDS": "1", **_let_child(tmp_path, _TRIAL, _HANG)}
    done = _vitdeploy("export", model, "--target", "onnxruntime", "-o", tmp_path / "a", **variables)
    assert "took more than 1 s. If you trust the file, raise the limit" in _only_line(done)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("module", "line"),
    [
        (_TRIAL, r"loading and running .*m.onnx crashed with SIGSEGV"),
        (_COMPILE, "OpenVINO on this graph crashed with SIGSEGV"),
    ],
)
def test_a_crash_of_an_engine_is_one_line(tmp_path: Path, module: str, line: str) -> None:
    """The signal that OpenVINO died of arrives in the process that compiles, and export reports it."""
    model = _save(tmp_path / "m.onnx", _mean())
    variables = _let_child(tmp_path, module, _CRASH)
    done = _vitdeploy("export", model, "--target", "openvino", "-o", tmp_path / "a", **variables)
    assert line.rpartition(".*")[2] in _only_line(done)
    assert not (tmp_path / "a").exists()


def test_a_received_bundle_is_compiled_apart(tmp_path: Path) -> None:
    model = _save(tmp_path / "m.onnx", _mean())
    done = _vitdeploy("export", model, "--target", "openvino", "-o", tmp_path / "a")
    assert done.returncode == 0, done.stderr
    variables = _let_child(tmp_path, _COMPILE, _CRASH)
    line = _only_line(_vitdeploy("compile", tmp_path / "a", "-o", tmp_path / "b", **variables))
    assert "OpenVINO on this graph crashed with SIGSEGV" in line


def test_a_program_of_torch_is_tried_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 4, 4), torch.nn.Flatten(), torch.nn.Linear(128, 4))
    torch.export.save(torch.export.export(module.eval(), (torch.randn(1, 3, 16, 16),)), tmp_path / "m.pt2")
    variables = {"VITDEPLOY_MAX_TRIAL_SECONDS": "1", **_let_child(tmp_path, _TRIAL, _HANG)}
    line = _only_line(
        _vitdeploy("export", tmp_path / "m.pt2", "--target", "openvino", "-o", tmp_path / "a", **variables)
    )
    assert "m.pt2 took more than 1 s" in line
