"""An export names the outputs for which parity proves nothing; debug compares where a part reads the image."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.cli.conftest import run

MODEL = '''
import torch
from torch import nn


class Small(nn.Module):
    """Without attention, so one part from the image to the outputs."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 8, 8), nn.Linear(8, 4)
        self.anchors = nn.Parameter(torch.rand(1, 5))

    def forward(self, image):
        x = self.head(self.stem(image).flatten(2).mean(-1))
        return {"logits": x, "anchors": self.anchors.expand(len(image), -1), "denormal": x * 1e-20 * 1e-20}


def build():
    torch.manual_seed(0)
    return Small().eval()
'''


@pytest.mark.slow
def test_blind_and_denormal_outputs_are_doubts_of_the_artifact(tmp_path: Path) -> None:
    (tmp_path / "small.py").write_text(MODEL)
    np.savez(tmp_path / "data.npz", images=np.random.default_rng(0).integers(0, 255, (2, 32, 32, 3), np.uint8))
    out, spec = tmp_path / "out", f"python:{tmp_path / 'small.py'}:build"
    ended = run("export", spec, "--target", "openvino", "--image-size", "32x32", "-o", out, "--json", "--no-cache")
    assert ended.code == 0, ended.err
    notes = [note for note in json.loads(ended.out)["notes"] if "parity proves nothing" in note]
    manifest = json.loads((out / "manifest.json").read_text())
    audit = json.loads((out / "audit.json").read_text())
    for doubts in (notes, manifest["doubts"], audit["doubts"]):
        about = {doubt.removeprefix("doubt: ").split(" ")[1] for doubt in doubts}
        assert about - {"'denormal'"} == {"'anchors'"}, doubts  # whether an engine flushes is its own affair
    ended = run("debug", out, "--data", tmp_path / "data.npz", "--model", spec, "--json")
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    assert found["block"] is None
    assert [row["name"] for row in found["blocks"]] == ["model"]
    assert {row["name"] for row in found["layers"] if row["sqnr_db"] is not None} >= {"model.stem", "model.head"}
