"""The smallest number of float linears that fits a budget, found in few steps, and nothing left on disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from vitdeploy.artifact import Trial
from vitdeploy.errors import QuantizeError
from vitdeploy.pipeline.mixed_precision import fit_budget
from vitdeploy.precision import Precision, find
from vitdeploy.recipe import PrecisionSpec

LINEARS = [f"blocks.{i}.mlp.fc[{i % 2}]" for i in range(36)]


@dataclass
class Made:
    """A candidate that remembers what it keeps in float."""

    precision: Precision
    shop: Shop
    alpha: float | None = 0.25
    name: str = "int8"

    @property
    def float_linears(self) -> int:
        return len(self.precision.keep)

    def discard(self) -> None:
        self.shop.on_disk.remove(self)


@dataclass
class Shop:
    """Makes candidates; what is worst comes last in the model, so that the order is seen to count."""

    made: list[Precision] = field(default_factory=list)
    on_disk: list[Any] = field(default_factory=list)
    refused: tuple[int, ...] = ()
    """Numbers of linears in float with which a graph cannot be made."""
    order: Sequence[str] | None = tuple(LINEARS[::-1])

    def make(self, precision: Precision) -> Any:
        if len(precision.keep) in self.refused:
            raise QuantizeError("an activation is infinite", fix="Keep another linear.")
        self.made.append(precision)
        self.on_disk.append(Made(precision, self))
        return self.on_disk[-1]

    def worst_first(self, candidate: Any) -> list[str]:
        if self.order is None:
            raise QuantizeError("there is no linear to measure", fix="Use fp32.")
        return [*self.order]


@dataclass
class Budget:
    """Enough is enough: `needed` linears have to stay in float."""

    needed: int
    limit: float = 0.5

    def judge(self, candidate: Any) -> Trial:
        lost = 0.4 if candidate.float_linears >= self.needed else 0.6
        why = "" if lost <= self.limit else "over the budget of 0.5"
        return Trial(precision="int8", float_linears=candidate.float_linears, lost=lost, why=why)

    def holds(self, trial: Trial) -> bool:
        return trial.lost is not None and trial.lost <= self.limit


Fit = Callable[..., tuple[Any, list[Trial], Shop]]


@pytest.fixture
def fit() -> Fit:
    def run(needed: int, kind: Any = "int8") -> tuple[Any, list[Trial], Shop]:
        shop = Shop()
        found, trials = fit_budget(shop, find(PrecisionSpec(kind=kind)), Budget(needed))  # type: ignore[arg-type]
        return found, trials, shop

    return run


@pytest.mark.parametrize("needed", [0, 1, 2, 3, 5, 8, 13, 31, 32, 33, 35])
def test_it_finds_the_fewest(needed: int, fit: Fit) -> None:
    found, trials, shop = fit(needed)
    assert found.float_linears == trials[-1].float_linears == needed
    assert len(trials) <= 12
    assert len({t.float_linears for t in trials}) == len(trials)
    assert shop.on_disk == [found]


def test_the_worst_stay_in_float_by_their_literal_names(fit: Fit) -> None:
    found, _, _ = fit(2)
    assert found.precision.keep == ("blocks.35.mlp.fc[[]1]", "blocks.34.mlp.fc[[]0]")


def test_the_migration_is_searched_once(fit: Fit) -> None:
    _, _, shop = fit(3)
    assert [p.smooth_alpha for p in shop.made] == ["auto", *[0.25] * (len(shop.made) - 1)]


def test_none_fits(fit: Fit) -> None:
    found, trials, shop = fit(36)
    assert found is None
    assert not any(t.lost is not None and t.lost <= 0.5 for t in trials)
    assert max(t.float_linears for t in trials) == 35
    assert shop.on_disk == []


def test_a_number_of_linears_that_is_not_possible_is_a_failed_trial() -> None:
    shop = Shop(refused=(2, 4))
    found, trials = fit_budget(shop, find(PrecisionSpec(kind="int8")), Budget(3))  # type: ignore[arg-type]
    assert found.float_linears == trials[-1].float_linears == 5
    failed = [trial for trial in trials if trial.float_linears in (2, 4)]
    assert [(trial.lost, trial.why) for trial in failed] == [(None, "an activation is infinite")] * len(failed)
    assert len({trial.float_linears for trial in failed}) == 2
    assert shop.on_disk == [found]


def test_linears_that_cannot_be_compared_are_the_reason() -> None:
    shop = Shop(order=None)
    found, trials = fit_budget(shop, find(PrecisionSpec(kind="int8")), Budget(3))  # type: ignore[arg-type]
    why = "over the budget of 0.5, and no linear stays in float: there is no linear to measure"
    assert (found, [(trial.lost, trial.why) for trial in trials], shop.on_disk) == (None, [(0.6, why)], [])


@pytest.mark.parametrize("needed", [0, 5, 36])
def test_all_but_the_chosen_trial_say_why(needed: int, fit: Fit) -> None:
    found, trials, _ = fit(needed)
    assert all(trial.why for trial in trials[:-1])
    assert bool(trials[-1].why) == (found is None)


def test_a_precision_that_quantizes_no_linear_fits_or_does_not(fit: Fit) -> None:
    found, trials, shop = fit(1, "fp16")
    assert (found, [t.lost for t in trials], shop.on_disk) == (None, [0.6], [])
