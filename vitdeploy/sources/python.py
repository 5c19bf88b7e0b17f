"""`python:FILE_OR_MODULE:FACTORY`: a function of the user's own; the one source that runs code."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from vitdeploy.errors import RecipeError, SourceError
from vitdeploy.plugins import did_you_mean
from vitdeploy.recipe import ModelSpec, Preprocess, parse
from vitdeploy.sources import LoadedModel, Source, WeightsOrigin, _weights


class Python(Source):
    """`FACTORY(**kwargs)` returns an nn.Module, which may have `vitdeploy_preprocess` and `vitdeploy_labels`."""

    def load(self, argument: str, spec: ModelSpec, size: tuple[int, int] | None) -> LoadedModel:
        """The module that the factory builds; without `--weights` it is taken with what the factory put in."""
        import torch

        where, colon, name = argument.rpartition(":")
        if not colon or not where or not name:
            raise SourceError(f"python:{argument} names no factory", fix="Write python:FILE.py:FACTORY.")
        weights = None if spec.weights is None else _weights.chosen(spec)
        if weights == "pretrained":
            raise SourceError(f"python:{argument} has no pretrained weights of ours", fix="Leave out --weights.")
        with _own_folder(where):
            factory = _factory(_imported(where), name, where)
            with _weights.seeded():
                module = _called(factory, spec.kwargs, where, name)
        if not isinstance(module, torch.nn.Module):
            raise SourceError(f"{name} of {where} returned a {type(module).__name__}", fix="Return a torch.nn.Module.")
        origin: WeightsOrigin = "own"
        if weights == "random":
            origin = "random"
        elif isinstance(weights, Path):
            origin = "file"
            _weights.load_file(module, weights)
        preprocess, labels = _preprocess(module, argument, size), _labels(module, argument)
        return _weights.finished(module, weights=origin, preprocess=preprocess, labels=labels)

    def anchor(self, argument: str, folder: Path) -> str:
        """Return the file and its factory; modules stay as they are."""
        file, _, factory = argument.rpartition(":")
        return f"{folder / file}:{factory}" if file.endswith(".py") else argument


@contextmanager
def _own_folder(where: str) -> Iterator[None]:
    """The file's folder (for a module: the current one) on sys.path meanwhile, so that it finds its neighbours."""
    folder = str(Path(where).expanduser().resolve().parent) if where.endswith(".py") else str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _imported(where: str) -> ModuleType:
    if not where.endswith(".py"):
        try:
            return importlib.import_module(where)
        except (Exception, SystemExit) as error:  # it is the user's code: anything can come
            raise _broken(where, "cannot be imported", error) from error
    path = Path(where).expanduser().resolve()
    if not path.is_file():
        raise SourceError(f"there is no file {path}", fix="Write python:FILE.py:FACTORY.")
    name = f"_vitdeploy_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    found = importlib.util.spec_from_file_location(name, path)
    if found is None or found.loader is None:
        raise SourceError(f"{path} is no Python file", fix="Write python:FILE.py:FACTORY.")
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module  # dataclasses and pickling look the module up
    try:
        found.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise _broken(str(path), "cannot be imported", error) from error
    return module


def _factory(module: ModuleType, name: str, where: str) -> Callable[..., object]:
    factory = getattr(module, name, None)
    if not callable(factory):
        known = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
        raise SourceError(
            f"{where} has no function {name!r}{did_you_mean(name, known)}",
            fix=f"It has {', '.join(known) or 'none'}.",
        )
    return factory  # type: ignore[no-any-return]


def _called(factory: Callable[..., object], kwargs: Mapping[str, Any], where: str, name: str) -> object:
    try:
        return factory(**kwargs)
    except (Exception, SystemExit) as error:
        raise _broken(where, f"{name}({', '.join(kwargs)}) failed", error) from error


def _broken(where: str, what: str, error: BaseException) -> SourceError:
    """One line that leads to the line: the deepest frame in the user's own file, else the deepest."""
    if isinstance(error, SyntaxError):
        place = f"{error.filename}:{error.lineno}"
    else:
        frames = traceback.extract_tb(error.__traceback__)
        own = [f for f in frames if Path(f.filename) == Path(where).expanduser().resolve()]
        deepest = (own or list(frames))[-1]
        place = f"{deepest.filename}:{deepest.lineno}"
    text = " ".join(str(error).split())[:300]
    return SourceError(f"{where}: {what}: {type(error).__name__} at {place}: {text}", fix="Correct that line.")


def _preprocess(module: object, argument: str, size: tuple[int, int] | None) -> Preprocess:
    raw = getattr(module, "vitdeploy_preprocess", None)
    if raw is None and size is None:
        raise SourceError(
            f"python:{argument}: its image size is not known",
            fix="Give --image-size HxW or preprocess in the recipe, or set vitdeploy_preprocess on the module.",
        )
    if raw is None:
        return parse(Preprocess, {"size": size}, where="--image-size")
    if not isinstance(raw, Mapping):
        raise SourceError(f"python:{argument}: vitdeploy_preprocess is a {type(raw).__name__}", fix="Make it a dict.")
    try:
        return parse(Preprocess, {**raw, **({"size": size} if size else {})}, where="vitdeploy_preprocess")
    except RecipeError as error:
        raise SourceError(f"python:{argument}: {error.message}", fix=error.fix) from None


def _labels(module: object, argument: str) -> tuple[str, ...] | None:
    raw = getattr(module, "vitdeploy_labels", None)
    if raw is None:
        return None
    if isinstance(raw, str) or not all(isinstance(label, str) for label in raw):
        raise SourceError(f"python:{argument}: vitdeploy_labels are no strings", fix="Make it a tuple of class names.")
    return tuple(raw)
