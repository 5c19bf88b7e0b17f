"""The hosts that a user has named in `hosts.yaml`, in vitdeploy's configuration folder."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import platformdirs

from vitdeploy import yaml12
from vitdeploy.errors import RecipeError, UsageError
from vitdeploy.frozen import Frozen, parse
from vitdeploy.plugins import did_you_mean
from vitdeploy.remote.messages import ClockSettings
from vitdeploy.remote.near import address
from vitdeploy.remote.near.address import Address

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class _Entry(Frozen):
    url: str
    command: str = "vitdeploy"
    cache: str | None = None
    power_mode: int | None = None
    lock_clocks: bool = False


@dataclass(frozen=True)
class RemoteHost:
    """A host and how to run vitdeploy on it.

    Attributes:
        name: as the user wrote it.
        address: the destination for ssh.
        command: vitdeploy on the host: a name on its PATH, an absolute path, or a path below `~/`.
        cache: the folder of files and jobs on the host; None is `~/.cache/vitdeploy`.
        clocks: power mode and clocks to set while a job runs.
    """

    name: str
    address: Address
    command: str = "vitdeploy"
    cache: str | None = None
    clocks: ClockSettings = field(default_factory=ClockSettings)


def config_file() -> Path:
    """Return the path of the file that names hosts. The file may not exist."""
    return platformdirs.user_config_path("vitdeploy") / "hosts.yaml"


def read_hosts() -> dict[str, RemoteHost]:
    """Read the named hosts. Without a file there are none.

    Raises:
        RecipeError: the file is not a mapping of hosts.
        UsageError: a URL in it is not valid.
    """
    path = config_file()
    try:
        raw = yaml12.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        fix = "Correct the YAML." if isinstance(error, ValueError) else "Make the file readable."
        raise RecipeError(f"{path} cannot be read: {error}", fix=fix) from None
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise RecipeError(f"{path} is not a mapping of hosts", fix="Write one line per host: NAME: ssh://USER@HOST")
    return {str(name): _parse_entry(path, str(name), entry) for name, entry in raw.items()}


def find(text: str) -> RemoteHost:
    """Return the host that `--host` names: a URL, or a name from the file.

    Raises:
        UsageError: `text` is not a valid URL, and not a known name.
    """
    address.refuse_password(text)
    if text.startswith("ssh://"):
        destination = address.parse(text)
        return RemoteHost(str(destination), destination)
    if "://" in text:
        raise UsageError(
            f"a host cannot be reached by {text.partition('://')[0]}://, only by ssh://", fix="Write ssh://USER@HOST."
        )
    known = read_hosts()
    if text not in known:
        url = f"ssh://{text}" if re.fullmatch(r"[\w.@-]+", text) else "ssh://USER@HOST"
        raise UsageError(
            f"there is no host {text!r} in {config_file()}{did_you_mean(text, list(known))}",
            fix=f"Add it there (NAME: ssh://USER@HOST), or write {url}.",
        )
    return known[text]


def _parse_entry(path: Path, name: str, raw: object) -> RemoteHost:
    if not _NAME.fullmatch(name):
        raise RecipeError(
            f"{path}: {name!r} is not a valid name for a host", fix="Use letters, digits, '.', '_' and '-'."
        )
    where = f"{path}: {name}"
    fields = {"url": raw} if isinstance(raw, str) else raw
    if not isinstance(fields, dict):
        raise RecipeError(f"{where} is not a host", fix=f"Write {name}: ssh://USER@HOST")
    entry = parse(_Entry, fields, where=where)
    if not entry.url.startswith("ssh://"):
        raise RecipeError(f"{where}: its url does not begin with ssh://", fix="Write ssh://USER@HOST.")
    settings = ClockSettings(power_mode=entry.power_mode, lock_clocks=entry.lock_clocks)
    return RemoteHost(name, address.parse(entry.url), entry.command, entry.cache, settings)
