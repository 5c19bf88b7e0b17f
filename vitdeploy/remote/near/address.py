"""Where a host is: `ssh://user@host[:port]`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from vitdeploy.errors import UsageError

_FORM = "Write ssh://USER@HOST or ssh://USER@HOST:PORT; all else belongs into ~/.ssh/config."
# What a shell or an option parser would read otherwise is no name: ssh puts both into the user's ProxyCommands.
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_IPV6 = re.compile(r"\[([0-9A-Fa-f:.]+(?:%[A-Za-z0-9._-]+)?)\]")
_MAX_PORT = 65535


@dataclass(frozen=True)
class Address:
    """A destination of ssh; user and port are ssh's own defaults where they are None."""

    host: str
    user: str | None = None
    port: int | None = None

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"ssh://{f'{self.user}@' if self.user else ''}{host}{f':{self.port}' if self.port else ''}"

    @property
    def words(self) -> tuple[str, ...]:
        """For the command line of ssh."""
        user = ("-l", self.user) if self.user else ()
        port = ("-p", str(self.port)) if self.port else ()
        return (*user, *port, "--", self.host)


def refuse_password(text: str) -> None:
    """Refuse a host with a password in it before anything is said about it: the message does not repeat it.

    Raises:
        UsageError: there is a colon before the last @, wherever that is.
    """
    userinfo, _, _ = text.removeprefix("ssh://").rpartition("@")
    if ":" in userinfo:
        raise UsageError(
            "the host has a password in it: it would be in the shell's history and in every log",
            fix="Leave it out and use a key: ssh-keygen, ssh-copy-id.",
        )


def parse(url: str) -> Address:
    """The address in a URL.

    Raises:
        UsageError: a password in it (which is not repeated), a path, or a name with characters that no name has.
    """
    refuse_password(url)
    authority, _, path = url.removeprefix("ssh://").partition("/")
    userinfo, at, place = authority.rpartition("@")
    if at and not _USER.fullmatch(userinfo):
        raise UsageError(f"{url!r}: {userinfo!r} is not a user name", fix=_FORM)
    if path or "?" in place or "#" in place:
        raise UsageError(f"{url!r} has more than a user, a host and a port in it", fix=_FORM)
    bracketed = _IPV6.match(place)
    name, colon, port = (
        (bracketed[1], *place[bracketed.end() :].partition(":")[1:]) if bracketed else place.partition(":")
    )
    if not bracketed and not _NAME.fullmatch(name):
        raise UsageError(f"{url!r}: {name!r} is not a host name", fix=_FORM)
    if colon and not (port.isascii() and port.isdecimal() and 0 < int(port) <= _MAX_PORT):
        raise UsageError(f"{url!r}: {port!r} is not a port", fix=_FORM)
    return Address(name, userinfo or None, int(port) if colon else None)
