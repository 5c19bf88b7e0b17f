"""The interface of everything that runs a model: a compiled artifact, PyTorch, plain ONNX Runtime.

The stopwatch knows only this interface.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Union

import numpy as np
import numpy.typing as npt

from vitdeploy.errors import CompileError, SourceError, UsageError

if TYPE_CHECKING:
    from typing_extensions import Self

Array = npt.NDArray[Any]
Feeds = Mapping[str, Array]
Inputs = Union[Array, Feeds]  # noqa: UP007  read at run time by Python 3.10 too
"""A batch of images; or all inputs by name, the images first, of a model that takes more than images."""

_MIN_RUNS, _MAX_PROFILED_S = 5, 10.0


@dataclass(frozen=True)
class OperatorTime:
    """One operator in an engine's counters: its name and kind, its ONNX nodes, and milliseconds per run."""

    name: str
    kind: str
    nodes: tuple[str, ...]
    ms: float


@dataclass(frozen=True)
class Counters:
    """An engine's counters over `runs` runs; `total_ms` is the mean wall time of one run."""

    runs: int
    total_ms: float
    operators: tuple[OperatorTime, ...]


class Session(Protocol):
    """An opened model. `effective` holds the settings that the engine really uses, read back from it.

    Any number of threads may use one session at the same time: each gets the answers to its own feeds. A call after
    `close()` raises UsageError. Runs that are under way while another thread closes still return their answers.
    """

    name: str
    threads: int | None
    effective: Mapping[str, str]

    @property
    def device_ms(self) -> float | None:
        """The time of the last run of any thread by the device's own clock, in ms; None where it has none."""

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Return the outputs by name, in float32 or the graph's own type, once they are on the host."""

    def run_all(self, feeds: Sequence[Feeds]) -> None:
        """Run all of them, as many at a time as the engine has streams. Return when the last is done."""

    def profile(self, feeds: Feeds) -> Counters | None:
        """Measure the time per operator with the engine's own counters; None if it has none.

        Counters slow a run down, so this opens the model once more and leaves the timed session alone.
        """

    def close(self) -> None:
        """Free what the engine holds. Closing twice is allowed."""

    def __enter__(self) -> Session:
        """Use it in a `with` block."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""


class Closing(ABC):
    """Base of classes that hold a resource until `close()` or the end of a `with` block."""

    @abstractmethod
    def close(self) -> None:
        """Free the resource."""

    def __enter__(self) -> Self:
        """Use it in a `with` block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()


class SequentialSession(Closing):
    """Base of sessions that answer one query after the other. Without an override they have no counters."""

    device_ms: float | None = None

    @abstractmethod
    def run(self, feeds: Feeds) -> dict[str, Array]:
        """See `Session`."""

    def run_all(self, feeds: Sequence[Feeds]) -> None:
        """Run one after the other."""
        for query in feeds:
            self.run(query)

    def profile(self, feeds: Feeds) -> Counters | None:  # noqa: ARG002  the signature that all sessions share
        """Return None: there are no counters."""
        return None


def as_feeds(inputs: Inputs, image: str) -> Feeds:
    """Return inputs by name; the images alone are called `image`."""
    return inputs if isinstance(inputs, Mapping) else {image: inputs}


def images_of(inputs: Inputs) -> Array:
    """Return the images of a batch of inputs."""
    return next(iter(inputs.values())) if isinstance(inputs, Mapping) else inputs


def closed_error(name: str) -> UsageError:
    """Return the error for a call on the session `name` after it was closed."""
    return UsageError(f"the session {name} is closed", fix="Open it again, and close it after the last run.")


def repeat(run: Callable[[], object], *, runs: int, seconds: float) -> tuple[int, float]:
    """Call `run` for a profile: at least `runs` times and `seconds` long, with limits for slow models.

    A slow model runs at least five times. After that it stops as soon as ten seconds are over.

    Returns:
        The number of calls, and the seconds of all of them together.
    """
    done, total_s = 0, 0.0
    while done < _MIN_RUNS or ((done < runs or total_s < seconds) and total_s < _MAX_PROFILED_S):
        begin = time.perf_counter()
        run()
        total_s, done = total_s + time.perf_counter() - begin, done + 1
    return done, total_s


def is_finite(outputs: Mapping[str, Array]) -> bool:
    """Return True if no floating-point output has NaN or infinity in it."""
    return all(np.isfinite(a).all() for a in outputs.values() if np.issubdtype(a.dtype, np.floating))


def check_output_names(engine_names: Sequence[str], names: Sequence[str]) -> list[str]:
    """Return the names of an engine's outputs: the artifact's `names` by index, or the engine's own if it has none.

    Raises:
        CompileError: the engine has another number of outputs than names are given.
    """
    if names and len(names) != len(engine_names):
        raise CompileError(
            f"the compiled model has {len(engine_names)} outputs ({', '.join(engine_names)}), the manifest "
            f"{len(names)} ({', '.join(names)})",
            fix="Export it again.",
        )
    return list(names or engine_names)


def named_outputs(result: Any) -> dict[str, Any]:
    """Name the tensors that a model returns. The reference and the exported graph share this rule.

    A single tensor is "output". A mapping (such as a Hugging Face ModelOutput) keeps its keys. A tuple becomes
    "output_0", "output_1", …. Everything that is not a tensor (None, nested tuples of hidden states) is left out. This
    file does not import torch, so an object with a `dtype` counts as a tensor.

    Raises:
        SourceError: there is no tensor in it.
    """
    entries: list[tuple[str, Any]] = [("output", result)]
    if isinstance(result, Mapping):
        entries = [(str(key), value) for key, value in result.items()]
    elif isinstance(result, (tuple, list)):
        entries = [(f"output_{i}", value) for i, value in enumerate(result)]
    tensors = {name: value for name, value in entries if hasattr(value, "dtype")}
    if not tensors:
        raise SourceError(
            f"the model returns a {type(result).__name__} without a tensor in it",
            fix="Let its forward() return a tensor, a dict of tensors or a tuple of tensors.",
        )
    return tensors
