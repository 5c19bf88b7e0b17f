"""Arrays that a bundle brings to a device: what is not theirs is one line of error, not a traceback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitdeploy import tasks
from vitdeploy.errors import DataError
from vitdeploy.pipeline.examples import load_examples
from vitdeploy.pipeline.judge_data import load_judge_data
from vitdeploy.recipe import Preprocess, TaskSpec

PREPROCESS = Preprocess(size=(8, 8), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
EXAMPLE: dict[str, Any] = {
    "input": np.zeros((1, 3, 8, 8), np.float32),
    "output.logits": np.zeros((1, 10), np.float32),
    "selected.logits": np.array(1),
    "edges0": np.array([[1, 2]]),
    "case1.pixels": np.zeros((1, 3, 8, 8), np.uint8),
    "case1.output.logits": np.zeros((1, 10), np.float32),
}


def test_an_example_is_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "example.npz", **EXAMPLE)
    first, second = load_examples(tmp_path / "example.npz", PREPROCESS, "normalized")
    assert first.image.shape == second.image.shape == (1, 3, 8, 8)


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("selected.logits", np.zeros(3)),
        ("selected.logits", np.array("x")),
        ("selected.logits", np.array(np.nan)),
        ("selected.logits", np.array(np.inf)),
        ("edges0", np.array(1)),
        ("edges0", np.array([[1, 2, 3]])),
        ("case1.pixels", np.array(["x"])),
    ],
)
def test_an_example_that_is_damaged_is_refused(tmp_path: Path, name: str, array: Any) -> None:
    np.savez(tmp_path / "example.npz", **EXAMPLE | {name: array})
    with pytest.raises(DataError, match="is damaged"):
        load_examples(tmp_path / "example.npz", PREPROCESS, "normalized")


@pytest.mark.parametrize("dtype", [[("a", "f4")], "U3", "M8[s]"], ids=str)
def test_judge_data_whose_outputs_are_no_numbers_is_refused(tmp_path: Path, dtype: Any) -> None:
    arrays: dict[str, Any] = {"task": np.array("classification"), "pixels": np.zeros((2, 3, 8, 8), np.uint8)}
    np.savez(tmp_path / "judge.npz", **arrays, **{"output.logits": np.zeros((2, 10), dtype)})
    with pytest.raises(DataError, match="is damaged"):
        load_judge_data(tmp_path / "judge.npz", tasks.find(TaskSpec(kind="classification")), (3, 8, 8))
