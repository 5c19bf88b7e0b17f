"""The same images as a folder, as `.tar` shards and as Parquet give the same evaluation and the same INT8."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.cli.conftest import run
from tests.cli.test_contract import answer
from tests.data.shards import pack_parquet, pack_tars
from vitdeploy.artifact import Artifact
from vitdeploy.commands.evaluate.evaluate import evaluate
from vitdeploy.commands.sweep.naming import Naming
from vitdeploy.data.array_files import read_npz
from vitdeploy.pipeline.calibration import GraphInputs, open_images
from vitdeploy.progress import Silent
from vitdeploy.recipe import DataSpec

PER_CLASS = 12
DIGITS = Path(__file__).parents[3] / "vitdeploy" / "assets" / "digits.npz"


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The first test images of each digit, in every form. One of them is damaged."""
    root = tmp_path_factory.mktemp("forms")
    arrays = read_npz(DIGITS, "")
    images, labels = arrays["images"][arrays["test"]], arrays["labels"][arrays["test"]]
    for digit in range(10):
        folder = root / "folder" / str(digit)
        folder.mkdir(parents=True)
        for number, image in enumerate(images[labels == digit][:PER_CLASS]):
            Image.fromarray(np.squeeze(image)).save(folder / f"{number:02}.png")
    (root / "folder" / "7" / "03.png").write_bytes(b"no image")
    pack_tars(root / "folder", root / "shards", each=50)
    pack_parquet(root / "folder", root / "files", each=70)
    tars = root / "shards" / "val-{000..002}.tar"
    return {"folder": str(root / "folder"), "tar": str(tars), "parquet": str(root / "files")}


def _without_place(evaluation: dict[str, Any]) -> dict[str, Any]:
    """An evaluation without time and place."""
    return {k: v for k, v in evaluation.items() if k not in ("data", "provenance")}


@pytest.mark.slow
def test_all_forms_give_the_same_evaluation(
    demo: Callable[..., Artifact], copy: Callable[..., Artifact], forms: dict[str, str]
) -> None:
    artifact = copy(demo(target="onnxruntime", precision="int8-dynamic"))
    answers, files = {}, {}
    for name, spec in forms.items():
        answers[name] = evaluate(artifact, spec, Silent()).model_dump(mode="json")
        assert answers[name]["data"] == spec
        files[name] = [(artifact.path / file).read_bytes() for file in ("eval.samples.npz", "eval.flips.npz")]
    whole = _without_place(answers["folder"])
    assert whole.items() >= {"n": 119, "skipped": 1, "available": 120, "order": "indices"}.items()
    for name in ("tar", "parquet"):
        assert json.dumps(_without_place(answers[name])) == json.dumps(whole)
        assert files[name] == files["folder"]
    limited = answer(run("eval", artifact.path, "--data", forms["parquet"], "--limit", 30, "--json"))
    assert limited["n"] == 30
    assert limited["data_digest"] == whole["data_digest"]


def test_all_forms_calibrate_the_same(demo: Callable[..., Artifact], forms: dict[str, str]) -> None:
    preprocess = demo(target="onnxruntime", precision="int8-dynamic").manifest.preprocess
    read = []
    for spec in forms.values():
        inputs = GraphInputs("x", preprocess, "normalized")
        calibration, judge = open_images(DataSpec(calibration=spec, calibration_images=64), None, inputs, 8)
        assert judge is not None
        assert calibration.images == 64
        batches = [np.asarray(batch).tobytes() for batch in calibration.batches()]
        read.append((calibration.digest, batches, [batch.labels for batch in judge()]))
    assert read[0] == read[1] == read[2]


def test_a_pattern_names_trials_by_the_files(forms: dict[str, str]) -> None:
    pattern = forms["tar"]
    before = Naming().inputs_digest(pattern)
    assert before == Naming().inputs_digest(pattern)
    shard = Path(pattern).parent / "val-001.tar"
    content = shard.read_bytes()
    try:
        shard.write_bytes(content[:-512])
        assert Naming().inputs_digest(pattern) != before
    finally:
        shard.write_bytes(content)
