"""Exported graphs are kept for the model that they are of, and for no other."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from vitdeploy import onnx_export, sources, targets
from vitdeploy import recipe as recipes
from vitdeploy.artifact import ExportRecord, Parity
from vitdeploy.pipeline.graph_cache import GraphCache, cache_key
from vitdeploy.pipeline.prepare import Options, Prepared, prepare
from vitdeploy.progress import Silent
from vitdeploy.recipe import Batch, ModelSpec

MODEL = """
import torch

torch.manual_seed(0)

class Tiny(torch.nn.Module):
    vitdeploy_preprocess = {"size": (8, 8), "mean": (0.5,), "std": (0.5,), "channels": 1, "resize": "exact"}

    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(64, 4)

    def forward(self, x):
        return self.head(x.flatten(1))

def build():
    return Tiny().eval()
"""
RECORD = ExportRecord(
    exporter="dynamo", opset=20, parity=Parity(max_abs=0, reference_max=1, cosine=1, finite=True, batches=(1,))
)


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were exported from now on."""
    paths: list[Path] = []
    original = onnx_export.export

    def export(*arguments: object, path: Path, **options: object) -> ExportRecord:
        paths.append(path)
        return original(*arguments, path=path, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(onnx_export, "export", export)
    return paths


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Prepared]:
    """Prepares a model's code with a cache in `tmp_path`, as a new process would see the code."""

    def make(code: str, cache: GraphCache) -> Prepared:
        number = len(list(tmp_path.glob("work*")))
        work = tmp_path / f"work{number}"
        work.mkdir()
        (tmp_path / "model.py").write_text(code)
        recipe = recipes.compose(f"python:{tmp_path / 'model.py'}:build", target="onnxruntime")
        return prepare(recipe, targets.find(recipe.target).dialect(), work, Silent(), Options(cache=cache))

    return make


def test_a_model_is_exported_once(make: Callable[..., Prepared], exports: list[Path], tmp_path: Path) -> None:
    cache = GraphCache(tmp_path / "cache")
    first, second = make(MODEL, cache), make(MODEL, cache)
    assert len(exports) == 1
    assert [n.op_type for n in first.graph.nodes] == [n.op_type for n in second.graph.nodes]
    assert first.facts.export == second.facts.export


@pytest.mark.parametrize(
    "edit",
    [
        ("self.head(x.flatten(1))", "self.head(x.flatten(1)) * 2"),
        ("self.head(x.flatten(1))", "self.head(torch.relu(x).flatten(1))"),
        ("        self.head = ", "        self.scale = 1\n        self.head = "),
    ],
)
def test_an_edited_forward_is_another_model(
    edit: tuple[str, str], make: Callable[..., Prepared], exports: list[Path], tmp_path: Path
) -> None:
    """Its weights are the same."""
    cache = GraphCache(tmp_path / "cache")
    first, second = make(MODEL, cache), make(MODEL.replace(*edit), cache)
    assert first.facts.model.digest == second.facts.model.digest
    assert len(exports) == 2


def test_another_size_or_batch_is_another_graph(tmp_path: Path) -> None:
    model = sources.load(ModelSpec(spec="demo:digits"))
    shape = (1, 1, 32, 32)
    keys = {
        cache_key(model, (shape,), Batch()),
        cache_key(model, ((2, 1, 32, 32),), Batch()),
        cache_key(model, (shape,), Batch.model_validate("1:1:4")),
    }
    assert len(keys) == 3
    assert cache_key(sources.load(ModelSpec(spec="demo:digits")), (shape,), Batch()) in keys


@pytest.mark.parametrize("damage", [b"", b"no graph at all"])
def test_a_damaged_graph_is_exported_again(
    damage: bytes, make: Callable[..., Prepared], exports: list[Path], tmp_path: Path
) -> None:
    cache = GraphCache(tmp_path / "cache")
    make(MODEL, cache)
    (graph,) = (tmp_path / "cache").rglob("exported.onnx")
    graph.write_bytes(damage)
    make(MODEL, cache)
    assert len(exports) == 2
    make(MODEL, cache)
    assert len(exports) == 2, "the new one was kept"


def test_a_graph_with_other_numbers_is_exported_again(
    make: Callable[..., Prepared], exports: list[Path], tmp_path: Path
) -> None:
    """Whatever a key may overlook, the numbers of the model decide."""
    cache = GraphCache(tmp_path / "cache")
    make(MODEL, cache)
    make(MODEL.replace("flatten(1))", "flatten(1)) + 1"), cache)
    one, other = sorted((tmp_path / "cache").iterdir(), key=lambda p: p.stat().st_mtime)
    (other / "exported.onnx").write_bytes((one / "exported.onnx").read_bytes())
    make(MODEL.replace("flatten(1))", "flatten(1)) + 1"), cache)
    assert len(exports) == 3


def kept(cache: GraphCache) -> set[str]:
    return {path.name for path in cache.folder.iterdir()}


def test_the_least_recently_used_go_when_there_are_too_many(tmp_path: Path) -> None:
    cache = GraphCache(tmp_path / "cache", most_bytes=2500)
    graph = tmp_path / "exported.onnx"
    graph.write_bytes(bytes(800))
    for age, key in enumerate(("a", "b")):
        cache.keep(key, graph, RECORD)
        os.utime(cache.folder / key, (1000 + age, 1000 + age))
    work = tmp_path / "work"
    work.mkdir()
    fetched = cache.fetch("a", work)
    assert fetched == (work / "exported.onnx", RECORD)
    cache.keep("c", graph, RECORD)
    assert kept(cache) == {"a", "c"}, "a was used last"
    assert cache.fetch("b", work) is None
    graph.write_bytes(bytes(2600))
    cache.keep("d", graph, RECORD)
    assert kept(cache) == {"a", "c"}, "it alone is more than may be kept"


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = GraphCache(tmp_path / "file" / "cache")
    graph = tmp_path / "exported.onnx"
    graph.write_bytes(b"x")
    cache.keep("a", graph, RECORD)
    assert cache.fetch("a", tmp_path) is None


def test_what_was_fetched_is_read_by_onnx(tmp_path: Path) -> None:
    """Onnx takes weights in a file with two hard links for an attack."""
    weight = onnx.numpy_helper.from_array(np.ones((64, 64), np.float32), "w")
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 64]) for name in "xy")
    nodes = [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])]
    model = onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [x], [y], [weight]))
    graph, work = tmp_path / "exported.onnx", tmp_path / "work"
    onnx.save(model, graph, save_as_external_data=True, location="exported.onnx.data")
    cache = GraphCache(tmp_path / "cache")
    cache.keep("a", graph, RECORD)
    work.mkdir()
    assert cache.fetch("a", work) == (work / "exported.onnx", RECORD)
    assert (onnx.numpy_helper.to_array(onnx.load(work / "exported.onnx").graph.initializer[0]) == 1).all()


def test_what_was_fetched_can_be_written_over(tmp_path: Path) -> None:
    """To write a fetched file anew has to leave the cached one alone."""
    cache, graph = GraphCache(tmp_path / "cache"), tmp_path / "exported.onnx"
    graph.write_bytes(b"graph")
    cache.keep("a", graph, RECORD)
    graph.unlink()
    assert cache.fetch("a", tmp_path) == (graph, RECORD)
    graph.unlink()
    graph.write_bytes(b"other")
    assert (cache.folder / "a" / "exported.onnx").read_bytes() == b"graph"
