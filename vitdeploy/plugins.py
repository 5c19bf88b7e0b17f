"""Plug-ins found by their file name: to add a target, source or task, add a file."""

from __future__ import annotations

import ast
import importlib
import pkgutil
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import TypeVar

T = TypeVar("T")


def names_in(folder: str) -> list[str]:
    """Return the plug-ins of a folder of this package by their files alone: nothing is imported."""
    modules = pkgutil.iter_modules([str(Path(__file__).parent / folder)])
    return sorted(m.name.replace("_", "-") for m in modules if not m.name.startswith("_"))


def forms_in(folder: str) -> list[str]:
    """Return what users write for each plug-in of a folder: the words in backticks that its docstring begins with.

    The files are read and not imported, because `--help` has no time for that.
    """
    forms = []
    for name in names_in(folder):
        file = Path(__file__).parent / folder / f"{name.replace('-', '_')}.py"
        docstring = ast.get_docstring(ast.parse(file.read_bytes())) or ""
        forms.append(docstring.split("`")[1] if docstring.startswith("`") else name)
    return forms


def names(package: ModuleType) -> list[str]:
    """List the plug-ins of `package` as users write them: `tensorrt_rtx.py` is `tensorrt-rtx`, `_x.py` is private."""
    return sorted(
        m.name.replace("_", "-") for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_")
    )


def find(package: ModuleType, name: str, base: type[T]) -> type[T]:
    """Return the one subclass of `base` that the file `name` of `package` defines.

    Raises:
        LookupError: there is no such file. The message names the nearest.
        TypeError: the file defines none, or more than one.
    """
    known = names(package)
    if name not in known:
        raise LookupError(f"{name!r} is not one of {', '.join(known)}{did_you_mean(name, known)}")
    module = importlib.import_module(f"{package.__name__}.{name.replace('-', '_')}")
    classes = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, base) and value.__module__ == module.__name__
    ]
    if len(classes) != 1:
        raise TypeError(f"{module.__name__} must define exactly one {base.__name__}, it defines {len(classes)}")
    return classes[0]


def did_you_mean(word: str, known: list[str]) -> str:
    """Return ` (did you mean 'x'?)`, or an empty string if no known word is similar."""
    near = get_close_matches(word, known, n=1, cutoff=0.6)
    return f" (did you mean {near[0]!r}?)" if near else ""
