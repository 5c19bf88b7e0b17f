"""The first screen never looks better than the evidence."""

from typing import Any

import pytest

from tests.evidence import audit, evaluation
from tests.render.html.subjects import bench, gate, manifest, subject
from vitdeploy.render.html.parts import Tile
from vitdeploy.render.html.verdict import head


def tiles(**change: Any) -> list[Tile]:
    return list(head(subject(**change)).tiles)


def test_good_evidence() -> None:
    found = head(subject())
    assert (found.verdict, found.sentence) == ("pass", "All 3 limits hold.")
    assert [tile.value for tile in found.tiles] == ["1.50×", "0.10", "3 of 3", "2.00 KiB"]
    assert not any(tile.absent for tile in found.tiles)
    assert found.warnings == ()
    assert found.missing is None


def test_without_evidence_no_figure_stands_out() -> None:
    found = head(subject(none=True))
    assert found.verdict == "not judged"
    assert found.missing is not None
    assert found.missing.fix == "vitdeploy gate deit"
    assert [tile.value for tile in found.tiles[:3]] == ["not measured", "not evaluated", "not audited"]
    assert all(tile.absent for tile in found.tiles[:3])


@pytest.mark.parametrize("verdict", ["fail", "invalid"])
def test_other_verdicts(verdict: str) -> None:
    found = head(subject(gate=gate(verdict)))
    assert found.verdict == verdict
    assert [check.status for check in found.checks] == ["pass", verdict, "pass"]


@pytest.mark.parametrize(
    ("change", "what"),
    [({"bench": bench(1.4)}, "the last bench"), ({"evaluation": evaluation(0.0, 0.2, 0.4)}, "the last eval")],
)
def test_a_verdict_on_older_figures_is_out_of_date(change: dict[str, Any], what: str) -> None:
    found = head(subject(**change))
    assert found.verdict == "out of date"
    assert found.missing is not None
    assert found.missing.why == f"the verdict (pass) was given before {what}"
    assert found.missing.fix == "vitdeploy gate deit"


@pytest.mark.parametrize(
    ("change", "number", "note"),
    [
        ({"bench": bench(1.5, "it drifted")}, 0, "in doubt"),
        ({"manifest": manifest(weights="random")}, 1, "random weights"),
        ({"evaluation": evaluation(nonfinite=3)}, 1, "3 samples gave NaN"),
        ({"audit": audit(evidence="graph")}, 2, "not proven"),
        ({"audit": audit(0, 0)}, 2, "no attention was recognised"),
        ({"manifest": manifest(stage="bundle", runs=None)}, 3, "a bundle"),
    ],
)
def test_a_doubtful_figure_does_not_stand_out(change: dict[str, Any], number: int, note: str) -> None:
    tile = tiles(**change)[number]
    assert tile.absent
    assert note in tile.note


def test_a_limit_that_was_not_set_is_named() -> None:
    only = gate().model_copy(update={"checks": gate().checks[2:]})
    bare = manifest(recipe=manifest().recipe.model_copy(update={"gate": type(manifest().recipe.gate)()}))
    found = head(subject(gate=only, manifest=bare))
    assert "No limit was set for accuracy or speed" in found.warnings[0]
    assert found.sentence == "The only limit holds."
