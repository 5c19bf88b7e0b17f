"""A reference that answered elsewhere makes the same pair as one that answers here; of something else it is refused."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cli.conftest import run
from tests.cli.test_contract import answer
from vitdeploy import artifact as artifacts
from vitdeploy.artifact import Artifact
from vitdeploy.commands.evaluate import recorded_reference
from vitdeploy.commands.evaluate.evaluate import evaluate, save_reference
from vitdeploy.commands.evaluate.labelled import open_labelled
from vitdeploy.commands.evaluate.recorded_reference import RecordedReference, join_references
from vitdeploy.commands.evaluate.spread import split
from vitdeploy.commands.evaluate.units import read_units, unit_size
from vitdeploy.data.labels import Boxes, ClassMask, DepthMap, InstanceMasks, Keypoints
from vitdeploy.errors import DataError, MeasureError
from vitdeploy.frozen import replace
from vitdeploy.progress import Silent
from vitdeploy.recipe import TaskSpec

LIMIT = 120


class Listener(Silent):
    """Keeps the warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, message: str) -> None:
        self.warnings.append(message)


@pytest.fixture(scope="module")
def artifact(demo: Callable[..., Artifact], tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    made = demo(target="onnxruntime", precision="int8-dynamic")
    return artifacts.load(Path(shutil.copytree(made.path, tmp_path_factory.mktemp("answers") / "digits")))


@pytest.fixture(scope="module")
def reference(artifact: Artifact) -> Path:
    path = artifact.path.parent / "reference.npz"
    saved = answer(run("eval", artifact.path, "--save-reference", path, "--limit", LIMIT, "--json"))
    assert saved.items() >= {"name": "pytorch-fp32", "task": "classification", "samples": LIMIT}.items()
    return path


def changed(path: Path, out: Path, **members: Callable[[Any], Any]) -> Path:
    """A copy of the file with members replaced: `about`, or an array of the samples."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            key = Path(name).stem
            with old.open(name) as source, new.open(name, "w") as sink:
                if key not in members:
                    shutil.copyfileobj(source, sink)
                elif key == "about":
                    sink.write(json.dumps(members[key](json.load(source))).encode())
                else:
                    np.lib.format.write_array(sink, members[key](np.lib.format.read_array(source)))
    return out


def test_the_pair_is_the_same_wherever_the_reference_answered(artifact: Artifact, reference: Path) -> None:
    here = answer(run("eval", artifact.path, "--limit", LIMIT, "--json"))
    assert answer(run("eval", artifact.path, "--limit", LIMIT, "--reference", reference, "--json")) == here


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "0"}, "of another model"),
        ({"data": "0"}, "of another data"),
        ({"task": "depth"}, "of another task"),
        ({"options": "0"}, "of another set of task options"),
        ({"preprocess": "0"}, "of another preprocessing"),
        ({"code": "0"}, "of another code of the model"),
    ],
)
def test_a_reference_about_something_else_is_refused(
    artifact: Artifact, reference: Path, tmp_path: Path, change: dict[str, str], message: str
) -> None:
    other = changed(reference, tmp_path / "other.npz", about=lambda told: {**told, **change})
    with pytest.raises(MeasureError, match=message):
        evaluate(artifact, None, Silent(), limit=LIMIT, reference=other)


def test_a_reference_of_another_preprocessing_or_task_option_is_refused(artifact: Artifact, reference: Path) -> None:
    manifest, (_, dataset) = artifact.manifest, open_labelled(artifact, None)
    darker = replace(manifest, preprocess=replace(manifest.preprocess, mean=(0.25,)))
    task = TaskSpec.model_validate({**manifest.recipe.task.model_dump(), "output": "logits"})
    other = replace(manifest, recipe=replace(manifest.recipe, task=task))
    with RecordedReference(reference) as recorded:
        recorded.check_about(manifest, dataset)
        with pytest.raises(MeasureError, match="of another preprocessing"):
            recorded.check_about(darker, dataset)
        with pytest.raises(MeasureError, match="of another set of task options"):
            recorded.check_about(other, dataset)


def test_an_artifact_from_before_the_code_was_recorded_takes_the_reference(artifact: Artifact, reference: Path) -> None:
    manifest, (_, dataset) = artifact.manifest, open_labelled(artifact, None)
    older = replace(manifest, model=replace(manifest.model, code=""))
    with RecordedReference(reference) as recorded:
        assert recorded.about.code == manifest.model.code != ""
        recorded.check_about(older, dataset)


@pytest.mark.parametrize("limit", [LIMIT - 1, LIMIT + 1, None])
def test_other_samples_are_refused(artifact: Artifact, reference: Path, limit: int | None) -> None:
    with pytest.raises(MeasureError, match=f"answered {LIMIT} samples, and the samples here are not the same"):
        evaluate(artifact, None, Silent(), limit=limit, reference=reference)


def test_samples_in_another_order_are_refused(artifact: Artifact, reference: Path, tmp_path: Path) -> None:
    other = changed(reference, tmp_path / "other.npz", labels=lambda labels: np.roll(labels, 1))
    with pytest.raises(MeasureError, match="are not the same"):
        evaluate(artifact, None, Silent(), limit=LIMIT, reference=other)


def test_other_pixels_are_told(artifact: Artifact, reference: Path, tmp_path: Path) -> None:
    def other(pixels: Any) -> Any:
        assert len(set(pixels.tolist())) > LIMIT / 2, "each image has a digest of its own"
        return np.where(np.arange(len(pixels)) < 7, pixels + 1, pixels)

    listener = Listener()
    path = changed(reference, tmp_path / "other.npz", pixels=other)
    evaluate(artifact, None, listener, limit=LIMIT, reference=path)
    assert any(f"7 of {LIMIT} images have other pixels" in warning for warning in listener.warnings)


@pytest.mark.parametrize("content", [None, b"", b"PK\x05\x06" + bytes(18), b"nonsense"])
def test_what_is_no_reference_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(DataError):
        RecordedReference(tmp_path / "x.npz")


def test_a_newer_file_is_refused(reference: Path, tmp_path: Path) -> None:
    newer = changed(reference, tmp_path / "newer.npz", about=lambda told: {**told, "version": told["version"] + 1})
    with pytest.raises(DataError, match="another version of vitdeploy"):
        RecordedReference(newer)


def test_an_older_file_is_refused(reference: Path, tmp_path: Path) -> None:
    fields = ("name", "task", "model", "data", "samples")
    old = changed(
        reference, tmp_path / "old.npz", about=lambda told: {"version": 3} | {field: told[field] for field in fields}
    )  # fmt: skip
    with pytest.raises(DataError, match="another version of vitdeploy"):
        RecordedReference(old)


def test_a_label_is_what_it_says_not_where_it_lies() -> None:
    """Of each form: equal wherever the file is, different when one pixel, depth or box is."""
    grid = np.arange(6).reshape(2, 3)
    crowd = np.array([False])
    box = np.array([[0.1, 0.1, 0.5, 0.5]])
    for one, same, other in (
        (3, 3, 4),
        (ClassMask("a", grid), ClassMask("b", grid.copy()), ClassMask("a", grid + 1)),
        (DepthMap("a", grid * 0.5), DepthMap("b", grid * 0.5), DepthMap("a", grid * 0.25)),
        (
            Boxes("a", box, np.array([1]), crowd),
            Boxes("b", box.copy(), np.array([1]), crowd),
            Boxes("a", box, np.array([2]), crowd),
        ),
        (
            InstanceMasks("a", np.array([b"PP1"]), np.array([1]), crowd, (4, 8)),
            InstanceMasks("b", np.array([b"PP1"]), np.array([1]), crowd, (4, 8)),
            InstanceMasks("a", np.array([b"PP1"]), np.array([1]), crowd, (8, 4)),
        ),
        (
            Keypoints("a", box[:, :2], ~crowd, box[0, :2], box[0, 2:]),
            Keypoints("b", box[:, :2], ~crowd, box[0, :2], box[0, 2:]),
            Keypoints("a", box[:, :2], crowd, box[0, :2], box[0, 2:]),
        ),
    ):
        digests = [recorded_reference._label_digest(label) for label in (one, same, other)]
        assert digests[0] == digests[1] != digests[2]


def test_a_label_is_the_same_in_every_process() -> None:
    """The reference answers in another process: no address of an object may be in the digest."""
    label = ClassMask("a", np.arange(4, dtype=np.int64).reshape(2, 2))
    assert recorded_reference._label_digest(label) == 5918184942175478910


def test_answers_of_every_form_come_back(tmp_path: Path) -> None:
    """Vectors, boxes, and records with the bits of masks."""
    records = np.zeros(3, [("score", "<f8"), ("class", "<i8"), ("mask", "u1", (4, 2))])
    records["score"], records["mask"] = [0.9, 0.8, 0.1], 7
    answers = [np.arange(5.0), np.zeros((0, 6)), records, records[:0]]
    with zipfile.ZipFile(tmp_path / "answers.zip", "w") as file:
        for number, one in enumerate(answers):
            recorded_reference._write(file, f"answer/{number}", one)
    with zipfile.ZipFile(tmp_path / "answers.zip") as file:
        for number, one in enumerate(answers):
            read = recorded_reference._read(file, f"answer/{number}")
            assert (read.dtype, read.shape) == (one.dtype, one.shape)
            np.testing.assert_array_equal(read, one)


@pytest.mark.parametrize("parts", [1, 3])
def test_parts_of_a_reference_join_to_the_whole_file(
    artifact: Artifact, reference: Path, tmp_path: Path, parts: int
) -> None:
    unit = unit_size(artifact.manifest)
    files = [tmp_path / f"{number}.npz" for number in range(parts)]
    for place, file in zip(split(LIMIT, unit, parts), files, strict=True):
        save_reference(artifact, None, file, Silent(), limit=LIMIT, place=place)
    join_references(files, tmp_path / "whole.npz")
    whole, joined = (read_members(path) for path in (reference, tmp_path / "whole.npz"))
    assert list(joined) == list(whole)
    assert joined == whole


def read_members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_a_part_is_compared_with_its_own_answers(artifact: Artifact, reference: Path) -> None:
    unit = unit_size(artifact.manifest)
    task, dataset = open_labelled(artifact, None)
    ends = []
    for place in split(LIMIT, unit, 3):
        with RecordedReference(reference, place) as recorded:
            units = list(read_units(dataset, artifact.manifest, place.start, place.stop))
            for one in units[:-1]:
                recorded.answer_unit(one, 1)
            with pytest.raises(MeasureError, match="the samples here are not the same"):
                recorded.values()
            recorded.answer_unit(units[-1], 1)
            ends.append(recorded.values()["label"])
    with RecordedReference(reference) as recorded:
        for one in read_units(dataset, artifact.manifest, most=LIMIT):
            recorded.answer_unit(one, 1)
        assert np.array_equal(np.concatenate(ends), recorded.values()["label"])
    assert task.name == "classification"


def test_answers_of_another_part_are_refused(artifact: Artifact, reference: Path) -> None:
    unit = unit_size(artifact.manifest)
    _, dataset = open_labelled(artifact, None)
    first, second = split(LIMIT, unit, 2)
    with RecordedReference(reference, second) as recorded:
        one = next(read_units(dataset, artifact.manifest, first.start, first.stop))
        with pytest.raises(MeasureError, match="the samples here are not the same"):
            recorded.answer_unit(one, 1)
