"""Objects with the recorded members of TensorRT's bindings and no other, and what the fakes share."""

from __future__ import annotations

from typing import Any

import numpy as np

MAGIC = b"FAKE-PLAN "
NUMPY = {
    "FLOAT": np.float32, "HALF": np.float16, "INT8": np.int8, "INT32": np.int32, "INT64": np.int64, "UINT8": np.uint8,
}  # fmt: skip


class Number:
    """Enum members turn into their number, and are not it."""

    def __int__(self) -> int:
        return int(self.value)  # type: ignore[attr-defined]


class Listed(type):
    """A class whose listing names its recorded members, whether or not anything here needs them."""

    def __dir__(cls) -> list[str]:
        return sorted(vars(cls).get("_members", ()))


class Guarded(metaclass=Listed):
    """An object with the recorded members only."""

    _trt: Any
    _members: frozenset[str] = frozenset()
    _name = ""

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("_") and name not in type(self)._members:
            raise AttributeError(f"TensorRT {self._trt.release}: {self._name!r} object has no attribute {name!r}")
        return object.__getattribute__(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_") and name not in self._members:
            raise AttributeError(f"TensorRT {self._trt.release}: {self._name!r} object has no attribute {name!r}")
        object.__setattr__(self, name, value)


def want(value: Any, kind: Any) -> None:
    if not isinstance(value, kind):
        raise TypeError(f"incompatible function arguments: {value!r} is no {kind.__name__}")


class Callback(Guarded):
    """ILogger, IProgressMonitor and IProfiler: subclassed in Python, which has to call their constructor by name."""

    def __init__(self) -> None:
        self._ready = True


def shape_of(value: Any) -> tuple[int, ...]:
    sizes = value.type.tensor_type.shape.dim
    return tuple(int(size.dim_value) if size.HasField("dim_value") else -1 for size in sizes)


def heard(callback: Any) -> None:
    if not callback.__dict__.get("_ready"):
        raise TypeError("__init__() must be called when overriding __init__")


def say(logger: Any, severity: str, text: str) -> None:
    type(logger).log(logger, logger._trt.ILogger.Severity[severity], text)


def untold(trt: Any, profile: Any) -> bool:
    return bool(profile) and trt.release.startswith("10")
