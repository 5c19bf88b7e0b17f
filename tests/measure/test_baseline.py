from pathlib import Path

import pytest

from tests.evidence import audit, bench, evaluation, run
from vitdeploy.errors import ArtifactError, MeasureError
from vitdeploy.evidence import Interval
from vitdeploy.measure import baseline

FACTS = {"machine": "host", "model_digest": "weights", "recipe_digest": "recipe"}


def test_written_and_read_back(tmp_path: Path) -> None:
    stored = baseline.make(audit(), bench(), evaluation(), **FACTS)
    assert (stored.fused, stored.sites, stored.target, stored.precision) == (12, 12, "openvino", "int8")
    assert stored.speedup == bench().runs[1].speedup
    baseline.write(tmp_path / "b.json", stored)
    assert baseline.read(tmp_path / "b.json") == stored
    assert [p.name for p in tmp_path.iterdir()] == ["b.json"]


def test_the_timing_is_that_of_the_artifact() -> None:
    own = run("openvino-int8", 10.0, Interval(ratio=2.0, ci95=(1.9, 2.1)), threads=2)
    stored = baseline.make(audit(), bench(runs=(run("pytorch-fp32", 20.0), own)), None, **FACTS)
    assert stored.timing is not None
    assert (stored.timing.reference, stored.timing.threads) == ("pytorch-fp32", 2)


def test_fields_without_evidence_stay_empty() -> None:
    partial = baseline.make(audit(12, 12, "graph"), None, None, **FACTS)
    assert (partial.speedup, partial.metrics, partial.fused) == (None, {}, None)


def test_a_doubtful_measurement_makes_no_baseline() -> None:
    with pytest.raises(MeasureError, match="drifted"):
        baseline.make(audit(), bench(1, 1, 1, "it drifted"), None, **FACTS)


@pytest.mark.parametrize(
    ("text", "match"),
    [(None, "not a baseline"), ("{}", "not a baseline"), ("[", "not a baseline"), ("newer", "schema 2")],
)
def test_refuses(tmp_path: Path, text: str | None, match: str) -> None:
    path = tmp_path / "b.json"
    if text == "newer":
        text = baseline.make(audit(), None, None, **FACTS).model_copy(update={"schema_version": 2}).model_dump_json()
    if text is not None:
        path.write_text(text)
    with pytest.raises(ArtifactError, match=match):
        baseline.read(path)


def test_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="cannot be written"):
        baseline.write(tmp_path / "no" / "b.json", baseline.make(audit(), None, None, **FACTS))
