"""A plug-in is a file: found by its name, with one class in it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from vitdeploy import plugins, targets
from vitdeploy.errors import RecipeError, UsageError
from vitdeploy.recipe import TargetSpec


class Base:
    pass


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    folder = tmp_path / "kitchen_of_test_plugins"
    folder.mkdir()
    source = "from tests.test_plugins import Base\n"
    (folder / "__init__.py").touch()
    (folder / "deep_fryer.py").write_text(f"{source}class Fryer(Base): pass\n")
    (folder / "oven.py").write_text(f"{source}class Oven(Base): pass\nclass Door: pass\n")
    (folder / "empty.py").write_text(source)
    (folder / "twins.py").write_text(f"{source}class A(Base): pass\nclass B(Base): pass\n")
    (folder / "borrowed.py").write_text("from kitchen_of_test_plugins.oven import Oven\n")
    (folder / "_private.py").write_text("raise AssertionError('not to be imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module(folder.name)
    for name in [name for name in sys.modules if name.startswith(folder.name)]:
        del sys.modules[name]


def test_names_are_those_of_the_files_and_private_ones_are_none(package: ModuleType) -> None:
    assert plugins.names(package) == ["borrowed", "deep-fryer", "empty", "oven", "twins"]


def test_the_one_class_is_found(package: ModuleType) -> None:
    assert plugins.find(package, "oven", Base).__name__ == "Oven"
    assert plugins.find(package, "deep-fryer", Base).__name__ == "Fryer"


@pytest.mark.parametrize(("name", "count"), [("empty", 0), ("twins", 2), ("borrowed", 0)])
def test_none_or_two_is_the_authors_mistake(package: ModuleType, name: str, count: int) -> None:
    with pytest.raises(TypeError, match=f"must define exactly one Base, it defines {count}"):
        plugins.find(package, name, Base)


@pytest.mark.parametrize("name", ["ovn", "-private", "_private", "", "../oven", "Oven "])
def test_unknown_names_list_the_known_ones(package: ModuleType, name: str) -> None:
    with pytest.raises(LookupError, match="is not one of borrowed, deep-fryer, empty, oven, twins"):
        plugins.find(package, name, Base)


def test_the_nearest_name_is_suggested() -> None:
    assert plugins.did_you_mean("opnvino", targets.names()) == " (did you mean 'openvino'?)"
    assert plugins.did_you_mean("coreml", targets.names()) == ""


def test_a_target_and_its_options_are_checked_by_its_class() -> None:
    assert targets.find(TargetSpec(kind="tensorrt-rtx")).name == "tensorrt-rtx"
    with pytest.raises(UsageError, match="did you mean 'openvino'"):
        targets.find(TargetSpec(kind="opnvino"))
    with pytest.raises(RecipeError, match=r"unknown key 'bacth' \(did you mean 'batch'\?\)"):
        targets.find(TargetSpec.model_validate({"kind": "openvino", "bacth": 4}))
    with pytest.raises(RecipeError, match="target openvino: threads should be a valid integer"):
        targets.find(TargetSpec.model_validate({"kind": "openvino", "threads": "many"}))


@pytest.mark.parametrize("name", targets.names())
def test_every_target_can_say_what_it_is_without_its_library(name: str) -> None:
    target = targets.find(TargetSpec(kind=name))
    assert target.default_precision in target.precisions
    assert target.dialect().opset > 0
    missing = target.unavailable()
    assert missing is None or (missing.why and missing.fix and not missing.available)
