"""Targets: backends that compile and run a model, one per file, found by its name."""

from __future__ import annotations

import importlib
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from vitdeploy import plugins
from vitdeploy.environment import Host
from vitdeploy.errors import TargetUnavailable, UsageError
from vitdeploy.evidence import Audit, Availability
from vitdeploy.graph.dialect import FLOAT32, Dialect, Numbers
from vitdeploy.graph.structure import Structure
from vitdeploy.recipe import Frozen, TargetSpec, parse
from vitdeploy.session import Session
from vitdeploy.targets._audit import audit_bundle as audit_bundle
from vitdeploy.targets._bundle import Bundle as Bundle
from vitdeploy.targets._bundle import Compiled as Compiled
from vitdeploy.targets._bundle import ExternalTimes as ExternalTimes
from vitdeploy.targets._bundle import WatchedSession as WatchedSession

if TYPE_CHECKING:
    from vitdeploy.targets._recording import CompilerRecorder as CompilerRecorder


class Target(Frozen, ABC):
    """A backend with its options. Each file of this package has one subclass; it has none itself."""

    precisions: ClassVar[tuple[str, ...]]
    """The precisions that it takes on its default device, its default first. A precision can also name the target."""
    devices: ClassVar[tuple[str, ...]] = ()
    """The other devices that `doctor` reports, if they need other libraries than the default device."""
    title: ClassVar[str] = ""
    """The name of its engine in reports, if it differs from `name`."""
    engine_module: ClassVar[str]
    """The Python module of its engine."""
    install_hint: ClassVar[str] = ""
    """The command that installs it on a device, if that is not `pip install` of an extra."""
    is_recorded: ClassVar[bool] = False
    """True if `doctor --record` builds models with it; then it has a `recorder` where it is installed."""
    watches_alone: ClassVar[bool] = False
    """True if its compiler gives values inside a model without onnx: bundles then bring values to compare with."""
    runs_suffix: ClassVar[str] = ""
    """The end of the names of the files that its engine opens."""

    device: str
    threads: int | None = None

    @property
    def name(self) -> str:
        """The name as users write it."""
        return type(self).__module__.rpartition(".")[2].replace("_", "-")

    @property
    def built_on_device(self) -> bool:
        """True if it compiles only on a machine with its device. Other machines make a bundle."""
        return False

    @property
    def runs_on(self) -> Literal["cpu", "cuda"]:
        """The type of device that its artifacts run on, as PyTorch names it. A speed-up compares both sides there."""
        return "cpu"

    def list_precisions(self) -> tuple[str, ...]:
        """Return the precisions that it takes on its device, its default first."""
        return self.precisions

    @property
    def default_precision(self) -> str:
        """The precision of `export` if the user names none."""
        return self.list_precisions()[0]

    @abstractmethod
    def unavailable(self) -> Availability | None:
        """Return None if it can compile here, else the reason and what to do."""

    def unavailable_on_device(self) -> Availability | None:
        """Return the same about a machine that a bundle was brought to: what to do there, not elsewhere."""
        return self.unavailable()

    def cannot_run(self) -> Availability | None:
        """Return None if it can also run here what it compiles, else the reason."""
        return self.unavailable()

    @abstractmethod
    def dialect(self, host: Host | None = None) -> Dialect:
        """Return the form of graph that it compiles best for the machine `host`; None: this one."""

    def known_faults(
        self,
        structure: Structure | None = None,  # noqa: ARG002  nothing is known of most compilers
        *,
        takes_batch_one: bool = True,  # noqa: ARG002
    ) -> tuple[str, ...]:
        """Return the public reports about this compiler that fit a graph, a line each.

        Args:
            structure: of the graph; None: all reports about the installed version.
            takes_batch_one: whether the engine will take a single image.
        """
        return ()

    def reported_safe_forms(
        self,
        structure: Structure,  # noqa: ARG002  as above
        *,
        takes_batch_one: bool = True,  # noqa: ARG002
    ) -> tuple[str, ...]:
        """Return the safe forms that helped in the public reports that fit a graph, in the order to try."""
        return ()

    def preferred_safe_forms(
        self,
        structure: Structure,  # noqa: ARG002  as above
        *,
        takes_batch_one: bool = True,  # noqa: ARG002
    ) -> Mapping[str, str]:
        """Return those to build before the plain form, in the order to try, each with the report that it is for."""
        return {}

    @abstractmethod
    def compile(self, bundle: Bundle, workdir: Path, report: Callable[[str], None] | None = None) -> Compiled:
        """Compile into `workdir`, and audit.

        Args:
            bundle: the graph and the structure of the model.
            workdir: an existing folder.
            report: called with the name of each phase, if compiling takes minutes.

        Raises:
            CompileError: the backend refuses the graph.
        """

    @abstractmethod
    def audit(self, bundle: Bundle, compiled: Compiled) -> Audit:
        """Read back from the compiled model what fused, and in which precision it runs."""

    def time_externally(
        self,
        compiled: Compiled,  # noqa: ARG002  few backends have such a program
        shapes: Mapping[str, tuple[int, ...]],  # noqa: ARG002
        seconds: float,  # noqa: ARG002
    ) -> ExternalTimes | None:
        """Measure times with the backend's own program, on inputs of these shapes; None without one."""
        return None

    def recorder(self, numbers: Numbers) -> CompilerRecorder | None:  # noqa: ARG002  most compilers are known well enough
        """Return what `vitdeploy doctor --record` needs of the installed compiler, for models with these numbers.

        None if it is not installed, or is not recorded.

        Raises:
            TargetUnavailable: it is installed, and does not load.
        """
        return None

    def rehearse(self, bundle: Bundle) -> Audit | None:  # noqa: ARG002  most targets compile where they are
        """Compile the bundle with a similar compiler, where this one is unavailable, to find problems early.

        Return None if there is no such compiler.
        """
        return None

    @abstractmethod
    def open(self, compiled: Compiled, numbers: Numbers, threads: int | None) -> Session:
        """Open a model that was compiled for these numbers. The session is named TARGET-PRECISION."""

    @property
    def runs_streams(self) -> bool:
        """True if several inferences can share its device, each on a part of the threads."""
        return False

    @property
    def hints_throughput(self) -> bool:
        """True if its engine has a setting of its own for throughput."""
        return False

    def open_streams(
        self,
        compiled: Compiled,  # noqa: ARG002  few engines run several inferences at a time
        numbers: Numbers,  # noqa: ARG002
        threads: int | None,  # noqa: ARG002
        streams: int | None,  # noqa: ARG002
    ) -> Session:
        """Open a model for throughput.

        Args:
            compiled: the compiled model.
            numbers: the types that it was compiled for.
            threads: of all streams together.
            streams: inferences at the same time; None: the engine's own setting for throughput.

        Raises:
            UsageError: it runs one inference at a time.
        """
        raise UsageError(f"{self.name} runs one inference at a time on {self.device}", fix="Open it without streams.")

    def open_plain(
        self,
        graph: Path,  # noqa: ARG002  CPU engines have it
        threads: int | None,  # noqa: ARG002
        numbers: Numbers = FLOAT32,  # noqa: ARG002
    ) -> Session | None:
        """Open an ONNX file as it is, in float32 or another float type, to compare with; None if it is not possible."""
        return None

    def watch(
        self,
        bundle: Bundle,
        compiled: Compiled | None,  # noqa: ARG002  others open this
        tensors: Collection[str],
        work: Path,
    ) -> WatchedSession:
        """Open the model so that it returns `tensors` as well.

        Args:
            bundle: the target-ready graph.
            compiled: the compiled model; None for a bundle.
            tensors: names of values in the graph.
            work: a folder that exists until the session is closed.

        Raises:
            CompileError: the backend refuses the graph.
        """
        from vitdeploy.graph.extra_outputs import with_outputs
        from vitdeploy.graph.onnx_session import OnnxSession

        path = work / "watched.onnx"
        available = with_outputs(bundle.graph, tensors, path)
        graph = f"{bundle.graph.name} in ONNX Runtime on this CPU, operator by operator"
        how = f"{graph}: {self.name} does not return inner tensors"
        return WatchedSession(OnnxSession(path, lean=True), available, "graph", how)

    def require(self) -> None:
        """Check that it is available here.

        Raises:
            TargetUnavailable: it is not.
        """
        self._refuse(self.unavailable())

    def require_to_compile(self) -> None:
        """Check that it can compile a bundle on this machine, which may be the device.

        Raises:
            TargetUnavailable: it cannot; the fix is about this machine.
        """
        self._refuse(self.unavailable_on_device())

    def _refuse(self, problem: Availability | None) -> None:
        if problem is not None:
            raise TargetUnavailable(f"{self.name}: {problem.why}", fix=problem.fix)

    def installed_engine(self) -> str:
        """Return name and version of the engine on this machine, as `Compiled.backend`; empty if it is not here."""
        if find_spec(self.engine_module) is None:
            return ""
        module = importlib.import_module(self.engine_module)
        return f"{self.engine_module} {getattr(module, '__version__', '')}"

    def load_engine(self) -> None:
        """Load the engine's libraries. A start-up time measured after that is the model's alone."""
        importlib.import_module(self.engine_module)

    def command_to_try(self, input_name: str, shape: tuple[int, ...], *, static: bool) -> str | None:  # noqa: ARG002
        """Return a command that runs the compiled model with the backend's own tools, or None.

        Args:
            input_name: the name of the image input.
            shape: the shape to run.
            static: whether the model takes this shape only.
        """
        return None

    def command_to_build(self, input_name: str, shapes: Sequence[tuple[int, ...]]) -> str | None:  # noqa: ARG002
        """Return a command that compiles `graph.onnx` with the backend's own tools, or None.

        Args:
            input_name: the name of the image input.
            shapes: the smallest shape, the one to optimise for, and the largest; empty if there is only one.
        """
        return None

    def refuse_numbers(self, numbers: Numbers, host: Host | None = None) -> str | None:  # noqa: ARG002  some lack units
        """Return None if the device has units for these numbers, else the reason why not.

        Args:
            numbers: the types of a precision.
            host: the machine that it will run on, if not this one.
        """
        return None


def names() -> list[str]:
    """List all targets as users write them."""
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
    """Return the target of a recipe, with validated options.

    Raises:
        UsageError: there is no such target.
        RecipeError: an option does not fit.
    """
    device = {} if spec.device is None else {"device": spec.device}
    return parse(
        kind_of(spec.kind),
        {**device, **spec.options},
        where=f"target {spec.kind}",
        beside=("kind", "batch", "input", "portable"),
    )
