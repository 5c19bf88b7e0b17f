"""Weight-only precisions: fewer bits on disk, numbers near the model's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from tests.graphs import apply, images, raised, run, types
from vitdeploy.errors import QuantizeError
from vitdeploy.graph.dialect import Dialect
from vitdeploy.passes.remove_dead import RemoveDead
from vitdeploy.precision import quantize
from vitdeploy.progress import Silent
from vitdeploy.recipe import PrecisionSpec


@pytest.mark.parametrize(
    ("kind", "group", "stored"),
    [("int8-weights", None, "INT8"), ("int8-weights", 32, "INT8"), ("int4-weights", 32, "UINT4")],
)
def test_the_vit_with_stored_weights(
    kind: Any, group: int | None, stored: str, vit: Any, exported: Callable[[str], bytes]
) -> None:
    graph, structure, _ = raised(exported("dynamo"))
    reference = run(graph, images())["output_0"]
    before = graph.weight_bytes()
    dialect = Dialect(20, "primitives", int8_weight_group=group)
    precision = PrecisionSpec(kind=kind, keep=("head",), group=32)
    made = quantize(graph, structure, precision, dialect, None, Silent())
    graph = made.graph
    assert made.record is not None
    assert types(graph).count("DequantizeLinear") == 8 == made.record.quantized
    codes = [n.inputs[0] for n in graph.nodes if n.op_type == "DequantizeLinear"]
    assert {v.dtype for v in codes if v is not None} == {ir.DataType[stored]}
    assert made.placement["head"].rule == "keep: head"
    apply(RemoveDead(), graph)  # the old weights
    assert graph.weight_bytes() < (0.5 if kind == "int8-weights" else 0.4) * before
    y = run(graph, images())["output_0"]
    error = np.abs(y - reference).max() / np.abs(reference).max()
    assert 0 < error < (0.02 if kind == "int8-weights" else 0.3)


def test_a_keep_entry_that_matches_nothing_is_refused(exported: Callable[[str], bytes]) -> None:
    graph, structure, _ = raised(exported("dynamo"))
    spec = PrecisionSpec(kind="int8-weights", keep=("haed",))
    with pytest.raises(QuantizeError, match="'haed' matches no linear"):
        quantize(graph, structure, spec, Dialect(20, "primitives"), None, Silent())
