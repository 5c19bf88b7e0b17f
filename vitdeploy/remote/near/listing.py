"""The state of remote hosts, asked all at once."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

from pydantic import BaseModel, ConfigDict

from vitdeploy.errors import VitdeployError
from vitdeploy.frozen import replace
from vitdeploy.progress import Progress, Silent
from vitdeploy.remote.messages import Probe
from vitdeploy.remote.near import hosts
from vitdeploy.remote.near.client import Device
from vitdeploy.remote.near.hosts import RemoteHost
from vitdeploy.remote.near.ssh import Link

_PARALLEL = 8


class HostState(BaseModel):
    """A host: "ready", "busy" with a job, "unusable" (no compatible vitdeploy), or "unreachable"."""

    model_config = ConfigDict(frozen=True)
    name: str
    url: str
    state: Literal["ready", "busy", "unusable", "unreachable"]
    why: str = ""
    fix: str = ""
    device: Probe | None = None
    freed_bytes: int | None = None
    """Freed by --clean."""


class Listing(BaseModel):
    """The output of `vitdeploy hosts`: the file that names hosts, and the state of each."""

    model_config = ConfigDict(frozen=True)
    file: str
    hosts: tuple[HostState, ...]


def list_hosts(names: Sequence[str], progress: Progress, *, clean: bool = False) -> Listing:
    """Ask these hosts (names or URLs) for their state; without names, ask all hosts of the file.

    Args:
        names: as `--host` takes them.
        progress: shows the step.
        clean: also remove everything there that no running job needs.

    Raises:
        UsageError: an unknown name.
        RecipeError: the hosts file is damaged.
    """
    chosen = [hosts.find(name) for name in names] or list(hosts.read_hosts().values())
    if not chosen:
        return Listing(file=str(hosts.config_file()), hosts=())
    title = f"Ask {len(chosen)} host{'s' if len(chosen) != 1 else ''}"
    with progress.step(title), ThreadPoolExecutor(_PARALLEL) as pool:
        states = tuple(pool.map(lambda host: _ask_state(host, clean=clean), chosen))
    return Listing(file=str(hosts.config_file()), hosts=states)


def _ask_state(host: RemoteHost, *, clean: bool) -> HostState:
    state = HostState(name=host.name, url=str(host.address), state="unreachable")
    try:
        with Link(host, Silent()) as link:
            state = replace(state, state="unusable")
            device = Device(link, Silent())
            if clean:
                state = replace(state, freed_bytes=device.clean())
            probe = device.probe()
    except VitdeployError as error:
        return replace(state, why=error.message, fix=error.fix)
    if probe.busy is None:
        return replace(state, state="ready", device=probe, why="; ".join(probe.notes))
    job = f"`{probe.busy.words[0]}` of {probe.busy.client}" if probe.busy.words else "another user's job"
    fix = "Your jobs will wait in the queue."
    return replace(state, state="busy", device=probe, why=job, fix=fix)
