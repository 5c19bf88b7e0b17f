"""One artifact for each target, exported once, and two ways to run the command line: in this process and in its own."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save
from PIL import Image
from typer.testing import CliRunner

from vitdeploy.artifact import Artifact
from vitdeploy.cli import app

os.environ["HF_HUB_OFFLINE"] = "1"


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one `error:` line, which is the only one, and stands without a traceback."""
        lines = [line for line in self.err.splitlines() if line.startswith("error:")]
        assert len(lines) == 1, self.err
        assert "Traceback" not in self.err
        assert not lines[0].startswith("error: unexpected"), lines[0]
        assert self.err.splitlines()[-1] == lines[0]
        return lines[0]


def run(*words: object) -> Ended:
    """The command line in this process: its parser, its commands, its errors."""
    found = CliRunner().invoke(app, [str(word) for word in words])
    return Ended(found.exit_code, found.stdout, found.stderr)


def start(*words: object, ignore_ctrl_c: bool = False) -> subprocess.Popen[str]:
    """The command line in a process of its own, which takes Ctrl-C even if this one was started without it."""
    handler = signal.SIG_IGN if ignore_ctrl_c else signal.SIG_DFL
    return subprocess.Popen(
        [sys.executable, "-m", "vitdeploy", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: (signal.signal(signal.SIGINT, handler), None)[1],
    )


def spawn(*words: object) -> Ended:
    """The command line in a process of its own, waited for."""
    process = start(*words)
    out, err = process.communicate(timeout=300)
    return Ended(process.returncode, out, err)


def listing(folder: Path) -> list[str]:
    """Everything below a folder."""
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))


def exported(folder: Path, line: str) -> Path:
    """The artifact that this export makes."""
    found = run("export", *shlex.split(line), "-o", folder / "artifact")
    assert found.code == 0, found.err
    return folder / "artifact"


def small_cnn(path: Path) -> Path:
    """Convolution, ReLU, global mean, linear: nothing of a ViT."""
    rng = np.random.default_rng(0)
    weights = {"k": (8, 3, 3, 3), "w": (8, 10)}
    nodes = [
        helper.make_node("Conv", ["image", "k"], ["c"], kernel_shape=[3, 3]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        "cnn",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 16, 16])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 10])],
        [numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), n) for n, s in weights.items()],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


@pytest.fixture(scope="session")
def openvino_int8(demo: Callable[..., Artifact]) -> Path:
    """Not to be changed: take a copy."""
    return demo(target="openvino", precision="int8").path


@pytest.fixture(scope="session")
def onnxruntime_fp32(demo: Callable[..., Artifact]) -> Path:
    """Not to be changed: take a copy."""
    return demo(target="onnxruntime").path


@pytest.fixture
def copy(tmp_path: Path) -> Callable[[Path], Path]:
    """A copy of an artifact that a test may change."""

    def make(artifact: Path) -> Path:
        return Path(shutil.copytree(artifact, tmp_path / "in" / artifact.name))

    return make


@pytest.fixture
def images(tmp_path: Path) -> Callable[..., Path]:
    """A folder of small grey images, in sub-folders where classes are named."""

    def make(count: int = 3, *, classes: tuple[str, ...] = ()) -> Path:
        root = tmp_path / "images"
        for index, name in enumerate(classes or (".",)):
            (root / name).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                pixels = np.random.default_rng(1000 * index + number).integers(0, 255, (32, 32), dtype=np.uint8)
                Image.fromarray(pixels).save(root / name / f"{number}.png")
        return root

    return make


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Commands run in an empty folder, where whatever they leave behind is seen."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder
