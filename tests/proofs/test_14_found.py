"""Point 14: what the simulations have found, each as a small case of its own."""

from __future__ import annotations

import errno
import json
import random
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import typer

from vitdeploy import artifact as artifacts
from vitdeploy.artifact import Artifact
from vitdeploy.cli.console import Console
from vitdeploy.errors import ArtifactError, MeasureError, RemoteError, SourceError
from vitdeploy.evidence import Audit, Bench
from vitdeploy.measure.samples import Outcomes, pack, unpack
from vitdeploy.remote.near.client import parse_answer
from vitdeploy.sources import _checkpoint


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), OSError(errno.ENOSPC, "No space", "x")])
def test_a_failing_disk_is_one_line(error: OSError, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit), Console().errors_as_lines(traceback=False):
        raise error
    assert "cannot be read or written" in capsys.readouterr().err


def test_other_errors_are_still_unexpected(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit), Console().errors_as_lines(traceback=False):
        raise OSError(errno.EINVAL, "Invalid argument")
    assert "error: unexpected OSError" in capsys.readouterr().err


@pytest.mark.parametrize("change", ["checksum", "double"])
def test_archives_that_readers_disagree_about_are_refused(change: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"w": torch.ones(64)}, path)
    assert _checkpoint.read_checkpoint(path).parts[""]["w"].sum() == 64
    content = path.read_bytes()
    ones = torch.ones(64).numpy().tobytes()
    if change == "checksum":
        assert ones in content
        path.write_bytes(content.replace(ones, torch.zeros(64).numpy().tobytes(), 1))
    else:
        with zipfile.ZipFile(path, "a") as archive:
            name = next(name for name in archive.namelist() if name.endswith("data/0"))
            with pytest.warns(UserWarning, match="Duplicate name"):
                archive.writestr(name, torch.zeros(64).numpy().tobytes())
    with pytest.raises(SourceError, match=r"checksum|members"):
        _checkpoint.read_checkpoint(path).parts[""]


def test_numbers_that_no_float_holds_are_refused(
    demo: Callable[..., Artifact], copy: Callable[[Artifact], Artifact]
) -> None:
    artifact = copy(demo(target="onnxruntime"))
    audit = json.loads((artifact.path / "audit.json").read_text())
    audit["linears"]["fp32"] = 10**400
    (artifact.path / "audit.json").write_text(json.dumps(audit))
    evidence, reason = artifact.read_evidence(Audit)
    assert evidence is None
    assert "cannot be read" in reason
    manifest = json.loads((artifact.path / "manifest.json").read_text())
    manifest["model"]["parameters"] = 10**400
    (artifact.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError):
        artifacts.load(artifact.path)


def test_an_answer_of_another_form_is_one_line() -> None:
    with pytest.raises(RemoteError, match=r"does not understand an answer of far \(Bench\.runs\)"):
        parse_answer(Bench, {"valid": True, "doubts": []}, "far")


def test_the_recipe_is_of_the_manifest_that_was_loaded(
    demo: Callable[..., Artifact], copy: Callable[[Artifact], Artifact]
) -> None:
    """A second read that failed made the gate say that the recipe is another one."""
    artifact = copy(demo(target="onnxruntime"))
    (artifact.path / "manifest.json").unlink()
    assert artifact.recipe_digest == artifact.manifest.recipe_digest


def test_damaged_samples_are_one_line() -> None:
    """The end of a zip archive says where its list of members is, maybe before the start; names may be no UTF-8."""
    ones = np.ones(5)
    outcomes = Outcomes(np.arange(5, dtype=np.uint64), {"top1": ones}, {"top1": ones}, ones, np.ones(5, bool))
    raw, rng, refused = pack(outcomes), random.Random(0), list[str]()
    for _ in range(2000):
        damaged = bytearray(raw[: rng.randrange(1, len(raw))] if rng.random() < 0.3 else raw)
        for _ in range(rng.randrange(1, 4)):
            damaged[-rng.randrange(1, min(400, len(damaged)) + 1)] = rng.randrange(256)
        try:
            unpack(bytes(damaged))
        except MeasureError as error:
            refused.append(str(error))
    assert len(refused) > 1000
    assert all(line.count("Run vitdeploy eval again.") == 1 for line in refused)
