"""What runs a model, whoever does: a compiled artifact, PyTorch, plain ONNX Runtime. The stopwatch sees only this."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from vitdeploy.errors import SourceError

if TYPE_CHECKING:
    from typing_extensions import Self

Array = npt.NDArray[Any]
Feeds = Mapping[str, Array]

_MIN_RUNS, _MAX_PROFILED_S = 5, 10.0


@dataclass(frozen=True)
class OperatorTime:
    """One operator by an engine's counters: its name and kind, the ONNX nodes it was made from, milliseconds a run."""

    name: str
    kind: str
    nodes: tuple[str, ...]
    ms: float


@dataclass(frozen=True)
class Counters:
    """What an engine counted in `runs` runs; `total_ms` is their wall time, a run."""

    runs: int
    total_ms: float
    operators: tuple[OperatorTime, ...]


class Session(Protocol):
    """An opened model. `effective` says what the engine really uses (threads, precision), read back from it."""

    name: str
    threads: int | None
    effective: Mapping[str, str]

    @property
    def device_ms(self) -> float | None:
        """The time of the last run by the device's own clock, in milliseconds; None where it has none."""

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Outputs by name, float32 or as the graph says; returns when they are on the host."""

    def run_all(self, feeds: Sequence[Feeds]) -> None:
        """Answer all of them, as many at a time as the engine has streams; returns when the last is done."""

    def profile(self, feeds: Feeds) -> Counters | None:
        """Time per operator, by the engine's own counters; None where it has none.

        Counters slow a run down, so the model is opened once more for it; the timed session stays as it is.
        """

    def close(self) -> None:
        """Free what the engine holds."""

    def __enter__(self) -> Session:
        """Use it in a `with` block."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""


class Closing(ABC):
    """What holds something until it is closed, by hand or at the end of a `with` block."""

    @abstractmethod
    def close(self) -> None:
        """Free what is held."""

    def __enter__(self) -> Self:
        """Use it in a `with` block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()


class SequentialSession(Closing):
    """What sessions share that answer one query after the other, and have no counters unless they say so."""

    device_ms: float | None = None

    @abstractmethod
    def run(self, feeds: Feeds) -> dict[str, Array]:
        """See `Session`."""

    def run_all(self, feeds: Sequence[Feeds]) -> None:
        """One after the other."""
        for one in feeds:
            self.run(one)

    def profile(self, feeds: Feeds) -> Counters | None:  # noqa: ARG002  as all sessions
        """None: there are no counters."""
        return None


def repeated(run: Callable[[], object], *, runs: int, seconds: float) -> tuple[int, float]:
    """Run so often and for so long, for a profile; a slow model five times at least, but not for more than ten seconds.

    Returns:
        How often, and the seconds in all.
    """
    done, total_s = 0, 0.0
    while done < _MIN_RUNS or ((done < runs or total_s < seconds) and total_s < _MAX_PROFILED_S):
        begin = time.perf_counter()
        run()
        total_s, done = total_s + time.perf_counter() - begin, done + 1
    return done, total_s


def finite(outputs: Mapping[str, Array]) -> bool:
    """Whether every floating output is free of NaN and infinity."""
    return all(np.isfinite(a).all() for a in outputs.values() if np.issubdtype(a.dtype, np.floating))


def named_outputs(result: Any) -> dict[str, Any]:
    """The tensors that a model returned, by name: the one rule for the reference and for the exported graph.

    A tensor is "output"; a mapping (such as a Hugging Face ModelOutput) keeps its keys; a tuple counts "output_0", ….
    What is not a tensor (None, nested tuples of hidden states) is left out. No torch here: what has a `dtype` is one.

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
