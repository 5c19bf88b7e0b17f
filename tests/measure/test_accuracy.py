import numpy as np
import pytest

from vitdeploy.errors import MeasureError
from vitdeploy.evidence import Eval
from vitdeploy.measure.accuracy import paired

TOP1 = np.array([1, 1, 1, 1, 0, 0, 1, 1, 1, 1])
OTHER = np.array([1, 1, 0, 0, 0, 1, 1, 1, 1, 1])
CLASSES = np.arange(10)


def test_metrics_in_points_with_flips_and_agreement() -> None:
    predicted = CLASSES.copy()
    predicted[[2, 3, 4, 5]] = 99  # sample 4 is wrong on both sides, in different ways: a flip that top-1 hides
    ones = np.ones(10)
    found = paired("classification", {"top1": TOP1, "top5": ones}, {"top1": OTHER, "top5": ones}, CLASSES, predicted)
    top1 = found.metrics["top1"]
    assert (top1.reference, top1.deployed) == (pytest.approx(80), pytest.approx(70))
    assert (top1.drop, top1.unit) == (pytest.approx(10), "points")
    assert top1.ci95[0] < top1.lower95 < 10 < top1.upper95 < top1.ci95[1]
    assert (found.n, found.flips, found.agreement) == (10, 4, pytest.approx(0.6))
    assert found.discordance == pytest.approx(0.3)
    assert found.p_value == pytest.approx(1.0)  # 2 against 1: the most likely outcomes of three tosses
    assert found.metrics["top5"].drop == 0
    assert list(found.metrics) == ["top1", "top5"]
    assert Eval.model_validate_json(found.model_dump_json()) == found


def test_predictions_may_have_more_than_one_value_a_sample() -> None:
    maps = np.zeros((10, 4, 4))
    other = maps.copy()
    other[3, 0, :2] = 1
    found = paired("segmentation", {"good": TOP1}, {"good": TOP1}, maps, other, units={"good": "%"}, nonfinite=2)
    assert (found.flips, found.nonfinite, found.metrics["good"].unit) == (1, 2, "%")


@pytest.mark.parametrize(
    ("reference", "deployed", "ref_prediction", "dep_prediction", "match"),
    [
        ({}, {}, CLASSES, CLASSES, "no metrics in common"),
        ({"top1": TOP1}, {"top5": TOP1}, CLASSES, CLASSES, "no metrics in common"),
        ({"top1": TOP1[:0]}, {"top1": TOP1[:0]}, CLASSES[:0], CLASSES[:0], "no sample"),
        ({"top1": TOP1}, {"top1": TOP1[:0]}, CLASSES, CLASSES, "no sample"),
        ({"top1": TOP1}, {"top1": TOP1[:5]}, CLASSES, CLASSES, "not pairs"),
        ({"top1": TOP1}, {"top1": TOP1}, CLASSES, CLASSES[:5], "not of the same samples"),
        ({"top1": TOP1}, {"top1": TOP1}, CLASSES[:5], CLASSES[:5], "not of the same samples"),
        ({"top1": TOP1}, {"top1": TOP1 * 0.5}, CLASSES, CLASSES, "0 or 1"),
    ],
)
def test_refuses_what_is_no_pair(reference, deployed, ref_prediction, dep_prediction, match) -> None:
    with pytest.raises(MeasureError, match=match) as error:
        paired("classification", reference, deployed, ref_prediction, dep_prediction)
    assert error.value.fix
