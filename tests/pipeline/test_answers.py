"""A reference that answered elsewhere makes the same pair as one that answers here; of something else it is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.cli.conftest import run
from tests.cli.test_contract import answer
from vitdeploy.errors import DataError, MeasureError
from vitdeploy.pipeline import answers, prove
from vitdeploy.progress import Silent

LIMIT = 120


class Listener(Silent):
    """Keeps the warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, message: str) -> None:
        self.warnings.append(message)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("answers") / "digits"
    answer(run("export", "demo:digits", "--target", "onnxruntime", "--precision", "int8-dynamic", "-o", out, "--json"))
    return out


@pytest.fixture(scope="module")
def reference(artifact: Path) -> Path:
    path = artifact.parent / "reference.npz"
    saved = answer(run("eval", artifact, "--save-reference", path, "--limit", LIMIT, "--json"))
    assert saved == {"reference": "pytorch-fp32", "n": LIMIT, "file": str(path)}
    return path


def test_the_pair_is_the_same_wherever_the_reference_answered(artifact: Path, reference: Path) -> None:
    here = answer(run("eval", artifact, "--limit", LIMIT, "--json"))
    assert answer(run("eval", artifact, "--limit", LIMIT, "--reference", reference, "--json")) == here


def test_what_was_read_back_is_what_was_saved(artifact: Path, reference: Path, tmp_path: Path) -> None:
    found = answers.load(reference)
    assert len(set(found.pixels.tolist())) > LIMIT / 2, "each image has its own digest"
    answers.save(tmp_path / "again.npz", found)
    again = answers.load(tmp_path / "again.npz")
    assert (again.name, again.model, again.data, again.skipped) == (found.name, found.model, found.data, found.skipped)
    assert all(np.array_equal(again.values[name], values) for name, values in found.values.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "0"}, "about another model"),
        ({"data": "0"}, "about another data"),
        ({"task": "depth"}, "about another task"),
        ({"labels": "roll"}, "other ones"),
    ],
)
def test_a_reference_about_something_else_is_refused(
    artifact: Path, reference: Path, tmp_path: Path, change: dict[str, str], message: str
) -> None:
    found = answers.load(reference)
    labels = np.roll(found.labels, 1) if change.get("labels") else found.labels
    answers.save(tmp_path / "other.npz", replace(found, **{**change, "labels": labels}))
    with pytest.raises(MeasureError, match=message):
        prove.evaluate(artifact, None, Silent(), limit=LIMIT, reference=tmp_path / "other.npz")


def test_fewer_samples_are_refused(artifact: Path, reference: Path) -> None:
    with pytest.raises(MeasureError, match=f"{LIMIT} samples"):
        prove.evaluate(artifact, None, Silent(), limit=LIMIT - 1, reference=reference)


def test_other_pixels_are_told(artifact: Path, reference: Path, tmp_path: Path) -> None:
    found = answers.load(reference)
    pixels = found.pixels.copy()
    pixels[:7] += 1
    answers.save(tmp_path / "other.npz", replace(found, pixels=pixels))
    listener = Listener()
    prove.evaluate(artifact, None, listener, limit=LIMIT, reference=tmp_path / "other.npz")
    assert any(f"7 of {LIMIT} images have other pixels" in warning for warning in listener.warnings)


@pytest.mark.parametrize("content", [None, b"", b"PK\x05\x06" + bytes(18), b"nonsense"])
def test_what_is_no_reference_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(DataError):
        answers.load(tmp_path / "x.npz")
