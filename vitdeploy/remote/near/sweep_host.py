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
from vitdeploy.errors import MeasureError
from vitdeploy.evidence import Bench, Eval
from vitdeploy.progress import Progress
from vitdeploy.recipe import TargetSpec
from vitdeploy.remote.messages import Probe
from vitdeploy.remote.near.commands import Caller, bench_on, compile_on, connected, evaluate_on, require
from vitdeploy.remote.near.hosts import RemoteHost, find

_DIGITS = 12


@dataclass(frozen=True)
class ReachedHost:
    """A host that has answered: see `vitdeploy.commands.sweep.hosts.SweepHost`."""

    remote: RemoteHost
    probe: Probe
    folder: Path | None = None

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
        """The digest of its machine and module, its targets, and the power mode and clocks of hosts.yaml for jobs.

        A power mode decides how many cores there are, so that those of now do not count then.
        """
        return self._digest(has_other_mode=self.remote.clocks.power_mode is not None)

    def _digest(self, *, has_other_mode: bool) -> str:
        clocks, doctor = self.remote.clocks, self.probe.doctor
        parts = [
            self.facts.hardware if has_other_mode else self.facts.machine,
            self.probe.condition.module,
            round(self.facts.memory_gib),
            clocks.model_dump(),
            {name: target.available for name, target in doctor.targets.items()},
            {name: {device: one.available for device, one in each.items()} for name, each in doctor.devices.items()},
        ]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:_DIGITS]

    @property
    def versions(self) -> Mapping[str, str]:
        """The versions of vitdeploy and of its libraries there."""
        return self.probe.doctor.libraries

    def with_folder(self, folder: Path) -> ReachedHost:
        """Return this host for the work on one trial, whose jobs it knows by the trial's folder."""
        return replace(self, folder=folder)

    def require(self, target: TargetSpec) -> None:
        """Check that it has a target: see `commands.require`."""
        require(self.probe, target.kind, self.remote, target.device)

    def compile(self, bundle: Artifact, progress: Progress) -> Artifact:
        """Compile a bundle in its place: see `compile_on`."""
        compile_on(self.remote, bundle, None, progress, caller=self._caller)
        return artifacts.load(bundle.path)

    def evaluate(self, artifact: Artifact, reference: Path, progress: Progress) -> Eval:
        """Measure the accuracy on the recipe's data: see `evaluate_on`."""
        return evaluate_on(self.remote, artifact, None, progress, reference=reference, caller=self._caller)

    def bench(self, artifact: Artifact, seconds: float, progress: Progress) -> Bench:
        """Measure the latency: see `bench_on`."""
        flags = {"seconds": seconds, "profile": True}
        return bench_on(self.remote, [artifact], progress, flags=flags, caller=self._caller)

    @property
    def _caller(self) -> Caller:
        return Caller(self.folder, self._refuse_change, patient=True)

    def _refuse_change(self, probe: Probe) -> None:
        """Check that the host is what it was when the sweep began, because trials are named by that.

        While a job of somebody else runs there, its power mode may be another one.

        Raises:
            MeasureError: it is not.
        """
        now = replace(self, probe=probe)
        has_other_mode = probe.busy is not None or self.remote.clocks.power_mode is not None
        if now._digest(has_other_mode=has_other_mode) != self._digest(has_other_mode=has_other_mode):
            changed = "another machine, other targets or another power mode"
        elif now.versions != self.versions:
            changed = "other versions"
        else:
            return
        raise MeasureError(
            f"{self.name} has {changed} than when the sweep began", fix="Run the sweep again: it names the trials anew."
        )


def connect_host(name: str, progress: Progress) -> ReachedHost:
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
