"""Large evaluations of a sweep on nodes: in parts, with the results of one process."""

from __future__ import annotations

import json
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.commands.sweep.running import BASE, go, write
from tests.remote.far import Far
from vitdeploy.cluster import Cluster
from vitdeploy.commands.sweep import parts_out, postponed
from vitdeploy.progress import Silent
from vitdeploy.remote.near.sweep_host import connect_host

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("cluster")]

TAIL = "cluster: {memory_gib: 1}\n"


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """The functions that were sent to nodes. Evaluations of more than 100 samples are in parts, of 50 or more each."""
    monkeypatch.setattr(parts_out, "MOST_SAMPLES", 100)
    monkeypatch.setattr(postponed, "_LEAST_SAMPLES", 50)
    counts: Counter[str] = Counter()
    start = Cluster.start

    def count(self: Cluster, function: Callable[..., Any], *arguments: object, **options: Any) -> Any:
        counts[function.__name__] += 1
        return start(self, function, *arguments, **options)

    monkeypatch.setattr(Cluster, "start", count)
    return counts


def read_evaluation(out: Path, artifact: str) -> tuple[Any, bytes]:
    folder = out / artifact
    return json.loads((folder / "eval.json").read_text()), (folder / "eval.samples.npz").read_bytes()


def read_references(out: Path) -> dict[str, dict[str, bytes]]:
    found = {}
    for file in (out / "references").iterdir():
        with zipfile.ZipFile(file) as archive:
            found[file.name] = {name: archive.read(name) for name in sorted(archive.namelist())}
    return found


def test_parts_give_the_results_of_one_process(sent: Counter[str], tmp_path: Path) -> None:
    file = write(tmp_path, BASE + "matrix: {target: [onnxruntime], precision: [fp32, int8-dynamic]}\n" + TAIL)
    alone, _ = go(file, tmp_path / "alone")
    result, steps = go(file, tmp_path / "nodes", ray="auto")
    assert result.counts == alone.counts == {"done": 2}, (result.failures, steps.lines)
    assert sent["answer_part"] >= 4, sent
    assert sent["join_parts"] == 2
    for row, other in zip(result.trials, alone.trials, strict=True):
        assert row.name == other.name
        assert read_evaluation(tmp_path / "nodes", row.artifact) == read_evaluation(tmp_path / "alone", other.artifact)
        assert (row.drop, row.drop_ci95, row.agreement) == (other.drop, other.drop_ci95, other.agreement)
        assert row.exported is not None
        assert row.timed is not None
    assert read_references(tmp_path / "nodes") == read_references(tmp_path / "alone")
    again, _ = go(file, tmp_path / "nodes", ray="auto")
    assert all(row.reused for row in again.trials)


def make_images(folder: Path, count: int, damaged: range) -> Path:
    """A folder of digits in ten classes, of which some files are no images."""
    random = np.random.default_rng(0)
    for number in range(count):
        place = folder / str(number % 10) / f"{number:04}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 255, (28, 28), np.uint8)).save(place)
    for place in sorted(folder.rglob("*.png"))[damaged.start : damaged.stop]:
        place.write_bytes(b"no image")
    return folder


def test_damaged_images_are_left_out_of_their_parts(sent: Counter[str], tmp_path: Path) -> None:
    data = make_images(tmp_path / "data", 200, range(5, 7))
    base = BASE.replace("bench", f"data: {{evaluation: {data}}}, bench")
    file = write(tmp_path, base + "matrix: {target: [onnxruntime], precision: [fp32, int8-dynamic]}\n" + TAIL)
    alone, _ = go(file, tmp_path / "alone")
    result, steps = go(file, tmp_path / "nodes", ray="auto")
    assert result.counts == alone.counts == {"done": 2}, (result.failures, steps.lines)
    assert sent["answer_part"] >= 4
    for row, other in zip(result.trials, alone.trials, strict=True):
        assert row.samples == other.samples == 198
        assert read_evaluation(tmp_path / "nodes", row.artifact) == read_evaluation(tmp_path / "alone", other.artifact)


def test_a_part_that_fails_fails_its_trial_once(sent: Counter[str], tmp_path: Path) -> None:
    data = make_images(tmp_path / "data", 200, range(150, 200))
    base = BASE.replace("bench", f"data: {{evaluation: {data}}}, bench")
    file = write(tmp_path, base + "matrix: {target: [onnxruntime], precision: [fp32]}\n" + TAIL)
    alone, _ = go(file, tmp_path / "alone")
    result, _ = go(file, tmp_path / "nodes", ray="auto")
    assert result.counts == alone.counts == {"failed": 1}
    assert [(f.step, f.trials) for f in result.failures] == [(f.step, f.trials) for f in alone.failures]
    assert result.failures[0].step == "eval"
    assert (tmp_path / "nodes" / result.trials[0].artifact / "manifest.json").is_file(), "the export stays"


@pytest.mark.usefixtures("near")
def test_nodes_answer_parts_of_the_reference_for_a_host(
    sent: Counter[str], lab: Callable[..., Far], tmp_path: Path
) -> None:
    lab()
    file = write(tmp_path, BASE + "matrix: {target: [onnxruntime], precision: [fp32], host: [lab, here]}\n" + TAIL)
    result, steps = go(file, tmp_path / "nodes", ray="auto", find_host=lambda name: connect_host(name, Silent()))
    assert result.counts == {"done": 2}, (result.failures, steps.lines)
    assert sent["answer_part"] >= 4
    there, here = result.trials
    assert (there.samples, there.deployed, there.reference) == (here.samples, here.deployed, here.reference)
    assert len(read_references(tmp_path / "nodes")) == 1
