"""The destinations of `--log`, as users write them: `jsonl:FILE` and `mlflow:URI[#EXPERIMENT]`."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit

from vitdeploy.errors import UsageError
from vitdeploy.plain_files import expand_home
from vitdeploy.plugins import did_you_mean

_FORMS = "Give jsonl:FILE, or mlflow:URI with a folder, sqlite:///FILE or an address with http or https."
_SERVER_FORMS = "Give http://HOST:PORT or https://HOST."
_ENCODE = (
    "If it is part of the user or the password, percent-encode it, and / as %2F, ? as %3F, # as %23. "
    "An experiment with @ goes into MLFLOW_EXPERIMENT_NAME."
)
_SCHEMES = ("jsonl", "mlflow")
_SERVERS = ("http", "https")
_URIS = ("file", "sqlite", *_SERVERS)
_EXPERIMENT = "vitdeploy"
_USER = re.compile(r"(?<!/)//(?!/)\S*@")
"""The user and the password in an address, also with characters that end it, such as `/`. `file:///` has neither."""
_QUERY = re.compile(r"(//[^\s?]*)\?[^\s'\")]*")
"""An address and its query, which may have a token."""
_BEFORE_HOST = re.compile(r"^((?:[A-Za-z][\w+.-]*:(?!//))?(?:[A-Za-z][\w+.-]*://)?).*@", re.DOTALL)
"""The schemes of a destination, and all that may be a user and a password."""
_ADDRESS = re.compile(r"[A-Za-z][\w+.-]+://")
_DATABASE = "sqlite:///"


@dataclass(frozen=True)
class Destination:
    """A destination of `--log`.

    Attributes:
        scheme: "jsonl" or "mlflow".
        place: the file, or the tracking URI of MLflow without user and password.
        experiment: the experiment of MLflow.
        user: of the server; None: MLflow's own settings count.
        password: of this user.
    """

    scheme: Literal["jsonl", "mlflow"]
    place: str
    experiment: str = ""
    user: str | None = None
    password: str | None = None

    @property
    def address(self) -> str:
        """The file or the address for people, without a password and without a query."""
        return self.place if self.scheme == "jsonl" else hide_password(self.place)

    @property
    def shown(self) -> str:
        """The destination for people, without a password and without a query."""
        return f"{self.scheme}:{self.address}"


def hide_password(text: str) -> str:
    """Return a text in which no address has a user, a password or a query."""
    return _QUERY.sub(r"\1", _USER.sub("//***@", text))


def parse_destination(text: str) -> Destination:
    """Read one destination.

    Raises:
        UsageError: it has none of the known forms.
    """
    scheme, colon, rest = text.partition(":")
    if not colon or scheme not in _SCHEMES:
        hint = did_you_mean(scheme, list(_SCHEMES))
        raise UsageError(f"{_hide(text)!r} is no destination of --log{hint}", fix=_FORMS)
    if not rest:
        raise UsageError(f"{text!r} names no {'file' if scheme == 'jsonl' else 'URI'}", fix=_FORMS)
    if scheme == "jsonl":
        if _ADDRESS.match(rest):
            raise UsageError(f"{_hide(text)!r} names no file", fix=_FORMS)
        return Destination("jsonl", str(expand_home(rest)))
    return _parse_uri(rest)


def _hide(text: str) -> str:
    """Return a destination that is refused without its query and without all that may be a password."""
    return _BEFORE_HOST.sub(r"\1***@", text).partition("?")[0]


def _parse_uri(text: str) -> Destination:
    uri, _, experiment = text.rpartition("#") if "#" in text else (text, "", "")
    experiment = experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or _EXPERIMENT
    try:
        parts = urlsplit(uri)
    except ValueError:  # a bracket that does not end
        raise UsageError(f"{_hide(text)!r} names no server", fix=_SERVER_FORMS) from None
    if not parts.scheme and parts.netloc and "@" in text:
        raise UsageError(f"{_hide(text)!r} names no server", fix=_SERVER_FORMS)
    if len(parts.scheme) < 2:  # none, or the drive of a Windows path
        return Destination("mlflow", expand_home(uri).absolute().as_uri(), experiment)
    if parts.scheme not in _URIS:
        hint = did_you_mean(parts.scheme, list(_URIS))
        raise UsageError(f"--log mlflow: does not know {parts.scheme!r} in {_hide(text)!r}{hint}", fix=_FORMS)
    if parts.scheme not in _SERVERS:
        return Destination("mlflow", _expand_database(uri), experiment)
    return _parse_server(text, parts, experiment)


def _parse_server(text: str, parts: SplitResult, experiment: str) -> Destination:
    """Read the address of a server.

    Raises:
        UsageError: it names no server, or has an `@` behind the host, so that a part of a password may count as a path.
    """
    if "@" in text.partition("//")[2].removeprefix(parts.netloc):
        raise UsageError(f"{_hide(text)!r} has an @ behind its host", fix=_ENCODE)
    try:
        host, port = parts.hostname, parts.port
    except ValueError:  # the port is no number
        host, port = None, None
    if not host:
        raise UsageError(f"{_hide(text)!r} names no server", fix=_SERVER_FORMS)
    bare = urlunsplit((parts.scheme, _join(host, port), parts.path.rstrip("/"), parts.query, ""))
    user, password = (None if part is None else unquote(part) for part in (parts.username, parts.password))
    return Destination("mlflow", bare, experiment, user, password)


def _expand_database(uri: str) -> str:
    """Return the URI of a database with `~` as the user's folder."""
    return f"{_DATABASE}{expand_home(uri.removeprefix(_DATABASE))}" if uri.startswith(f"{_DATABASE}~") else uri


def _join(host: str, port: int | None) -> str:
    name = f"[{host}]" if ":" in host else host
    return name if port is None else f"{name}:{port}"
