"""Models with norms of other kinds and with nn.Fold, exported to every target and compiled for real."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest

from tests.cli.conftest import run
from vitdeploy import targets
from vitdeploy.recipe import TargetSpec

MODEL = '''
import torch
from torch import nn
from torch.nn import functional as F


class Residual(nn.Module):
    def __init__(self, width, groups):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(groups, width)

    def forward(self, x):
        return torch.relu(x + self.norm(self.conv(x)))


class Hybrid(nn.Module):
    """Two residual blocks, overlapping patches that are put together again, and an attention between RMS norms."""

    def __init__(self, unknown=False, width=32):
        super().__init__()
        self.unknown = unknown
        self.stem, self.blocks = nn.Conv2d(3, width, 4, 4), nn.Sequential(Residual(width, 8), Residual(width, 8))
        self.before, self.after = nn.RMSNorm(width), nn.RMSNorm(width)
        self.qkv, self.proj, self.head = nn.Linear(width, 3 * width), nn.Linear(width, width), nn.Linear(width, 10)

    def forward(self, image):
        x = self.blocks(self.stem(image))
        x = x + F.fold(F.unfold(x, 3, padding=1, stride=2), x.shape[-2:], 3, padding=1, stride=2)
        if self.unknown:
            x = x * torch.linalg.det(x[:, :, :2, :2])[..., None, None]
        x = x.flatten(2).transpose(1, 2)
        q, k, v = self.qkv(self.before(x)).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return self.head(self.after(x).mean(1))


def build(unknown=False):
    torch.manual_seed(0)
    model = Hybrid(unknown).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1 if parameter.ndim > 1 else 1.0)
    return model


def lacking():
    return build(unknown=True)
'''

TARGETS = {"openvino": "fp32", "onnxruntime": "fp32", "tensorrt-rtx": "fp16", "tensorrt": "fp16"}
LOWERED = {"lower-group-norm": 2, "lower-rms-norm": 2}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "hybrid.py"
    path.write_text(MODEL)
    return path


def is_here(target: str) -> bool:
    missing = targets.find(TargetSpec(kind=target)).unavailable()
    return missing is None or target == "tensorrt"  # TensorRT's bundle is made anywhere


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_every_target_runs_a_hybrid(target: str, model: Path, tmp_path: Path) -> None:
    """In a process of its own: with GroupNormalization in the graph, OpenVINO 2026.4.1 ends it with SIGSEGV."""
    if not is_here(target):
        pytest.skip(f"{target} is not available here")
    words = ["--target", target, "--precision", TARGETS[target], "--image-size", "32x32", "-o", str(tmp_path / "out")]
    command = [sys.executable, "-m", "vitdeploy", "export", f"python:{model}:build", *words, "--no-cache"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    fired = {record["name"]: record["fired"] for record in manifest["passes"]}
    assert {name: fired[name] for name in LOWERED} == LOWERED
    assert fired.get("lower-col2im", 0) == (1 if "tensorrt" in target else 0)
    graph = onnx.load(tmp_path / "out" / "graph.onnx", load_external_data=False)
    assert {entry.domain: entry.version for entry in graph.opset_import}[""] == 20  # as JetPack 6 reads it
    kinds = {node.op_type for node in graph.graph.node}
    assert not kinds & {"GroupNormalization", "RMSNormalization"}
    assert ("Col2Im" in kinds) == ("tensorrt" not in target)


@pytest.mark.slow
def test_an_operator_that_tensorrt_lacks_is_named_before_compiling(model: Path, tmp_path: Path) -> None:
    ended = run(
        "export", f"python:{model}:lacking", "--target", "tensorrt", "--image-size", "32x32", "-o", tmp_path / "out"
    )
    assert ended.code == 1
    assert "tensorrt has no Det (torch.linalg.det), which node " in ended.error
    assert not (tmp_path / "out").exists()


NECK = """
import torch
from torch import nn


class Neck(nn.Module):
    def __init__(self, groups):
        super().__init__()
        self.stem, self.conv, self.groups = nn.Conv2d(3, 16, 4, 4), nn.Conv2d(16, 8, 3, padding=1), groups
        self.norm = nn.LayerNorm((2, 8) if groups else 16)

    def forward(self, image):
        x = self.stem(image).permute(0, 2, 3, 1)
        x = self.norm(x.unflatten(-1, (2, 8))).flatten(-2) if self.groups else self.norm(x)
        return self.conv(nn.functional.silu(x.permute(0, 3, 1, 2)))


def build(groups=False):
    torch.manual_seed(0)
    model = Neck(groups).eval()
    nn.init.normal_(model.norm.weight)
    nn.init.normal_(model.norm.bias)
    return model


def parts():
    return build(groups=True)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.one, self.two = nn.Conv2d(3, 16, 4, 4), nn.LayerNorm(16), nn.LayerNorm(16)

    def forward(self, image):
        x = self.stem(image).flatten(2).transpose(1, 2)
        return nn.functional.silu(self.one(x)), torch.tanh(self.two(x))


def twice():
    torch.manual_seed(0)
    model = Twice().eval()
    for parameter in (*model.one.parameters(), *model.two.parameters()):
        nn.init.normal_(parameter)
    return model
"""


def audit_norms(factory: str, tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "neck.py").write_text(NECK)
    spec, out = f"python:{tmp_path / 'neck.py'}:{factory}", tmp_path / "out"
    done = run("export", spec, "--target", "openvino", "--image-size", "64x64", "-o", str(out))
    assert done.code == 0, done.err
    norms: dict[str, Any] = json.loads(run("inspect", str(out), "--json").out)["layernorm"]
    return norms


def test_a_norm_of_channels_between_convolutions_is_one_kernel_in_openvino(tmp_path: Path) -> None:
    """As in the neck of RF-DETR, which OpenVINO computes in parts as it is."""
    assert audit_norms("build", tmp_path) == {"sites": 1, "fused": 1, "unfused": []}


def test_two_norms_of_one_tensor_share_a_kernel_in_openvino(tmp_path: Path) -> None:
    """As a feature that is read and the next block, which begin with a norm each."""
    assert audit_norms("twice", tmp_path) == {"sites": 2, "fused": 2, "unfused": []}


def test_a_norm_that_openvino_computes_in_parts_says_how(tmp_path: Path) -> None:
    layernorm = audit_norms("parts", tmp_path)
    assert (layernorm["sites"], layernorm["fused"]) == (1, 0)
    assert layernorm["unfused"][0]["reason"].startswith("runs as Subgraph")
