"""Each output is judged by its own scale; the limits of a lower precision come from its graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vitdeploy.artifact import OutputParity, Parity
from vitdeploy.graph.parity import Tolerance, compare, explain_difference, float32_limit, lowered_limits, merge

LARGE = 5e4 * np.random.default_rng(0).standard_normal(1000).astype(np.float32)
SMALL = np.random.default_rng(1).standard_normal(10).astype(np.float32)


def judge(reference: dict[str, Any], other: dict[str, Any]) -> str | None:
    return explain_difference(compare(reference, other, batch=1, where="one image in a batch of 1"))


def test_small_logits_of_the_opposite_sign_beside_large_features() -> None:
    reason = judge({"logits": SMALL, "features": LARGE}, {"logits": -SMALL, "features": LARGE})
    assert reason is not None
    assert "cosine -1.000000" in reason
    assert "in output 'logits' on one image in a batch of 1" in reason


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 1e6])
def test_the_limit_is_a_thousandth_of_the_output_itself(scale: float) -> None:
    reference, sign = scale * SMALL, np.where(np.arange(10) % 2, 1, -1)
    largest = float(np.abs(reference).max())
    assert judge({"a": reference}, {"a": reference + 0.0009 * largest * sign}) is None
    if largest > 1e-4:
        assert judge({"a": reference}, {"a": reference + 0.0011 * largest * sign}) is not None
    assert judge({"a": reference}, {"a": -reference}) is not None


def test_differences_of_rounding_do_not_count_where_nearly_everything_cancels() -> None:
    assert judge({"a": 1e-9 * SMALL}, {"a": -1e-9 * SMALL}) is None
    assert judge({"a": 0 * SMALL}, {"a": 1e-8 * SMALL}) is None
    assert judge({"a": 0 * SMALL}, {"a": 1e-3 * SMALL}) is not None


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8, bool])
def test_of_integers_the_share_that_differs_counts_not_how_much(dtype: Any) -> None:
    reference = (np.arange(1000) % 2).astype(dtype)
    few, many = reference.copy(), reference.copy()
    few[:9], many[:20] = 1 - reference[:9], 1 - reference[:20]
    assert judge({"a": reference}, {"a": few}) is None
    assert "2 % of the values differ in output 'a'" in (judge({"a": reference}, {"a": many}) or "")
    (output,) = compare({"a": reference}, {"a": many}, batch=1).outputs
    assert (output.max_abs, output.cosine, output.discrete) == (0.02, 0.98, True)


def test_one_wrong_class_is_a_difference() -> None:
    assert judge({"label": np.array([3])}, {"label": np.array([4])}) is not None


def test_what_cannot_be_compared_says_why() -> None:
    nan = np.where(np.arange(10) == 3, np.nan, SMALL)
    assert judge({"a": SMALL}, {"a": nan}) == "output 'a' has NaN or infinity on one image in a batch of 1"
    assert "has shape [5] instead of [10]" in (judge({"a": SMALL}, {"a": SMALL[:5]}) or "")
    assert "there are 1 outputs instead of 2" in (judge({"a": SMALL, "b": SMALL}, {"a": SMALL}) or "")
    assert "nothing to compare" in (judge({"a": SMALL[:0]}, {"a": SMALL[:0]}) or "")


def test_the_worst_of_each_output_over_all_images() -> None:
    good = compare({"a": SMALL, "b": LARGE}, {"a": SMALL, "b": LARGE}, batch=1, where="here")
    bad = compare({"a": 2 * SMALL, "b": LARGE}, {"a": 2.1 * SMALL, "b": LARGE}, batch=3, where="there")
    both = merge([good, bad, good])
    assert both.batches == (1, 3, 1)
    assert [output.where for output in both.outputs] == ["there", "here"]
    assert both.max_abs == pytest.approx(0.1 * np.abs(SMALL).max(), rel=1e-4)
    assert len(both.cases) == 3
    broken = compare({"a": SMALL}, {"a": SMALL * np.nan}, batch=2)
    assert not merge([good, broken]).finite
    assert explain_difference(merge([good, broken])) == "output 'a' has NaN or infinity"


def output(difference: float, cosine: float = 1.0) -> OutputParity:
    return OutputParity(name="a", max_abs=difference, reference_max=1.0, cosine=cosine)


def lowered_limit(emulated: OutputParity, kinds: list[str]) -> Tolerance:
    return lowered_limits([[emulated]], kinds)[0][0]


def test_rounding_that_strikes_another_image_is_no_error() -> None:
    """Two logits of CvT in INT8: by chance the graph lost little on the second image, and OpenVINO on the last."""
    graph, engine = (0.01466, 0.00457, 0.02023, 0.01003), (0.01617, 0.01809, 0.01888, 0.00511)
    limits = [limit for (limit,) in lowered_limits([[output(loss)] for loss in graph], ["fp32"])]
    assert all(loss < limit.difference for loss, limit in zip(engine, limits, strict=True))
    assert limits[2].difference > limits[1].difference, "an image on which the graph loses more has a looser limit"
    assert limits[1].difference < 3 * 0.014, "a loss of three times the usual one is an error on every image"


def test_the_limit_of_a_lower_precision_grows_with_what_its_graph_loses() -> None:
    exact, lossy = lowered_limit(output(0.0), ["fp32"]), lowered_limit(output(0.1, 0.99), ["fp32"])
    assert exact.difference >= float32_limit(output(0)).difference
    assert 0.1 < lossy.difference < 0.3
    assert 0.01 < lossy.distance < 0.1


def test_types_that_only_the_engine_knows_add_to_the_limit() -> None:
    limits = [lowered_limit(output(0.0), kinds).difference for kinds in (["fp32"], ["fp16"], ["fp32", "bf16"])]
    assert limits == sorted(limits)
    assert limits[-1] < 0.1
    assert float32_limit(output(0.0), kind="tf32").difference > 1.1e-3, "TF32 alone gives that much"


def test_a_parity_of_an_older_manifest_is_read() -> None:
    parity = Parity.model_validate_json(
        '{"max_abs": 0.1, "reference_max": 2.0, "cosine": 0.99, "finite": true, "batches": [1]}'
    )
    assert (parity.outputs, parity.cases) == ((), ())
