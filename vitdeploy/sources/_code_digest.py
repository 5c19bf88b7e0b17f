"""A digest of the code and settings that a PyTorch model computes with. Weights alone do not say what it computes."""

from __future__ import annotations

import hashlib
import re
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import nn

_PLAIN = (bool, int, float, complex, str, bytes, type(None))
_IN_WEIGHTS = ("_parameters", "_buffers", "_modules")
_DEEPEST = 6
"""Levels of nested settings that are read. Configurations hold lists of small records at most."""
_OF_NO_MODEL = ("torch.nn.modules", "vitdeploy.")
"""Modules whose classes are no part of the code of a model, although they are among those of its parts."""
_PATH_DIGEST = re.compile(r"^(_vitdeploy_.*)_[0-9a-f]{12}$")
_INSTALLED = tuple(str(Path(sysconfig.get_paths()[key])) for key in ("stdlib", "platstdlib", "purelib", "platlib"))


def code_digest(module: nn.Module) -> str:
    """Return the sha256 of everything except parameters and buffers that decides what `module` computes.

    It covers the tree of sub-modules with their plain attributes (also arrays and unregistered tensors) and
    configurations, and the current code of every method, also of one that was replaced after its class was defined.
    For code outside installed libraries it also covers the files, and the functions and constants that the code uses.
    It does not cover versions of libraries, nor vitdeploy's own classes around a model.
    """
    sha = hashlib.sha256()
    walk = _Walk()
    for name, part in module.named_modules():
        sha.update(f"{name}:{_qualified(type(part))};".encode())
        attributes = {key: value for key, value in vars(part).items() if key not in _IN_WEIGHTS}
        for line in walk.read_settings(attributes):
            sha.update(line.encode())
        for base in type(part).__mro__:
            if not (base.__module__ or "").startswith(_OF_NO_MODEL):
                walk.add(base)
    for line in walk.read_code():
        sha.update(line.encode())
    return sha.hexdigest()


class _Walk:
    """Collects the code that a model reaches, each piece once."""

    def __init__(self) -> None:
        self._pending: list[Any] = []
        self._added: set[int] = set()
        self._files: set[str] = set()

    def add(self, value: Any) -> None:
        """Add a class, function or module to what `read_code` reads."""
        if isinstance(value, MethodType):
            value = value.__func__
        if isinstance(value, (type, FunctionType, ModuleType)) and id(value) not in self._added:
            self._added.add(id(value))
            self._pending.append(value)

    def read_settings(self, values: Mapping[str, Any], depth: int = 0) -> Iterator[str]:
        """Yield lines about plain attributes, in the order of their names; add the code among them."""
        for name in sorted(map(str, values)):
            yield from self._read_setting(name, values.get(name), depth)

    def read_code(self) -> Iterator[str]:
        """Yield lines about the added code, in an order that does not depend on memory addresses."""
        lines: list[str] = []
        while self._pending:
            lines += self._read(self._pending.pop())
        yield from sorted(lines)
        for file in sorted(self._files):
            yield f"{Path(file).name}:{hashlib.sha256(Path(file).read_bytes()).hexdigest()};"

    def _read_setting(self, name: str, value: Any, depth: int) -> Iterator[str]:
        import torch

        if isinstance(value, torch.nn.Module) or depth > _DEEPEST:
            return
        if isinstance(value, _PLAIN):
            yield f"{name}={value!r};"
        elif isinstance(value, (torch.Tensor, np.ndarray)):
            yield f"{name}={_digest_of_array(value)};"
        elif isinstance(value, (list, tuple)):
            for index, item in enumerate(value):
                yield from self._read_setting(f"{name}[{index}]", item, depth + 1)
        elif isinstance(value, (set, frozenset)):
            yield f"{name}={sorted(map(repr, value))};"
        elif isinstance(value, Mapping) and name.endswith("_hooks"):  # by numbers that count all hooks of the process
            yield from self._read_setting(name, list(value.values()), depth)
        elif isinstance(value, Mapping):
            for line in self.read_settings(value, depth + 1):
                yield f"{name}.{line}"
        elif isinstance(value, (type, FunctionType, MethodType)):
            self.add(value)
            yield f"{name}={_qualified(value)};"
        else:
            yield f"{name}={_qualified(type(value))};"
            self.add(type(value))
            state = vars(value) if hasattr(value, "__dict__") else {}
            parts = {key: getattr(value, key) for key in ("func", "args", "keywords") if hasattr(value, key)}
            for line in self.read_settings({**state, **parts}, depth + 1):
                yield f"{name}.{line}"

    def _read(self, value: type | FunctionType | ModuleType) -> Iterator[str]:
        if isinstance(value, FunctionType):
            yield f"{_qualified(value)}:{_digest(value.__code__)}:{self._describe_defaults(value):.200};"
        is_users = not _is_installed(value)
        if is_users:
            self._add_file(value)
        if isinstance(value, type):
            for member in vars(value).values():
                inner = getattr(member, "__func__", None) or getattr(member, "fget", None) or member
                if isinstance(inner, FunctionType):
                    self.add(inner)
        elif isinstance(value, FunctionType) and is_users:
            yield from self._read_globals(value)
        elif isinstance(value, ModuleType) and is_users:
            for member in vars(value).values():
                self.add(member)

    def _describe_defaults(self, function: FunctionType) -> str:
        """Return the default arguments in words that are the same in every process: without addresses in memory."""
        defaults = function.__defaults__
        if all(isinstance(value, _PLAIN) for value in defaults or ()):
            return repr(defaults)
        return "".join(self.read_settings({str(index): value for index, value in enumerate(defaults or ())}))

    def _read_globals(self, function: FunctionType) -> Iterator[str]:
        """Add the code that a user's function uses by name, and yield lines about the constants."""
        for name in sorted(_names_used(function.__code__) & function.__globals__.keys()):
            value = function.__globals__[name]
            if isinstance(value, (type, FunctionType, MethodType, ModuleType)):
                self.add(value)
            elif isinstance(value, (*_PLAIN, list, tuple, dict, set, frozenset, np.ndarray)):
                for line in self.read_settings({name: value}):
                    yield f"{_without_path(function.__module__)}.{line}"
        for cell in function.__closure__ or ():
            self.add(cell.cell_contents)

    def _add_file(self, value: type | FunctionType | ModuleType) -> None:
        name = value.__name__ if isinstance(value, ModuleType) else value.__module__
        file = getattr(sys.modules.get(name or ""), "__file__", None)
        if file and Path(file).is_file():
            self._files.add(file)


def _is_installed(value: type | FunctionType | ModuleType) -> bool:
    """Return True if it belongs to Python or an installed library, whose version identifies it."""
    name = value.__name__ if isinstance(value, ModuleType) else (value.__module__ or "builtins")
    module = sys.modules.get(name)
    file = getattr(module, "__file__", None)
    if file is None:
        return name.partition(".")[0] in sys.builtin_module_names or (module is not None and name != "__main__")
    return str(file).startswith(_INSTALLED)


def _without_path(module: str | None) -> str:
    """Return a module's name without the digest of its path that `python.py` gives it: a model may be moved."""
    return _PATH_DIGEST.sub(r"\1", module or "")


def _names_used(code: CodeType) -> set[str]:
    inner = (const for const in code.co_consts if isinstance(const, CodeType))
    return set(code.co_names).union(*map(_names_used, inner))


def _digest(code: CodeType) -> str:
    """Return the sha256 of a function's instructions and constants; its place in the file does not matter."""
    sha = hashlib.sha256(code.co_code)
    for const in code.co_consts:
        if isinstance(const, CodeType):
            sha.update(_digest(const).encode())
        else:
            sha.update((str(sorted(map(repr, const))) if isinstance(const, frozenset) else repr(const)).encode())
    sha.update(" ".join((*code.co_names, *code.co_freevars)).encode())
    return sha.hexdigest()


def _digest_of_array(array: Any) -> str:
    """Return the sha256 of the numbers of a tensor or array, with their type and shape."""
    numbers = array if isinstance(array, np.ndarray) else array.detach().cpu().float().numpy()
    return hashlib.sha256(f"{array.dtype}{array.shape}".encode() + numbers.tobytes()).hexdigest()


def _qualified(value: Any) -> str:
    return f"{_without_path(getattr(value, '__module__', ''))}.{getattr(value, '__qualname__', type(value).__name__)}"
