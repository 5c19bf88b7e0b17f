"""An evaluation in parts is the whole one, whatever the parts; and the reference answers whole units."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitdeploy.artifact import Artifact
from vitdeploy.commands.evaluate import answered, spread
from vitdeploy.commands.evaluate.answered import AnsweredPart, open_sides
from vitdeploy.commands.evaluate.gathered import Gathered
from vitdeploy.commands.evaluate.labelled import open_labelled
from vitdeploy.commands.evaluate.parts import SamplePart, SamplePlaces
from vitdeploy.commands.evaluate.sides import takes_units
from vitdeploy.commands.evaluate.units import unit_size
from vitdeploy.data.array_files import read_npz
from vitdeploy.data.dataset import shuffle
from vitdeploy.progress import Silent
from vitdeploy.runtime.reference import rebuild_reference

DIGITS = Path(__file__).parents[3] / "vitdeploy" / "assets" / "digits.npz"
COUNT = 120


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits by class; one image is damaged."""
    root = tmp_path_factory.mktemp("parts") / "digits"
    arrays = read_npz(DIGITS, "")
    for number, index in enumerate(arrays["test"][:COUNT]):
        (root / str(arrays["labels"][index])).mkdir(parents=True, exist_ok=True)
        file = root / str(arrays["labels"][index]) / f"{number:03}.png"
        Image.fromarray(np.squeeze(arrays["images"][index])).save(file)
    sorted(root.rglob("*.png"))[40].write_bytes(b"no image")
    return root


@pytest.fixture(scope="module")
def artifact(demo: Callable[..., Artifact]) -> Artifact:
    return demo(target="onnxruntime", precision="int8-dynamic")


def _answer(artifact: Artifact, data: Path, place: SamplePlaces, count: int) -> AnsweredPart:
    task, dataset = open_labelled(artifact, str(data))
    with ExitStack() as stack:
        sides = open_sides(stack, artifact, task, dataset, count, Silent())
        return sides.answer(task, dataset, artifact.manifest, place, lambda _: None)


def _flat(part: SamplePart | None) -> dict[str, Any]:
    assert part is not None
    outcomes = dataclasses.asdict(part.outcomes)
    arrays = {f"{k}/{n}": v for k in ("reference", "deployed") for n, v in outcomes[k].items()}
    arrays |= {k: outcomes[k] for k in ("digest", "agreement", "finite")}
    values = {name: (str(value.dtype), value.tobytes().hex()) for name, value in arrays.items()}
    flips = [(f.index, f.name, f.picture.tobytes().hex(), f.answers) for f in part.flips]
    return {"values": values, "flips": flips, "skipped": sorted(part.skipped)}


@pytest.mark.slow
@pytest.mark.parametrize("limit", [None, 70])
def test_parts_are_the_whole_byte_for_byte(artifact: Artifact, folder: Path, limit: int | None) -> None:
    _, dataset = open_labelled(artifact, str(folder))
    count, unit = min(COUNT, limit or COUNT), unit_size(artifact.manifest)
    whole = _answer(artifact, folder, SamplePlaces(most=limit), count)
    assert whole.part is not None
    assert len(whole.part) == (limit or COUNT - 1)
    for parts in (2, 3):
        places = spread.split(count, unit, parts)
        answers = [spread.answer_there(artifact, place, str(folder), dataset.digest, count) for place in places]
        rest = spread.find_rest(places, answers, limit, COUNT)
        if rest is not None:
            answers[-1] = spread.answer_there(artifact, rest, str(folder), dataset.digest, count)
        joined = spread.join(answers, dataset)
        assert json.dumps(_flat(joined.part)) == json.dumps(_flat(whole.part))
        assert (joined.reference, joined.threads) == (whole.reference, whole.threads)


@pytest.mark.slow
def test_a_damaged_image_that_is_a_part_of_its_own_counts(artifact: Artifact, folder: Path, tmp_path: Path) -> None:
    unit = unit_size(artifact.manifest)
    intact = [file for file in sorted(folder.rglob("*.png")) if file.read_bytes() != b"no image"][: unit + 1]
    for file in intact:
        (tmp_path / file.parent.name).mkdir(exist_ok=True)
        (tmp_path / file.parent.name / file.name).write_bytes(file.read_bytes())
    sorted(tmp_path.rglob("*.png"))[shuffle(unit + 1)[-1]].write_bytes(b"no image")
    _, dataset = open_labelled(artifact, str(tmp_path))
    whole = _answer(artifact, tmp_path, SamplePlaces(), unit + 1)
    places = spread.split(unit + 1, unit, 2)
    answers = [spread.answer_there(artifact, place, str(tmp_path), dataset.digest, unit + 1) for place in places]
    assert answers[1].part is None
    joined = spread.join(answers, dataset)
    assert joined.part is not None
    assert len(joined.part.skipped) == 1
    assert _flat(joined.part) == _flat(whole.part)


@pytest.mark.parametrize(("count", "parts"), [(1, 3), (16, 3), (17, 2), (10_000, 3), (50_000, 7)])
def test_parts_are_whole_units_without_a_gap(count: int, parts: int) -> None:
    places = spread.split(count, 16, parts)
    assert len(places) == min(parts, -(-count // 16))
    assert [place.start for place in places[1:]] == [place.stop for place in places[:-1]]
    assert (places[0].start, places[-1].stop) == (0, count)
    assert all(place.start % 16 == 0 for place in places)


@pytest.mark.slow
def test_units_change_the_reference_by_rounding_only(
    artifact: Artifact, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    units = _answer(artifact, folder, SamplePlaces(), COUNT).part
    monkeypatch.setattr(answered, "takes_units", lambda *_: False)
    single = _answer(artifact, folder, SamplePlaces(), COUNT).part
    assert units is not None
    assert single is not None
    for name, values in single.outcomes.reference.items():
        np.testing.assert_allclose(units.outcomes.reference[name], values, rtol=1e-4, err_msg=name)
    for name, values in single.outcomes.deployed.items():
        np.testing.assert_array_equal(units.outcomes.deployed[name], values)


class _Mixing:
    """A reference whose answers depend on the other images of a batch, or that takes one image only."""

    def __init__(self, session: Any, *, refuses: bool) -> None:
        self._session, self._refuses = session, refuses

    def run(self, feeds: Any) -> Any:
        from vitdeploy.errors import SourceError

        images = next(iter(feeds.values()))
        if self._refuses and len(images) > 1:
            raise SourceError("one image only", fix="Give one.")
        return {name: value - value.mean(axis=0) for name, value in self._session.run(feeds).items()}


@pytest.mark.slow
def test_only_a_reference_that_answers_each_image_alone_takes_units(artifact: Artifact, folder: Path) -> None:
    task, _ = open_labelled(artifact, str(folder))
    with rebuild_reference(artifact, None) as session:
        assert takes_units(session, task, artifact.manifest, COUNT)
        assert not takes_units(session, task, artifact.manifest, 31)
        for refuses in (False, True):
            assert not takes_units(_Mixing(session, refuses=refuses), task, artifact.manifest, COUNT)  # type: ignore[arg-type]


def test_rows_are_gathered_in_order() -> None:
    gathered = Gathered()
    assert gathered.join() == {}
    for number in range(1300):
        gathered.add({"a": np.array([number]), "b": np.full((1, 2), number)})
    joined = gathered.join()
    np.testing.assert_array_equal(joined["a"], np.arange(1300))
    assert joined["b"].shape == (1300, 2)
