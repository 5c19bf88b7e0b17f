"""Every GELU is found in what was compiled, inside the kernel of a linear or as a kernel of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import run

BLOCK = """
import torch
from torch import nn

class Mlps(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 8, 8)
        self.exact = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))
        self.tanh = nn.Sequential(nn.Linear(32, 64), nn.GELU(approximate="tanh"), nn.Linear(64, 32))

    def forward(self, image):
        x = self.stem(image).flatten(2).transpose(1, 2)
        x = x + self.exact(x)
        return (x + self.tanh(x)).mean(1)

def build():
    torch.manual_seed(0)
    return Mlps().eval()
"""


@pytest.mark.parametrize("precision", ["fp32", "int8-dynamic"])
@pytest.mark.parametrize("target", ["openvino", "onnxruntime"])
def test_gelus_are_one_kernel(target: str, precision: str, tmp_path: Path) -> None:
    (tmp_path / "mlps.py").write_text(BLOCK)
    spec, out = f"python:{tmp_path / 'mlps.py'}:build", tmp_path / "out"
    words = ("export", spec, "--target", target, "--precision", precision, "--image-size", "64x64", "-o", str(out))
    assert (done := run(*words)).code == 0, done.err
    audit = json.loads(run("inspect", str(out), "--json").out)
    assert audit["gelu"] == {"sites": 2, "fused": 2, "unfused": []}
