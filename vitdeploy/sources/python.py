"""`python:FILE_OR_MODULE:FACTORY`: a model built by the user's own function. No other source runs code."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

from vitdeploy.data.example_inputs import read_examples
from vitdeploy.errors import RecipeError, SourceError
from vitdeploy.plain_files import expand_home
from vitdeploy.plugins import did_you_mean
from vitdeploy.recipe import ModelSpec, Preprocess, parse
from vitdeploy.sources import LoadedModel, Source, WeightsOrigin, _metadata, _weights
from vitdeploy.sources._bind import bind_module

if TYPE_CHECKING:
    from torch import nn

_neighbours: dict[str, tuple[str, ModuleType]] = {}
"""The modules that factories have imported from their own folders: name -> folder and module."""


_PROMPTABLE = ("image_encoder", "prompt_encoder", "mask_decoder")
"""The parts of segment_anything and EfficientSAM."""


class Python(Source):
    """`FACTORY(**kwargs)` returns an nn.Module, which may have `vitdeploy_preprocess` and `vitdeploy_labels`."""

    runs_code: ClassVar[bool] = True
    takes_inputs: ClassVar[bool] = True

    def load(self, argument: str, spec: ModelSpec, size: tuple[int, int] | None) -> LoadedModel:
        """Call the factory. Without `--weights` the module keeps the weights that the factory gave it."""
        import torch

        where, colon, name = argument.rpartition(":")
        if not colon or not where or not name:
            raise SourceError(f"python:{argument} names no factory", fix="Write python:FILE.py:FACTORY.")
        weights = None if spec.weights is None else _weights.find_weights(spec)
        if weights == "pretrained":
            raise SourceError(
                f"python:{argument}: vitdeploy has no pretrained weights for a factory", fix="Leave out --weights."
            )
        given = dict(spec.kwargs) if spec.num_classes is None else {**spec.kwargs, "num_classes": spec.num_classes}
        with _folder_on_path(where):
            factory = _find_factory(_import(where), name, where)

            def build(**changes: Any) -> nn.Module:
                with _weights.fixed_seed():
                    module = _call(factory, {**given, **changes}, where, name)
                if not isinstance(module, torch.nn.Module):
                    kind = type(module).__name__
                    raise SourceError(f"{name} of {where} returned a {kind}", fix="Return a torch.nn.Module.")
                return module

            origin: WeightsOrigin = "own" if weights is None else "random"
            fitted = None
            if isinstance(weights, Path):
                origin = "file"
                counts = "num_classes" not in given and _takes(factory, "num_classes")
                module, fitted = _weights.build_and_load(build, weights, spec.weights_key, read_classes=counts)
            else:
                module = build()
        _refuse_promptable(module, argument)
        preprocess, assumed = _read_preprocess(module, argument, spec, size)
        labels = _read_labels(module, argument)
        examples = read_examples(spec.open_inputs)
        module = bind_module(f"python:{argument}", module, spec.fixed_inputs, open_names=list(examples.arrays))
        loaded = _weights.make_loaded_model(
            module,
            weights=origin,
            preprocess=preprocess,
            labels=labels or (fitted.labels_for(fitted.use.classes) if fitted else None),
            checkpoint=fitted.use if fitted else None,
        )
        return replace(loaded, assumed=assumed, further=examples)

    def anchor(self, argument: str, folder: Path) -> str:
        """Make the path of a file absolute; the name of a module stays as it is."""
        file, _, factory = argument.rpartition(":")
        return f"{folder / file}:{factory}" if file.endswith(".py") else argument


@contextmanager
def _folder_on_path(where: str) -> Iterator[None]:
    """Put the file's folder (for a module: the current one) on sys.path, so that it finds its neighbours.

    Neighbours that an earlier factory imported from another folder are forgotten: they may have the same names.
    """
    folder = str(expand_home(where).resolve().parent) if where.endswith(".py") else str(Path.cwd())
    for name, (other, module) in list(_neighbours.items()):
        if other != folder:
            del _neighbours[name]
            if sys.modules.get(name) is module:
                del sys.modules[name]
    before = set(sys.modules)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
        _neighbours.update({name: (folder, sys.modules[name]) for name in _find_imported(folder, before)})


def _find_imported(folder: str, before: set[str]) -> list[str]:
    """Return the new modules, of packages that were not imported `before`, whose file is in `folder`."""
    names = []
    for name in set(sys.modules) - before:
        base = Path(folder, *name.split("."))
        file = Path(getattr(sys.modules[name], "__file__", None) or ".")
        if name.partition(".")[0] not in before and file in (base.with_name(f"{base.name}.py"), base / "__init__.py"):
            names.append(name)
    return names


def _import(where: str) -> ModuleType:
    if not where.endswith(".py"):
        try:
            return importlib.import_module(where)
        except (Exception, SystemExit) as error:  # the user's code may raise anything
            raise _error_in_code(where, "cannot be imported", error) from error
    path = expand_home(where).resolve()
    if not path.is_file():
        raise SourceError(f"there is no file {path}", fix="Write python:FILE.py:FACTORY.")
    name = f"_vitdeploy_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise SourceError(f"{path} is not a Python file", fix="Write python:FILE.py:FACTORY.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickling look the module up
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise _error_in_code(str(path), "cannot be imported", error) from error
    return module


def _find_factory(module: ModuleType, name: str, where: str) -> Callable[..., object]:
    factory = getattr(module, name, None)
    if not callable(factory):
        known = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
        raise SourceError(
            f"{where} has no function {name!r}{did_you_mean(name, known)}",
            fix=f"Its functions are: {', '.join(known) or 'none'}.",
        )
    return factory  # type: ignore[no-any-return]


def _takes(factory: Callable[..., object], name: str) -> bool:
    """Return True if the factory has a parameter of this name."""
    try:
        return name in inspect.signature(factory).parameters
    except (TypeError, ValueError):  # a factory in C
        return False


def _call(factory: Callable[..., object], kwargs: Mapping[str, Any], where: str, name: str) -> object:
    try:
        return factory(**kwargs)
    except (Exception, SystemExit) as error:
        raise _error_in_code(where, f"{name}({', '.join(kwargs)}) failed", error) from error


def _error_in_code(where: str, failure: str, error: BaseException) -> SourceError:
    """Return an error that names the line: of the deepest frame in the user's file, else of the deepest frame."""
    if isinstance(error, SyntaxError):
        place = f"{error.filename}:{error.lineno}"
    else:
        frames = traceback.extract_tb(error.__traceback__)
        in_file = [f for f in frames if Path(f.filename) == expand_home(where).resolve()]
        deepest = (in_file or list(frames))[-1]
        place = f"{deepest.filename}:{deepest.lineno}"
    text = " ".join(str(error).split())[:300]
    return SourceError(f"{where}: {failure}: {type(error).__name__} at {place}: {text}", fix="Correct that line.")


def _read_preprocess(
    module: object, argument: str, spec: ModelSpec, size: tuple[int, int] | None
) -> tuple[Preprocess, dict[str, str]]:
    """Return the module's preprocessing, and what of it is only assumed: see `FileFacts.prepare`."""
    raw = getattr(module, "vitdeploy_preprocess", None)
    if raw is None and size is None:
        raise SourceError(
            f"python:{argument}: its image size is unknown",
            fix="Give --image-size HxW or preprocess in the recipe, or set vitdeploy_preprocess on the module.",
        )
    if raw is None:
        assert size is not None
        return _metadata.FileFacts().prepare(size, 3 if spec.mean is None else len(spec.mean))
    if not isinstance(raw, Mapping):
        raise SourceError(f"python:{argument}: vitdeploy_preprocess is a {type(raw).__name__}", fix="Make it a dict.")
    try:
        return parse(Preprocess, {**raw, **({"size": size} if size else {})}, where="vitdeploy_preprocess"), {}
    except RecipeError as error:
        raise SourceError(f"python:{argument}: {error.message}", fix=error.fix) from None


def _refuse_promptable(module: object, argument: str) -> None:
    """Refuse a model in the parts of segment_anything, whose forward() takes lists of images and prompts.

    Raises:
        SourceError: it is one.
    """
    if all(hasattr(module, part) for part in _PROMPTABLE):
        raise SourceError(
            f"python:{argument} is a promptable model: it has {', '.join(_PROMPTABLE)}",
            fix=f"Write a factory that returns its {_PROMPTABLE[0]}, and export that; or give hf: with SAM, SAM 2 or "
            "EdgeTAM of transformers, which become encoder and decoder.",
        )


def _read_labels(module: object, argument: str) -> tuple[str, ...] | None:
    raw = getattr(module, "vitdeploy_labels", None)
    if raw is None:
        return None
    if isinstance(raw, str) or not all(isinstance(label, str) for label in raw):
        raise SourceError(f"python:{argument}: vitdeploy_labels are not strings", fix="Make it a tuple of class names.")
    return tuple(raw)
