"""Evaluations in parts, without a cluster: see tests/cluster/test_parts.py."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from vitdeploy import artifact as artifacts
from vitdeploy.artifact import Artifact
from vitdeploy.commands.evaluate.evaluate import evaluate
from vitdeploy.commands.sweep.postponed import Postponed, answer_place, join_places, measure_evaluation
from vitdeploy.progress import Silent


@pytest.mark.parametrize(
    ("count", "free", "expected"), [(5000, 4, 4), (5000, 0, 1), (1200, 8, 2), (400, 8, 1), (50_000, 1, 1)]
)
def test_there_is_a_part_for_each_free_node_but_no_small_one(count: int, free: int, expected: int) -> None:
    places = Postponed(count, 16).split(free)
    assert len(places) == expected
    assert places[0].start == 0
    assert places[-1].stop == count
    assert all(place.start == before.stop for before, place in pairwise(places))
    assert all(place.start % 16 == 0 for place in places)


@pytest.fixture(scope="module")
def artifact(demo: Callable[..., Artifact], tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    made = demo(target="onnxruntime", precision="int8-dynamic")
    return artifacts.load(Path(shutil.copytree(made.path, tmp_path_factory.mktemp("parts") / "digits")))


def test_only_large_evaluations_are_postponed(artifact: Artifact) -> None:
    assert measure_evaluation(artifact, None) is None
    assert measure_evaluation(artifact, 10_000) is None
    found = measure_evaluation(artifact, 100)
    assert found is not None
    assert found.count > 100


@pytest.mark.slow
def test_joined_parts_are_a_serial_evaluation(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vitdeploy.commands.sweep import postponed

    monkeypatch.setattr(postponed, "_LEAST_SAMPLES", 50)
    size = measure_evaluation(artifact, 100)
    assert size is not None
    reference = tmp_path / "reference.npz"
    serial = evaluate(artifact, None, Silent())
    samples = (artifact.path / "eval.samples.npz").read_bytes()
    for known in (False, True):  # the second time nobody has to run the reference
        answers = [
            answer_place(artifact, reference, place, size.count, Silent(), reference_only=False)
            for place in size.split(3)
        ]
        assert [part.reference is not None for part in answers] == [not known] * 3
        joined = join_places(artifact, answers, reference, Silent())
        assert joined is not None
        assert json.loads(joined.model_dump_json()) == json.loads(serial.model_dump_json())
        assert (artifact.path / "eval.samples.npz").read_bytes() == samples
        assert reference.exists()


@pytest.mark.slow
def test_for_a_host_only_the_reference_answers(artifact: Artifact, tmp_path: Path) -> None:
    reference = tmp_path / "reference.npz"
    places = Postponed(96, 16).split(1)
    answers = [answer_place(artifact, reference, place, 96, Silent(), reference_only=True) for place in places]
    assert join_places(artifact, answers, reference, Silent()) is None
    assert reference.exists()
