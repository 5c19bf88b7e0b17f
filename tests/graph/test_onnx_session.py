"""The ONNX Runtime session, and the comparison that every parity check rests on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.graphs import expected, images
from vitdeploy.errors import CompileError
from vitdeploy.graph.onnx_session import OnnxSession, compare
from vitdeploy.onnx_export import disagreement

A = np.arange(6, dtype=np.float32).reshape(2, 3)


def verdict(reference: dict[str, Any], other: dict[str, Any]) -> str | None:
    return disagreement(compare(reference, other, batch=2))


def test_equal_outputs_agree_by_name_or_by_order() -> None:
    assert verdict({"a": A, "b": -A}, {"b": -A, "a": A, "more": A}) is None
    assert verdict({"a": A, "b": -A}, {"x": A, "y": -A}) is None
    parity = compare({"a": A}, {"a": A}, batch=2)
    assert (parity.max_abs, parity.reference_max, parity.cosine, parity.batches) == (0, 5, pytest.approx(1), (2,))


@pytest.mark.parametrize(
    "other",
    [
        {},
        {"a": A},
        {"b": -A},
        {"a": A[:1], "b": -A},
        {"a": A, "b": A},
        {"a": A, "b": np.full_like(A, np.nan)},
        {"a": A, "b": np.full_like(A, np.inf)},
        {"a": A + np.array([0, 0, 0.01]), "b": -A},  # cosine is above 0.9999, one number is not
        {"a": 1.01 * A, "b": -1.01 * A},  # cosine is 1
    ],
)
def test_what_does_not_match_never_agrees(other: dict[str, Any]) -> None:
    assert verdict({"a": A, "b": -A}, other) is not None


def test_many_small_differences_beside_one_large_number_are_noticed() -> None:
    reference, other = np.zeros(1001, np.float32), np.full(1001, 0.9, np.float32)
    reference[0] = other[0] = 1000
    parity = compare({"a": reference}, {"a": other}, batch=1)
    assert parity.max_abs < 1e-3 * parity.reference_max
    assert "cosine" in (disagreement(parity) or "")


def test_comparing_nothing_is_no_agreement() -> None:
    assert verdict({}, {"a": A}) is not None
    assert verdict({"a": A}, {"a": np.zeros_like(A)}) is not None


def test_runs_a_file(tmp_path: Path, vit: Any, exported: Callable[[str], bytes]) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(exported("legacy-17"))
    with OnnxSession(path, threads=1) as session:
        outputs = session.run({"input": images()})
        assert session.threads == 1
    assert disagreement(compare(expected(vit, images()), outputs, batch=1)) is None


def test_a_graph_that_onnx_runtime_refuses_is_an_error_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(CompileError, match=r"ONNX Runtime [\d.]+ refuses model\.onnx"):
        OnnxSession(path)
