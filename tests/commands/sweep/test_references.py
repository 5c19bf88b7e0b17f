"""Saved answers of the reference are named by all that decides them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vitdeploy.artifact import Artifact
from vitdeploy.commands.sweep.naming import Naming
from vitdeploy.commands.sweep.references import References
from vitdeploy.frozen import replace
from vitdeploy.progress import Silent


@pytest.mark.parametrize(
    ("part", "change"),
    [("model", {"code": "0"}), ("model", {"digest": "0"}), ("preprocess", {"mean": (0.25,)})],
    ids=["code", "weights", "preprocessing"],
)
def test_another_model_has_answers_of_its_own(
    part: str, change: dict[str, Any], demo: Callable[..., Artifact], tmp_path: Path
) -> None:
    artifact = demo(target="onnxruntime", precision="int8-dynamic")
    manifest = artifact.manifest
    changed = replace(manifest, **{part: replace(getattr(manifest, part), **change)})
    other = dataclasses.replace(artifact, manifest=changed)
    references = References(tmp_path, Naming(), Silent())
    assert references.find_known(artifact) == references.find_known(artifact)
    assert references.find_known(artifact) != references.find_known(other)
