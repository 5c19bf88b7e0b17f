"""The address of a host: `ssh://user@host[:port]`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from vitdeploy.errors import UsageError

_FORM = "Write ssh://USER@HOST or ssh://USER@HOST:PORT. Put everything else into ~/.ssh/config."
# No characters that a shell or an option parser would act on: ssh inserts both names into the user's ProxyCommand.
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_IPV6 = re.compile(r"\[([0-9A-Fa-f:.]+(?:%[A-Za-z0-9._-]+)?)\]")
_MAX_PORT = 65535


@dataclass(frozen=True)
class Address:
    """A destination for ssh. With None for user or port, ssh uses its own defaults."""

    host: str
    user: str | None = None
    port: int | None = None

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"ssh://{f'{self.user}@' if self.user else ''}{host}{f':{self.port}' if self.port else ''}"

    @property
    def words(self) -> tuple[str, ...]:
        """The arguments for ssh's command line."""
        user = ("-l", self.user) if self.user else ()
        port = ("-p", str(self.port)) if self.port else ()
        return (*user, *port, "--", self.host)


def refuse_password(text: str) -> None:
    """Refuse a host with a password in it. Call it first: its message is the only one that does not repeat the text.

    Raises:
        UsageError: there is a colon before the last @.
    """
    userinfo, _, _ = text.removeprefix("ssh://").rpartition("@")
    if ":" in userinfo:
        raise UsageError(
            "the host has a password in it, which the shell's history and logs would keep",
            fix="Remove it and log in with a key: ssh-keygen creates one, ssh-copy-id installs it on the host.",
        )


def parse(url: str) -> Address:
    """Parse an `ssh://` URL.

    Raises:
        UsageError: it has a password (which is not repeated), a path, or forbidden characters in a name.
    """
    refuse_password(url)
    authority, _, path = url.removeprefix("ssh://").partition("/")
    userinfo, at, host_port = authority.rpartition("@")
    if at and not _USER.fullmatch(userinfo):
        raise UsageError(f"{url!r}: {userinfo!r} is not a valid user name", fix=_FORM)
    if path or "?" in host_port or "#" in host_port:
        raise UsageError(f"{url!r} contains more than a user, a host and a port", fix=_FORM)
    bracketed = _IPV6.match(host_port)
    name, colon, port = (
        (bracketed[1], *host_port[bracketed.end() :].partition(":")[1:]) if bracketed else host_port.partition(":")
    )
    if not bracketed and not _NAME.fullmatch(name):
        raise UsageError(f"{url!r}: {name!r} is not a valid host name", fix=_FORM)
    if colon and not (port.isascii() and port.isdecimal() and 0 < int(port) <= _MAX_PORT):
        raise UsageError(f"{url!r}: {port!r} is not a valid port", fix=_FORM)
    return Address(name, userinfo or None, int(port) if colon else None)
