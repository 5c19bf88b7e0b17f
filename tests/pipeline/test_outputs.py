"""An artifact gives the outputs that its task reads, or those that the user names."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from tests.cli.conftest import run
from tests.graphs import redrawn
from tests.tasks.models import FIXTURES
from vitdeploy import sources
from vitdeploy.artifact import load
from vitdeploy.errors import SourceError
from vitdeploy.pipeline.outputs import output_chooser
from vitdeploy.recipe import ALL_OUTPUTS, ModelSpec, Recipe, TaskSpec, compose
from vitdeploy.runtime.reference import rebuild_reference
from vitdeploy.runtime.torch_session import TorchSession
from vitdeploy.tasks import Task, find

SIDE = 32
NAMES = ("features", "pred_boxes", "anchors", "logits")
"""The outputs of `Detector`, in its order."""
HEAD = 7
"""The width of the layer that only `features` needs."""


class Detector(nn.Module):
    """Boxes before scores, an output with a layer of its own, and one that does not see the image."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.extra = nn.Conv2d(3, 16, 8, 8), nn.Linear(16, HEAD)
        self.boxes, self.classes = nn.Linear(16, 4), nn.Linear(16, 5)
        self.anchors = nn.Parameter(torch.rand(1, 16, 4))

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        x = self.patches(image).flatten(2).transpose(1, 2)
        return self.extra(x), self.boxes(x).sigmoid(), self.anchors.expand(len(x), -1, -1) * 1.0, self.classes(x)


class Named(Detector):
    """The same with names."""

    def forward(self, image: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        return dict(zip(NAMES, super().forward(image), strict=True))


def build() -> nn.Module:
    """Return the model, for `python:FILE:build`."""
    model: Any = redrawn(Named())
    model.vitdeploy_preprocess = {"size": (SIDE, SIDE)}
    return model


SPEC = f"python:{__file__}:build"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("outputs") / "detector.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            redrawn(Detector()), (torch.zeros(1, 3, SIDE, SIDE),), str(path), dynamo=False, opset_version=17,
            input_names=["image"], output_names=list(NAMES),
        )  # fmt: skip
    return path


def _export(*words: object) -> dict[str, Any]:
    ended = run("export", *words, "--json", "--no-cache")
    assert ended.code == 0, ended.err
    summary: dict[str, Any] = json.loads(ended.out)
    return summary


def _outputs(graph: Path) -> list[str]:
    return [value.name for value in onnx.load(graph).graph.output]


@pytest.mark.parametrize(
    ("requested", "task", "expected"),
    [
        (None, "detection", ("pred_boxes", "logits")),
        (None, "raw", NAMES),
        (None, "pose", NAMES),  # it reads none of them: `eval` says why
        (None, None, NAMES),
        (ALL_OUTPUTS, "detection", NAMES),
        (("logits", "features"), "detection", ("features", "logits")),
    ],
)
def test_the_outputs_of_a_task(requested: Any, task: str | None, expected: tuple[str, ...]) -> None:
    reader: Task | None = None if task is None else find(TaskSpec(kind=task))
    shapes = {"features": (1, 16, HEAD), "pred_boxes": (1, 16, 4), "anchors": (1, 16, 4), "logits": (1, 16, 5)}
    outputs = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    assert tuple(output_chooser(requested, reader, 1)(outputs)) == expected


def test_a_task_that_reads_two_names_none_of_three_hidden_states() -> None:
    yolos = sources.load(ModelSpec(spec=f"hf:{FIXTURES / 'yolos'}"))
    assert yolos.module is not None and yolos.task is not None
    image = np.zeros((1, 3, *yolos.preprocess.size), np.float32)
    every = TorchSession(yolos.module).run({"pixel_values": image})
    assert set(every) == {"logits", "pred_boxes", "last_hidden_state"}
    assert set(output_chooser(None, find(yolos.task), 1)(every)) == {"logits", "pred_boxes"}


@pytest.mark.parametrize("target", ["openvino", "onnxruntime"])
def test_a_file_keeps_order_and_names_of_the_outputs_that_its_task_reads(
    tmp_path: Path, file: Path, target: str
) -> None:
    before = file.read_bytes()
    out = tmp_path / "out"
    summary = _export(file, "--target", target, "--task", "detection", "-o", out)
    assert [output["name"] for output in summary["parity"]["outputs"]] == ["pred_boxes", "logits"]
    assert summary["parity"]["finite"]
    assert _outputs(out / "graph.onnx") == ["pred_boxes", "logits"]
    weights = [list(t.dims) for t in onnx.load(out / "graph.onnx").graph.initializer]
    assert not any(HEAD in dims for dims in weights)  # the layer of the output that is left out
    assert any("left out: features, anchors (--all-outputs" in note for note in summary["notes"])
    assert not any("parity proves nothing" in note for note in summary["notes"])  # `anchors` is not there
    manifest = load(out).manifest
    assert manifest.recipe.model.outputs == ("pred_boxes", "logits")
    assert manifest.model.dropped_outputs == ("features", "anchors")
    with rebuild_reference(load(out), 1) as reference:  # what `bench` and `eval` compare with
        assert list(reference.run({"image": np.zeros((1, 3, SIDE, SIDE), np.float32)})) == ["pred_boxes", "logits"]
    assert file.read_bytes() == before


def test_a_file_without_a_task_keeps_all(tmp_path: Path, file: Path) -> None:
    summary = _export(file, "--target", "onnxruntime", "-o", tmp_path / "out")
    assert _outputs(tmp_path / "out" / "graph.onnx") == list(NAMES)
    assert not any("left out" in note for note in summary["notes"])
    manifest = load(tmp_path / "out").manifest
    assert (manifest.recipe.model.outputs, manifest.model.dropped_outputs) == (None, ())


def test_a_module_keeps_the_outputs_that_the_user_names(tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = (SPEC, "--target", "onnxruntime", "--task", "detection", "-o", out)
    summary = _export(*words, "--outputs", "logits, features", "--save-recipe", tmp_path / "recipe.yaml")
    assert _outputs(out / "graph.onnx") == ["features", "logits"]
    assert any("cannot read these outputs as detection" in note for note in summary["notes"])
    assert load(out).manifest.recipe.model.outputs == ("features", "logits")
    assert "outputs:\n  - logits\n  - features" in (tmp_path / "recipe.yaml").read_text()
    summary = _export(*words, "--all-outputs", "--force")
    assert _outputs(out / "graph.onnx") == list(NAMES)


def test_the_cache_tells_a_model_from_itself_with_other_outputs(tmp_path: Path, file: Path) -> None:
    from vitdeploy.pipeline.graph_cache import cache_key
    from vitdeploy.recipe import Batch

    model = sources.load(ModelSpec(spec=SPEC))
    keys = {cache_key(sources.keep_outputs(model, names), (), Batch()) for names in (("logits",), NAMES)}
    assert len(keys | {cache_key(model, (), Batch())}) == 3
    first, second = (sources.keep_outputs(sources.load(ModelSpec(spec=str(file))), n).onnx for n in (NAMES[:1], NAMES))
    assert first is not None and second is not None
    assert (_outputs(first), _outputs(second)) == ([NAMES[0]], list(NAMES))


@pytest.mark.parametrize("is_file", [True, False])
def test_an_unknown_output_is_named_with_the_nearest(tmp_path: Path, file: Path, is_file: bool) -> None:
    spec = file if is_file else SPEC
    ended = run("export", spec, "--target", "onnxruntime", "--outputs", "logit", "-o", tmp_path / "out")
    assert ended.code == 1
    assert "the model has no output 'logit' (did you mean 'logits'?)" in ended.error
    assert f"It has: {', '.join(NAMES)}." in ended.error
    assert not (tmp_path / "out").exists()


def test_bad_lists_of_outputs(tmp_path: Path, file: Path) -> None:
    words = ("export", file, "--target", "onnxruntime", "-o", tmp_path / "out")
    ended = run(*words, "--outputs", "logits", "--all-outputs")
    assert (ended.code, "either --outputs or --all-outputs" in ended.err) == (2, True)
    for text, message in (("logits,,features", "an output has no name"), ("logits,logits", "an output is there twice")):
        ended = run(*words, "--outputs", text)
        assert (ended.code, message in ended.error) == (1, True), ended.err


def test_the_recipe_takes_names_as_a_list_or_a_text() -> None:
    def outputs(value: Any) -> Any:
        raw = {"model": {"spec": "x.onnx", "outputs": value}, "target": {"kind": "openvino"}}
        return Recipe.model_validate(raw).model.outputs

    assert (outputs("a, b"), outputs(["a", "b"]), outputs("all"), outputs(["all"]), outputs(None)) == (
        ("a", "b"), ("a", "b"), ALL_OUTPUTS, ("all",), None,
    )  # fmt: skip
    assert compose("x.onnx", target="openvino", outputs="a,b").model.outputs == ("a", "b")


def test_a_module_that_lacks_an_output_says_so_when_it_runs() -> None:
    model = sources.load(ModelSpec(spec=SPEC, outputs=("pred_boxes", "logits")))
    assert model.module is not None and model.outputs == ("pred_boxes", "logits")
    image = np.zeros((1, 3, SIDE, SIDE), np.float32)
    with TorchSession(model.module, outputs=model.outputs) as session:
        assert list(session.run({"image": image})) == ["pred_boxes", "logits"]
    with TorchSession(model.module, outputs=("score",)) as session, pytest.raises(SourceError, match="no output 'scor"):
        session.run({"image": image})
