"""Remove from texts what identifies a person, a machine or a network, before a recording is written.

Two kinds of rules apply: words that this machine knows of itself (its user, host, addresses, serial numbers), and forms
(addresses, UUIDs, e-mail addresses, URLs, home folders and other paths that are not the system's).
"""

from __future__ import annotations

import getpass
import ipaddress
import os
import re
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

_COMMON = frozenset({
    "admin", "desktop", "ip6-localhost", "ip6-loopback", "jetson", "localdomain", "localhost", "nvidia", "orin", "root",
    "tegra", "tegra-ubuntu", "thor", "ubuntu", "user",
})  # fmt: skip
"""Names of users and hosts that thousands of machines have. Some of them are words of every log."""
_SHORTEST_NAME = 3

_SYSTEM = "bin boot dev etc lib lib64 opt/nvidia proc sbin sys usr var/lib/nvpmodel"
"""Folders whose contents are the same on all machines with this system."""
_PATH = re.compile(
    rf"(?<![\w.\])}}>/])/(?!(?:{'|'.join(_SYSTEM.split())})(?:/|\b))[\w.+~@%:-]+(?:/[\w.+~@%:-]*)*", re.ASCII
)
_URL = re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s\"'<>,;()\[\]{}]+", re.IGNORECASE)
_MAIL = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+")
_UUID = re.compile(r"\b(?:GPU-|MIG-)?[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}\b", re.IGNORECASE)
_MAC = re.compile(r"(?<![\w:-])(?:[0-9a-f]{2}([:-]))(?:[0-9a-f]{2}\1){4}[0-9a-f]{2}(?![\w:-])", re.IGNORECASE)
_SERIAL = re.compile(r"(\bserial(?:[ _-]?(?:number|no\.?))?\b\W{0,3}[:=]\s*)([^\s,;\"]+)", re.IGNORECASE)
_IPV6 = re.compile(r"(?<![\w:.])[0-9a-f:]*:[0-9a-f:]*:[0-9a-f:.]*(?![\w:])", re.IGNORECASE)
_IPV4 = re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?![\w.]|\.\d)")
_VERSION_BEFORE = re.compile(
    r"(?:\bv|version[ :=]+|TensorRT(?:-RTX| for RTX)?[ :]+|\b(?:cuDNN|cuBLAS|CUDA)[ :]+|tensorrt(?:[-_]rtx)? +)$",
    re.IGNORECASE,
)
_VERSION_AFTER = re.compile(r"[-+~]\w")


@dataclass(frozen=True)
class Scrubber:
    """Replaces what identifies, with a word for its kind.

    Attributes:
        words: word -> the kind that replaces it, such as `<host>`.
        versions: numbers with four parts that are versions, although an address looks the same.
    """

    words: Mapping[str, str] = field(default_factory=dict)
    versions: frozenset[str] = frozenset()

    def scrub(self, text: str) -> str:
        """Return the text without what identifies."""
        for form, kind in ((_URL, "<url>"), (_MAIL, "<mail>"), (_UUID, "<uuid>"), (_MAC, "<mac>"), (_PATH, "<path>")):
            text = form.sub(kind, text)
        for word in sorted(self.words, key=len, reverse=True):
            text = re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", self.words[word], text)
        text = _SERIAL.sub(r"\1<serial>", text)
        text = _IPV6.sub(_replace_ipv6, text)
        return _IPV4.sub(self._replace_ipv4, text)

    def scrub_values(self, value: Any) -> Any:
        """Return JSON in which every text and every key is scrubbed."""
        if isinstance(value, str):
            return self.scrub(value)
        if isinstance(value, Mapping):
            return {self.scrub(str(key)): self.scrub_values(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self.scrub_values(inner) for inner in value]
        return value

    def _replace_ipv4(self, match: re.Match[str]) -> str:
        text, number = match.string, match[0]
        is_version = (
            number in self.versions
            or _VERSION_BEFORE.search(text[max(0, match.start() - 20) : match.start()])
            or _VERSION_AFTER.match(text, match.end())
        )
        return number if is_version else "<ip>"


def _replace_ipv6(match: re.Match[str]) -> str:
    try:
        ipaddress.IPv6Address(match[0])
    except ValueError:
        return match[0]
    return "<ip>" if any(c.isalnum() for c in match[0]) else match[0]


def make_scrubber(versions: Iterable[str] = ()) -> Scrubber:
    """Return a scrubber that knows this machine.

    Args:
        versions: versions of libraries that may look like an address.
    """
    words: dict[str, str] = {}
    for kind, names in (("<user>", _find_users()), ("<host>", _find_hosts())):
        for name in names:
            if len(name) >= _SHORTEST_NAME and name.lower() not in _COMMON:
                words[name] = kind
    for kind, values in (("<serial>", _find_serials()), ("<address>", _find_addresses()), ("<path>", _find_folders())):
        words.update(dict.fromkeys(values, kind))
    return Scrubber(words, frozenset(versions))


def _find_users() -> Iterator[str]:
    yield from filter(None, (os.environ.get(name) for name in ("USER", "LOGNAME", "USERNAME", "SUDO_USER")))
    with suppress(KeyError, OSError):  # a user without a name, as in some containers
        yield getpass.getuser()
    yield Path.home().name


def _find_hosts() -> Iterator[str]:
    for name in (socket.gethostname(), _read("/etc/hostname")):
        yield from filter(None, (name, name.partition(".")[0]))


def _find_serials() -> Iterator[str]:
    for path in (
        "/proc/device-tree/serial-number", "/etc/machine-id", "/sys/class/dmi/id/product_serial",
        "/sys/class/dmi/id/board_serial", "/sys/class/dmi/id/product_uuid",
    ):  # fmt: skip
        if len(text := _read(path)) >= _SHORTEST_NAME:
            yield text


def _find_addresses() -> Iterator[str]:
    for addresses in psutil.net_if_addrs().values():
        for address in addresses:
            plain = address.address.partition("%")[0]
            if plain and not plain.startswith(("127.", "00:00:00")) and plain != "::1":
                yield plain


def _find_folders() -> Iterator[str]:
    """Return this user's own folders. Others that identify have the form of a path."""
    for path in (Path.home(), Path.cwd()):
        if len(path.parts) > 1:
            yield str(path)


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip("\0\n ")
    except OSError:
        return ""
