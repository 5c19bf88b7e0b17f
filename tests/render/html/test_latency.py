"""Distributions of the samples, and sections without evidence."""

import numpy as np
import pytest

from tests.render.html.subjects import bench, runs, subject
from vitdeploy.frozen import replace
from vitdeploy.render.html.latency import density, samples_of, section


def test_the_density_peaks_where_the_samples_are() -> None:
    samples = np.random.default_rng(0).normal(5.0, 0.2, 4000)
    edges = np.linspace(0, 10, 241)
    found = density(samples, edges)
    assert found.shape == (240,)
    assert edges[found.argmax()] == pytest.approx(5.0, abs=0.1)
    assert found.max() == 1
    assert found[:60].max() == pytest.approx(0, abs=1e-6)


def test_two_modes_stay_two() -> None:
    """A side that was throttled half of the time must not look like a steady one in between."""
    samples = np.concatenate([np.full(500, 3.0), np.full(500, 7.0)]) + np.random.default_rng(0).normal(0, 0.02, 1000)
    found = density(samples, np.linspace(0, 10, 241))
    assert found[120] < 0.6 * min(found[72], found[168])


def test_equal_samples_are_no_error() -> None:
    assert density(np.full(10, 2.0), np.linspace(0, 4, 5)).max() == 1


def test_samples_that_are_no_times_are_left_out() -> None:
    run = runs()[0].model_copy(update={"blocks": ((1.0, float("nan")), (0.0, 2.0))})
    assert samples_of(run).tolist() == [1.0, 2.0]


def test_the_result_has_its_interval() -> None:
    found = section(subject())
    assert "openvino-int8 answers in 16.0 ms" in found.lede
    assert "1.50 times as fast, 95 % interval 1.47 to 1.53" in found.lede
    assert [part.kind for part in found.parts] == ["figure", "figure", "table"]
    table = found.parts[-1]
    assert table.kind == "table"
    assert {len(row) for row in table.rows} == {len(table.head)}
    assert "Both were timed in turns on 2 threads" in found.lede
    assert found.doubts == ()


def test_doubts_are_shown_and_missing_evidence_says_what_to_run() -> None:
    assert section(subject(bench=bench(1.5, "it drifted"))).doubts == ("it drifted",)
    gap = section(subject(none=True)).missing
    assert gap is not None
    assert gap.fix == "vitdeploy bench deit"


def test_without_samples_there_is_no_distribution_but_a_doubt() -> None:
    bare = tuple(replace(run, blocks=()) for run in runs())
    found = section(subject(bench=bench(runs=bare)))
    assert [part.kind for part in found.parts] == ["table"]
    assert "no raw samples" in found.doubts[0]


def test_without_a_reference_there_is_no_speedup() -> None:
    alone = bench(1.5, "no FP32 reference here", runs=(replace(runs()[0], role="artifact"),))
    found = section(subject(bench=alone))
    assert "there is no speed-up" in found.lede
    assert [part.kind for part in found.parts] == ["figure", "table"]
