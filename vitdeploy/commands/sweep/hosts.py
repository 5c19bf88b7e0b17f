"""Hosts as places of trials: the work that a sweep gives them, and which of them are busy or lost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from vitdeploy.artifact import Artifact
from vitdeploy.environment import Host
from vitdeploy.errors import HostUnreachable, UsageError
from vitdeploy.evidence import Bench, Eval
from vitdeploy.progress import Progress
from vitdeploy.recipe import TargetSpec


class SweepHost(Protocol):
    """A machine over SSH that has answered. It can be pickled."""

    @property
    def name(self) -> str:
        """The name, as the user wrote it."""

    @property
    def facts(self) -> Host:
        """The facts about its machine."""

    @property
    def kind(self) -> str:
        """The digest of what decides results there besides the versions. Hosts of one kind share trials."""

    @property
    def versions(self) -> Mapping[str, str]:
        """The versions of vitdeploy and of its libraries there."""

    def with_folder(self, folder: Path) -> SweepHost:
        """Return this host for the work on one trial.

        It knows the jobs by the folder of the trial: a sweep that was killed gets the result of one that still runs.
        """

    def require(self, target: TargetSpec) -> None:
        """Check that it has a target.

        Raises:
            TargetUnavailable: it has not.
        """

    def compile(self, bundle: Artifact, progress: Progress) -> Artifact:
        """Compile a bundle there. The artifact takes its place here.

        Raises:
            HostUnreachable: it does not answer any more.
            RemoteError: it failed.
        """

    def evaluate(self, artifact: Artifact, reference: Path, progress: Progress) -> Eval:
        """Measure the accuracy there, beside stored answers of the reference; store it here. Errors: see `compile`."""

    def bench(self, artifact: Artifact, seconds: float, progress: Progress) -> Bench:
        """Measure the latency there; store it here. Errors: see `compile`."""


FindHost = Callable[[str], SweepHost]
"""Connects to the host that a sweep file names."""


def no_host(name: str) -> SweepHost:
    """Refuse to connect to any host.

    Raises:
        UsageError: always.
    """
    raise UsageError(f"the host {name} cannot be used here", fix="Run the sweep with vitdeploy sweep.")


@dataclass
class HostPool:
    """The hosts of one run: which are at work, and which do not answer any more."""

    hosts: Mapping[str, SweepHost] = field(default_factory=dict)
    _busy: set[str] = field(init=False, default_factory=set)
    _lost: dict[str, str] = field(init=False, default_factory=dict)

    def list_living(self, names: Iterable[str]) -> list[SweepHost]:
        """Return those of some hosts that were not lost, at work or not."""
        return [self.hosts[name] for name in names if name not in self._lost]

    def find_free(self, names: Iterable[str]) -> SweepHost | None:
        """Return one of some hosts that is not at work; None if there is none."""
        return next((host for host in self.list_living(names) if host.name not in self._busy), None)

    def take(self, host: SweepHost) -> None:
        """Note that a host is at work."""
        self._busy.add(host.name)

    def release(self, host: SweepHost) -> None:
        """Note that a host is free again."""
        self._busy.discard(host.name)

    def lose(self, host: SweepHost, error: HostUnreachable) -> None:
        """Note that a host does not answer. It gets no more work in this run."""
        self._lost.setdefault(host.name, error.message)

    def explain(self, names: Iterable[str]) -> str:
        """Return the reason why none of some hosts is left."""
        return "; ".join(self._lost[name] for name in names if name in self._lost)
