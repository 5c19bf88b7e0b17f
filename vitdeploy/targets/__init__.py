"""Backends: one file each, found by its name. All answer the same five questions."""

from __future__ import annotations

import importlib
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from vitdeploy import plugins
from vitdeploy.environment import Host
from vitdeploy.errors import TargetUnavailable, UsageError
from vitdeploy.evidence import Audit, Availability, EvidenceLevel
from vitdeploy.graph.dialect import Dialect, Numbers
from vitdeploy.graph.structure import Structure
from vitdeploy.recipe import Batch, Frozen, TargetSpec, parse
from vitdeploy.session import Session
from vitdeploy.targets._audit import audit_bundle as audit_bundle


@dataclass(frozen=True)
class Bundle:
    """What a compiler is given: the target-ready graph, and what the model is made of."""

    graph: Path
    structure: Structure
    numbers: Numbers
    batch: Batch
    input_name: str
    input_shape: tuple[int, ...]
    """NCHW at the batch size to optimise for."""


@dataclass(frozen=True)
class Compiled:
    """What a compiler made: `runs` names the file in `folder` that the backend opens.

    `audit` is what a compiler read back from it at once; None of what was compiled earlier.
    """

    folder: Path
    runs: str
    backend: str
    audit: Audit | None = None


@dataclass(frozen=True)
class Outside:
    """What the backend's own program, of this name, timed, in milliseconds, query by query.

    On the device, and with all that a caller waits for.
    """

    name: str
    device_ms: tuple[float, ...]
    end_to_end_ms: tuple[float, ...]


@dataclass(frozen=True)
class Watched:
    """A session that gives tensors inside the model besides its outputs.

    Attributes:
        tensors: those that it has, of those asked for.
        evidence: "compiled" if it is the backend that runs, "graph" if something else runs the same graph.
        how: in words, and what watching changes.
    """

    session: Session
    tensors: frozenset[str]
    evidence: EvidenceLevel
    how: str


class Target(Frozen, ABC):
    """A backend with its options. Final classes: one subclass a file."""

    precisions: ClassVar[tuple[str, ...]]
    """The precisions that it takes, its default first. A precision may also name the target itself."""
    engine_module: ClassVar[str]
    """The Python module of its engine."""
    install_hint: ClassVar[str] = ""
    """How to install it on a device, where that is not `pip install` of an extra."""
    built_on_device: ClassVar[bool] = False
    """An engine belongs to one device: elsewhere the bundle is what can be made."""
    runs_on: ClassVar[Literal["cpu", "cuda"]] = "cpu"
    """Where its artifacts run, in PyTorch's words: a speed-up compares both sides there."""

    device: str
    threads: int | None = None

    @property
    def name(self) -> str:
        """As users write it."""
        return type(self).__module__.rpartition(".")[2].replace("_", "-")

    @property
    def default_precision(self) -> str:
        """What `export` makes when no precision is asked for."""
        return self.precisions[0]

    @abstractmethod
    def unavailable(self) -> Availability | None:
        """None when it can compile here; else why not, and what to do."""

    def cannot_run(self) -> Availability | None:
        """None when it can also run here what it compiles; else why not."""
        return self.unavailable()

    @abstractmethod
    def dialect(self) -> Dialect:
        """The form of graph it compiles best."""

    @abstractmethod
    def compile(self, bundle: Bundle, workdir: Path, report: Callable[[str], None] | None = None) -> Compiled:
        """Compile into `workdir`, and audit; `report` is told the phases of a compiler that takes minutes.

        Raises:
            CompileError: the backend refuses the graph.
        """

    @abstractmethod
    def audit(self, bundle: Bundle, compiled: Compiled) -> Audit:
        """Read back from the compiled thing what fused and which precision runs."""

    def time_outside(
        self,
        compiled: Compiled,  # noqa: ARG002  few backends have such a program
        shapes: Mapping[str, tuple[int, ...]],  # noqa: ARG002
        seconds: float,  # noqa: ARG002
    ) -> Outside | None:
        """Times by the backend's own program, where it has one and it is here; on inputs of these shapes."""
        return None

    def rehearse(self, bundle: Bundle) -> Audit | None:  # noqa: ARG002  most targets compile where they are
        """Where it is unavailable: what a like compiler makes of the bundle, to find early what would fail; or None."""
        return None

    @abstractmethod
    def open(self, compiled: Compiled, numbers: Numbers, threads: int | None) -> Session:
        """Open what was compiled for these numbers, to run it here; the session is named TARGET-PRECISION."""

    def open_plain(self, graph: Path, threads: int | None) -> Session | None:  # noqa: ARG002  CPU engines have it
        """Open an ONNX file as it is, in float32, to compare with; None where this target does not offer that."""
        return None

    def watch(self, graph: Path, compiled: Compiled | None, tensors: Collection[str], work: Path) -> Watched:  # noqa: ARG002
        """Open the model so that it gives `tensors`, named as in `graph`, the target-ready graph, as well.

        Args:
            graph: `graph.onnx`.
            compiled: what was made of it; None of a bundle.
            tensors: names of values.
            work: a folder that stays until the session is closed.

        Raises:
            CompileError: the backend refuses the graph.
        """
        from vitdeploy.graph.extra_outputs import with_outputs
        from vitdeploy.graph.onnx_session import OnnxSession

        path = work / "watched.onnx"
        found = with_outputs(graph, tensors, path)
        told = (
            f"{graph.name} in ONNX Runtime on this CPU, operator by operator: {self.name} does not give up its tensors"
        )
        return Watched(OnnxSession(path, lean=True), found, "graph", told)

    def require(self) -> None:
        """Refuse to go on when it cannot run here."""
        missing = self.unavailable()
        if missing is not None:
            raise TargetUnavailable(f"{self.name}: {missing.why}", fix=missing.fix)

    def load_engine(self) -> None:
        """Load the engine's libraries, so that opening a model after it costs what the model costs."""
        importlib.import_module(self.engine_module)

    def command_to_try(self, input_name: str, shape: tuple[int | str, ...], batch: Batch) -> str | None:  # noqa: ARG002
        """Return a command of the backend's own that runs what was compiled; None where it has none."""
        return None

    def refuse_numbers(self, numbers: Numbers, host: Host | None = None) -> str | None:  # noqa: ARG002  some lack units
        """Return why the device has no units for these numbers, None if it has; of `host`, if it will not run here."""
        return None


def names() -> list[str]:
    """All targets, as users write them."""
    return plugins.names(sys.modules[__name__])


def kind_of(name: str) -> type[Target]:
    """Return the class of a target.

    Raises:
        UsageError: there is no such target.
    """
    try:
        return plugins.find(sys.modules[__name__], name, Target)  # type: ignore[type-abstract]
    except LookupError as error:
        raise UsageError(f"target {error}", fix="Choose one of them.") from None


def find(spec: TargetSpec) -> Target:
    """Return the target of a recipe, its options validated.

    Raises:
        UsageError: there is no such target.
        RecipeError: an option does not fit.
    """
    device = {} if spec.device is None else {"device": spec.device}
    return parse(
        kind_of(spec.kind), {**device, **spec.options}, where=f"target {spec.kind}", beside=("kind", "batch", "input")
    )
