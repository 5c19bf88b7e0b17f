"""The hosts that a user has named, in `hosts.yaml` of vitdeploy's configuration folder."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import platformdirs

from vitdeploy import yaml12
from vitdeploy.errors import RecipeError, UsageError
from vitdeploy.frozen import Frozen, parse
from vitdeploy.plugins import did_you_mean
from vitdeploy.remote.messages import Care
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
class Host:
    """A host and how to work on it.

    Attributes:
        name: as the user wrote it.
        address: where ssh finds it.
        command: vitdeploy there: on the PATH, an absolute path, or one below `~/`.
        cache: where it keeps files and jobs; None is `~/.cache/vitdeploy`.
        care: what is set there while something is timed.
    """

    name: str
    address: Address
    command: str = "vitdeploy"
    cache: str | None = None
    care: Care = field(default_factory=Care)


def config_file() -> Path:
    """Where hosts are named; it need not exist."""
    return platformdirs.user_config_path("vitdeploy") / "hosts.yaml"


def named() -> dict[str, Host]:
    """The named hosts; none when there is no file.

    Raises:
        RecipeError: the file is not a mapping of hosts.
        UsageError: a URL in it is none.
    """
    path = config_file()
    try:
        raw = yaml12.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path} cannot be read: {error}", fix="Correct it.") from None
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise RecipeError(f"{path} is not a mapping of hosts", fix="Write for each host: NAME: ssh://USER@HOST")
    return {str(name): _host(path, str(name), entry) for name, entry in raw.items()}


def find(text: str) -> Host:
    """The host of `--host`: a URL, or a name from the file.

    Raises:
        UsageError: neither.
    """
    address.refuse_password(text)
    if text.startswith("ssh://"):
        found = address.parse(text)
        return Host(str(found), found)
    if "://" in text:
        raise UsageError(f"{text.partition('://')[0]}:// is not a way to a host", fix="Write ssh://USER@HOST.")
    known = named()
    if text not in known:
        hint = f"or write ssh://{text}" if re.fullmatch(r"[\w.@-]+", text) else "or write ssh://USER@HOST"
        raise UsageError(
            f"there is no host {text!r} in {config_file()}{did_you_mean(text, list(known))}",
            fix=f"Name it there (NAME: ssh://USER@HOST), {hint}.",
        )
    return known[text]


def _host(path: Path, name: str, raw: object) -> Host:
    if not _NAME.fullmatch(name):
        raise RecipeError(f"{path}: {name!r} is not a name for a host", fix="Use letters, digits, '.', '_' and '-'.")
    where = f"{path}: {name}"
    fields = {"url": raw} if isinstance(raw, str) else raw
    if not isinstance(fields, dict):
        raise RecipeError(f"{where} is not a host", fix=f"Write {name}: ssh://USER@HOST")
    entry = parse(_Entry, fields, where=where)
    if not entry.url.startswith("ssh://"):
        raise RecipeError(f"{where}: its url does not begin with ssh://", fix="Write ssh://USER@HOST.")
    care = Care(power_mode=entry.power_mode, lock_clocks=entry.lock_clocks)
    return Host(name, address.parse(entry.url), entry.command, entry.cache, care)
