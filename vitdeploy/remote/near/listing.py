"""The named hosts and their state, asked all at once."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

from pydantic import BaseModel, ConfigDict

from vitdeploy.errors import VitdeployError
from vitdeploy.progress import Progress, Silent
from vitdeploy.remote.messages import Probe
from vitdeploy.remote.near import hosts
from vitdeploy.remote.near.client import Device
from vitdeploy.remote.near.hosts import Host
from vitdeploy.remote.near.ssh import Link

_AT_ONCE = 8


class HostState(BaseModel):
    """A host now: "ready", "busy" with somebody's job, "unusable" (no fitting vitdeploy), or "unreachable"."""

    model_config = ConfigDict(frozen=True)
    name: str
    url: str
    state: Literal["ready", "busy", "unusable", "unreachable"]
    why: str = ""
    fix: str = ""
    device: Probe | None = None
    freed_bytes: int | None = None
    """By --clean."""


class Listing(BaseModel):
    """What `vitdeploy hosts` prints."""

    model_config = ConfigDict(frozen=True)
    file: str
    hosts: tuple[HostState, ...]


def listing(names: Sequence[str], progress: Progress, *, clean: bool = False) -> Listing:
    """The state of these hosts (names or URLs); of all that are named when there are none.

    Args:
        names: as `--host` takes them.
        progress: told what is going on.
        clean: remove what nothing running there needs.

    Raises:
        UsageError: an unknown name.
        RecipeError: the hosts file is damaged.
    """
    found = [hosts.find(name) for name in names] or list(hosts.named().values())
    if not found:
        return Listing(file=str(hosts.config_file()), hosts=())
    with progress.step(f"Ask {len(found)} host{'s' if len(found) != 1 else ''}"), ThreadPoolExecutor(_AT_ONCE) as pool:
        states = tuple(pool.map(lambda host: _state(host, clean=clean), found))
    return Listing(file=str(hosts.config_file()), hosts=states)


def _state(host: Host, *, clean: bool) -> HostState:
    told = HostState(name=host.name, url=str(host.address), state="unreachable")
    try:
        with Link(host, Silent()) as link:
            told = told.model_copy(update={"state": "unusable"})
            device = Device(link, Silent())
            if clean:
                told = told.model_copy(update={"freed_bytes": device.clean()})
            probe = device.probe()
    except VitdeployError as error:
        return told.model_copy(update={"why": error.message, "fix": error.fix})
    if probe.busy is None:
        return told.model_copy(update={"state": "ready", "device": probe, "why": "; ".join(probe.notes)})
    job = f"`{probe.busy.words[0]}` of {probe.busy.client}" if probe.busy.words else "somebody's job"
    return told.model_copy(update={"state": "busy", "device": probe, "why": job, "fix": "Your jobs will queue."})
