"""python:FILE:FACTORY runs the named file, and says where it broke."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vitdeploy.errors import SourceError
from vitdeploy.recipe import ModelSpec
from vitdeploy.sources import LoadedModel, load

MODEL = """
import torch
from neighbour import CLASSES

class Net(torch.nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.head = torch.nn.Linear(3, CLASSES)
    def forward(self, x):
        return self.head(x.mean((2, 3)))

def build(width=4):
    model = Net(width)
    model.vitdeploy_preprocess = {"size": [16, 24], "mean": [0.5] * 3, "std": [0.5] * 3}
    model.vitdeploy_labels = ["a", "b"]
    return model

def bare():
    return Net()

def broken():
    model = Net()
    raise RuntimeError("no\\nluck")

def nothing():
    return 3

def misspelt():
    model = Net()
    model.vitdeploy_preprocess = {"size": [16, 24], "meen": 0}
    return model
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "neighbour.py").write_text("CLASSES = 2\n")
    (tmp_path / "my model.py").write_text(MODEL)
    return tmp_path / "my model.py"


def _load(
    file: Path, factory: str, weights: str | None = None, size: tuple[int, int] | None = None, **kwargs: object
) -> LoadedModel:
    return load(ModelSpec(spec=f"python:{file}:{factory}", weights=weights, kwargs=kwargs), size=size)


def test_a_factory_with_everything(file: Path) -> None:
    path = list(sys.path)
    model = _load(file, "build", width=8)
    assert sys.path == path
    assert (model.weights, model.labels, model.preprocess.size) == ("own", ("a", "b"), (16, 24))
    assert model.module is not None
    assert model.module(torch.zeros(2, 3, 16, 24)).shape == (2, 2)


def test_neighbours_of_one_name_in_two_folders_are_not_mixed_up(file: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = (tmp_path / "other" / file.name).resolve()
    other.write_text(MODEL)
    other.with_name("neighbour.py").write_text("CLASSES = 5\n")
    for path, classes in ((file, 2), (other, 5), (file, 2)):
        module = _load(path, "bare", size=(8, 8)).module
        assert module is not None
        assert module(torch.zeros(1, 3, 8, 8)).shape == (1, classes)


def test_what_the_caller_has_imported_itself_is_not_forgotten(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "neighbour", raising=False)
    import neighbour  # type: ignore[import-not-found]

    _load(file, "bare", size=(8, 8))
    load(ModelSpec(spec="python:vitdeploy.sources._digits_vit:digits_vit", weights="random"), size=(32, 32))
    assert sys.modules["neighbour"] is neighbour


def test_the_hostile_digits_do_not_change_the_class_of_other_models() -> None:
    from timm.models.vision_transformer import VisionTransformer

    hostile = load(ModelSpec(spec=f"python:{Path(__file__).parents[1] / 'hostile_digits.py'}:build"))
    assert hostile.preprocess.channels == 1
    assert not hasattr(VisionTransformer, "vitdeploy_preprocess")


def test_weights(file: Path, tmp_path: Path) -> None:
    random = _load(file, "build", "random")
    assert (random.weights, random.digest) == ("random", _load(file, "build", "random").digest)
    save_file({"head.weight": torch.ones(2, 3), "head.bias": torch.ones(2)}, tmp_path / "w.safetensors")
    trained = _load(file, "build", str(tmp_path / "w.safetensors"))
    assert trained.weights == "file"
    assert trained.digest != random.digest
    with pytest.raises(SourceError, match="Leave out --weights"):
        _load(file, "build", "pretrained")


def test_size_has_to_come_from_somewhere(file: Path) -> None:
    with pytest.raises(SourceError, match="--image-size"):
        _load(file, "bare")
    assert _load(file, "bare", size=(8, 8)).preprocess.size == (8, 8)
    assert _load(file, "build", size=(8, 8)).preprocess.size == (8, 8)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("broken", r"RuntimeError at .*my model\.py:23: no luck"),
        ("nothing", "returned a int"),
        ("misspelt", "unknown key 'meen'.*did you mean 'mean'"),
        ("buld", "did you mean 'build'"),
    ],
)
def test_what_a_factory_can_do_wrong(file: Path, factory: str, message: str) -> None:
    with pytest.raises(SourceError, match=message) as error:
        _load(file, factory)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = (\n", r"SyntaxError at .*bad\.py:1"),
        ("import torch\nimport not_there\n", r"ModuleNotFoundError at .*bad\.py:2"),
        ("raise SystemExit(3)\n", r"SystemExit at .*bad\.py:1"),
    ],
)
def test_a_file_that_does_not_import(tmp_path: Path, source: str, message: str) -> None:
    (tmp_path / "bad.py").write_text(source)
    with pytest.raises(SourceError, match=message):
        _load(tmp_path / "bad.py", "build")


def test_missing_things(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="there is no file"):
        _load(tmp_path / "no.py", "build")
    with pytest.raises(SourceError, match="names no factory"):
        load(ModelSpec(spec="python:model.py"))
    with pytest.raises(SourceError, match="cannot be imported"):
        load(ModelSpec(spec="python:not.there:build"))


def test_a_module_by_name() -> None:
    model = load(ModelSpec(spec="python:vitdeploy.sources._digits_vit:digits_vit", weights="random"), size=(32, 32))
    assert model.weights == "random"


SAM = """
import torch

class Sam(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.image_encoder = torch.nn.Conv2d(3, 4, 8, stride=8)
        self.prompt_encoder, self.mask_decoder = torch.nn.Linear(2, 4), torch.nn.Linear(4, 1)
    def forward(self, batched_input, multimask_output):
        raise NotImplementedError

def whole():
    return Sam()

def encoder():
    return Sam().image_encoder
"""


def test_a_promptable_model_names_the_factory_to_write(tmp_path: Path) -> None:
    (tmp_path / "sam.py").write_text(SAM)
    with pytest.raises(SourceError, match="promptable model") as caught:
        _load(tmp_path / "sam.py", "whole", size=(64, 64))
    assert "a factory that returns its image_encoder" in caught.value.fix
    assert _load(tmp_path / "sam.py", "encoder", size=(64, 64)).parameters == 4 * 3 * 64 + 4
