"""A host as a place of a sweep's trials."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from vitdeploy import artifact as artifacts
from vitdeploy.artifact import Artifact
from vitdeploy.environment import Host
from vitdeploy.evidence import Bench, Eval
from vitdeploy.progress import Progress
from vitdeploy.recipe import TargetSpec
from vitdeploy.remote.messages import Probe
from vitdeploy.remote.near.commands import bench_on, compile_on, connected, evaluate_on, require
from vitdeploy.remote.near.hosts import RemoteHost, find

_DIGITS = 12


@dataclass(frozen=True)
class ReachedHost:
    """A host that has answered: see `vitdeploy.commands.sweep.hosts.SweepHost`."""

    remote: RemoteHost
    probe: Probe
    about: Path | None = None

    @property
    def name(self) -> str:
        """The name, as the user wrote it."""
        return self.remote.name

    @property
    def facts(self) -> Host:
        """The facts about its machine."""
        return self.probe.doctor.host

    @property
    def kind(self) -> str:
        """The digest of its kind of machine, with the power mode and the clocks that hosts.yaml sets for jobs."""
        clocks = self.remote.clocks
        if clocks.power_mode is None and not clocks.lock_clocks:
            return self.facts.machine
        machine = self.facts.machine if clocks.power_mode is None else self.facts.hardware
        return hashlib.sha256(json.dumps([machine, clocks.model_dump()]).encode()).hexdigest()[:_DIGITS]

    @property
    def versions(self) -> Mapping[str, str]:
        """The versions of vitdeploy and of its libraries there."""
        return self.probe.doctor.libraries

    def known_by(self, folder: Path) -> ReachedHost:
        """Return this host for the work about a folder, by which it knows its jobs."""
        return replace(self, about=folder)

    def require(self, target: TargetSpec) -> None:
        """Check that it has a target: see `commands.require`."""
        require(self.probe, target.kind, self.remote, target.device)

    def compile(self, bundle: Artifact, progress: Progress) -> Artifact:
        """Compile a bundle in its place: see `compile_on`."""
        compile_on(self.remote, bundle, None, progress, about=self.about)
        return artifacts.load(bundle.path)

    def evaluate(self, artifact: Artifact, reference: Path, progress: Progress) -> Eval:
        """Measure the accuracy on the recipe's data: see `evaluate_on`."""
        return evaluate_on(self.remote, artifact, None, progress, reference=reference, about=self.about)

    def bench(self, artifact: Artifact, seconds: float, progress: Progress) -> Bench:
        """Measure the latency: see `bench_on`."""
        return bench_on(
            self.remote, [artifact], progress, flags={"seconds": seconds, "profile": True}, about=self.about
        )


def reach(name: str, progress: Progress) -> ReachedHost:
    """Connect to a host once, and keep what it reports.

    Args:
        name: a name in hosts.yaml, or `ssh://USER@HOST`.
        progress: gets a step.

    Raises:
        UsageError: there is no such name, or the URL is not valid.
        RemoteError: the host cannot be reached, or has no vitdeploy of this version.
    """
    remote = find(name)
    with connected(remote, progress) as (_, probe):
        return ReachedHost(remote, probe)
