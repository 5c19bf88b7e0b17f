"""The destinations of `--log`, as users write them: `jsonl:FILE` and `mlflow:URI[#EXPERIMENT]`."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit, urlunsplit

from vitdeploy.errors import UsageError
from vitdeploy.plugins import did_you_mean

_FORMS = "Give jsonl:FILE, or mlflow:URI with a folder, sqlite:///FILE or an address with http or https."
_SCHEMES = ("jsonl", "mlflow")
_SERVERS = ("http", "https")
_URIS = ("file", "sqlite", *_SERVERS)
_EXPERIMENT = "vitdeploy"
_USER = re.compile(r"//[^/?#]*@")
"""The name and the password in an address."""


@dataclass(frozen=True)
class Destination:
    """Where to log.

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
    def shown(self) -> str:
        """The destination for people, without a password."""
        return f"{self.scheme}:{hide_password(self.place)}"


def hide_password(text: str) -> str:
    """Return a text in which no address has a user or a password."""
    return _USER.sub("//***@", text)


def parse_destination(text: str) -> Destination:
    """Read one destination.

    Raises:
        UsageError: it has none of the known forms.
    """
    scheme, colon, rest = text.partition(":")
    if not colon or scheme not in _SCHEMES:
        hint = did_you_mean(scheme, list(_SCHEMES))
        raise UsageError(f"{hide_password(text)!r} is no destination of --log{hint}", fix=_FORMS)
    if not rest:
        raise UsageError(f"{text!r} names no {'file' if scheme == 'jsonl' else 'URI'}", fix=_FORMS)
    if scheme == "jsonl":
        return Destination("jsonl", rest)
    return _parse_uri(rest)


def _parse_uri(text: str) -> Destination:
    uri, _, experiment = text.rpartition("#") if "#" in text else (text, "", "")
    experiment = experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or _EXPERIMENT
    parts = urlsplit(uri)
    if len(parts.scheme) < 2:  # none, or the drive of a Windows path
        return Destination("mlflow", Path(uri).absolute().as_uri(), experiment)
    if parts.scheme not in _URIS:
        hint = did_you_mean(parts.scheme, list(_URIS))
        raise UsageError(f"--log mlflow: does not know {parts.scheme!r} in {hide_password(uri)!r}{hint}", fix=_FORMS)
    if parts.scheme not in _SERVERS:
        return Destination("mlflow", uri, experiment)
    try:
        host, port = parts.hostname, parts.port
    except ValueError:  # the port is no number
        host, port = None, None
    if not host:
        raise UsageError(f"{hide_password(uri)!r} names no server", fix="Give http://HOST:PORT or https://HOST.")
    bare = urlunsplit((parts.scheme, _join(host, port), parts.path.rstrip("/"), parts.query, ""))
    user, password = (None if part is None else unquote(part) for part in (parts.username, parts.password))
    return Destination("mlflow", bare, experiment, user, password)


def _join(host: str, port: int | None) -> str:
    name = f"[{host}]" if ":" in host else host
    return name if port is None else f"{name}:{port}"
