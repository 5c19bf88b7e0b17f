"""Point 1: a value that tracing bakes in is refused where images show it, and is a doubt where they do not."""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import pytest

from tests.cli.conftest import run
from tests.proofs import toys_01
from vitdeploy import artifact as artifacts
from vitdeploy import onnx_export, sources
from vitdeploy.artifact import ExportRecord
from vitdeploy.errors import ExportError
from vitdeploy.evidence import Audit
from vitdeploy.pipeline.examples import Examples, make_examples
from vitdeploy.recipe import Batch, ModelSpec


def load(factory: str) -> sources.LoadedModel:
    return sources.load(ModelSpec(spec=f"python:{toys_01.__file__}:{factory}"), size=(32, 32))


def examples_of(factory: str, batch: object = 1) -> Examples:
    model = load(factory)
    return make_examples(model, model.preprocess, Batch.model_validate(batch))


def export(factory: str, path: Path) -> ExportRecord:
    model, examples = load(factory), examples_of(factory)
    assert model.module is not None
    return onnx_export.export(
        model.module, examples.pairs(), input_name="image", batch=Batch(), path=path / "model.onnx"
    )


def line_of_the_branch() -> str:
    lines, first = inspect.getsourcelines(toys_01.EarlyExit)
    return f"toys_01.py, line {first + next(i for i, line in enumerate(lines) if 'the baked branch' in line)}"


@pytest.mark.parametrize(("factory", "output"), [("early_exit", "output"), ("pooled", "logits")])
def test_a_baked_branch_is_refused_by_other_images(
    factory: str, output: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ExportError) as caught:
        export(factory, tmp_path)
    assert f"in output '{output}' on" in caught.value.message
    assert f"made a constant of what {line_of_the_branch()}, computes from the image (a bool)" in caught.value.message
    assert "torch.where" in caught.value.fix
    assert "\x1b" not in caught.value.message
    printed = capfd.readouterr()
    assert "forward(self" not in printed.out + printed.err, "exporters that fail print no graphs"


def test_a_baked_branch_that_no_example_shows_is_a_doubt_with_the_line(tmp_path: Path) -> None:
    spec = f"python:{toys_01.__file__}:rare_exit"
    command = ("export", spec, "--target", "onnxruntime", "--image-size", "32x32", "-o", tmp_path / "out", "--quiet")
    made = run(*command)
    assert made.code == 0, made.err
    words = f"doubt: tracing made a constant of what {line_of_the_branch()}, computes from the image"
    assert words in " ".join(made.out.split())
    artifact = artifacts.load(tmp_path / "out")
    audit, _ = artifact.read_evidence(Audit)
    assert audit is not None
    assert artifact.manifest.doubts == artifact.manifest.export.doubts == audit.doubts
    again = run(*command, "--force")  # now from the cache of exported graphs
    assert words in " ".join(again.out.split())


def test_shapes_and_weights_are_no_doubt(tmp_path: Path) -> None:
    record = export("shapes", tmp_path)
    assert (record.exporter, record.doubts) == ("legacy", ())


def test_the_tracer_leaves_tensors_as_they_were(tmp_path: Path) -> None:
    import torch

    before = {name: getattr(torch.Tensor, name) for name in ("__bool__", "__int__", "item", "numpy", "tolist")}
    export("shapes", tmp_path)
    assert {name: getattr(torch.Tensor, name) for name in before} == before


def test_a_model_that_answers_at_random_is_refused() -> None:
    with pytest.raises(ExportError, match=r"other numbers when it runs again on the same images: cosine"):
        examples_of("dropped")


def test_a_model_with_nan_for_some_images_is_refused() -> None:
    with pytest.raises(ExportError, match="NaN or infinity for dark and tall images"):
        examples_of("dark_nan")


def test_examples_differ_in_more_than_their_seed() -> None:
    examples = examples_of("tokens")
    means = [float(pixels.mean()) for pixels in examples.pixels]
    assert max(means) > 190
    assert min(means) < 60
    assert len(set(examples.names)) == len(examples.names) >= 3


@pytest.mark.parametrize(
    ("batch", "sizes"),
    [(1, {1}), (3, {3}), ("1:1:2", {1, 2}), ("1:4:8", {1, 4, 8}), ("1:1:64", {1, 2, 8, 16}), ("2:2:2", {2})],
)
def test_examples_cover_the_batch_sizes(batch: object, sizes: set[int]) -> None:
    examples = examples_of("batch_statistics", batch)
    assert {len(pixels) for pixels in examples.pixels} == sizes
    for image, outputs, *_ in examples.pairs():
        assert len(outputs["output"]) == len(image)
    assert not np.array_equal(examples.pixels[0][:1], examples.pixels[1][:1])
