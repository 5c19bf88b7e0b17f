"""The whole way: over a real sshd to a vitdeploy without torch, and back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.conftest import listing, run
from tests.cli.test_contract import answer
from tests.remote.conftest import Far, on
from vitdeploy import artifact as artifacts
from vitdeploy.evidence import Audit, Bench, Eval

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("near")]


def test_compile_brings_the_artifact_back_into_the_bundles_place(
    far: Far, bundle: Path, copy: Callable[[Path], Path]
) -> None:
    here = copy(bundle)
    found = on(far, "compile", here)
    compiled = answer(found)
    assert (compiled["artifact"], compiled["stage"]) == (str(here), "artifact")
    assert any(note.startswith(f"compiled on {far.url}") for note in compiled["notes"])
    assert f"{far.url}: ✓ Compile with openvino" in found.err, "what is said there is shown here"
    loaded = artifacts.load(here)
    assert {"model.xml", "model.bin"} <= {entry.path for entry in loaded.manifest.files}
    audit, _ = loaded.read_evidence(Audit)
    assert audit is not None
    assert audit.attention.evidence == "compiled"
    assert audit.attention.fused == audit.attention.sites == 4
    assert "torch" not in loaded.manifest.target.model_dump_json()
    assert (here / "graph.onnx").read_bytes() == (bundle / "graph.onnx").read_bytes()
