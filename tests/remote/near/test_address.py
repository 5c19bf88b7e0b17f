"""Addresses of hosts: which are valid, which are refused, and that names reach ssh as names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from vitdeploy.errors import RecipeError, UsageError
from vitdeploy.remote.messages import ClockSettings
from vitdeploy.remote.near import address, hosts
from vitdeploy.remote.near.address import Address


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("ssh://orin", "-- orin"),
        ("ssh://ci@orin.lab:2222", "-l ci -p 2222 -- orin.lab"),
        ("ssh://ci@10.0.0.7/", "-l ci -- 10.0.0.7"),
        ("ssh://ci@[fe80::1%eth0]:22", "-l ci -p 22 -- fe80::1%eth0"),
    ],
)
def test_an_address_becomes_words(url: str, words: str) -> None:
    parsed = address.parse(url)
    assert " ".join(parsed.words) == words
    assert address.parse(str(parsed)) == parsed


@pytest.mark.parametrize(
    "url",
    [
        "ssh://ci:hunter2@orin", "ssh://:hunter2@orin", "ssh://ci:hunter2@x@orin:22/", "ssh://ci:hunter2/x@orin",
        "ci:hunter2@orin",
    ],
)  # fmt: skip
def test_a_password_is_refused_and_not_repeated(url: str) -> None:
    for read in (address.parse, hosts.find):
        with pytest.raises(UsageError, match="has a password in it") as caught:
            read(url)
        assert "hunter2" not in str(caught.value) + caught.value.fix


@pytest.mark.parametrize(
    "url",
    [
        "ssh://", "ssh://@orin", "ssh://-oProxyCommand=x", "ssh://ci@-F/x", "ssh://$(id)", "ssh://ci@a;b", "ssh://a b",
        "ssh://a`id`", "ssh://ci@a\nb", "ssh://`id`@a", "ssh://-l@a", "ssh://a:0", "ssh://a:65536", "ssh://a:x", "ssh://a:",
        "ssh://a:٣", "ssh://a/path", "ssh://a?x", "ssh://a#x", "ssh://[::1", "ssh://[x]:1",
    ],
)  # fmt: skip
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(UsageError):
        address.parse(url)


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Write the hosts file of this user."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))

    def write(text: str) -> Path:
        path = tmp_path / "vitdeploy" / "hosts.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    return write


def test_hosts_are_read_from_the_users_file(write: Callable[[str], Path]) -> None:
    path = write(
        "orin: ssh://ci@orin\nthor:\n  url: ssh://thor\n  command: ~/v/bin/vitdeploy\n  cache: /ssd\n"
        "  power_mode: 0\n  lock_clocks: true\n"
    )
    assert hosts.config_file() == path
    assert hosts.find("orin").address == Address("orin", "ci")
    thor = hosts.find("thor")
    assert (thor.command, thor.cache) == ("~/v/bin/vitdeploy", "/ssd")
    assert thor.clocks == ClockSettings(power_mode=0, lock_clocks=True)
    assert hosts.find("ssh://elsewhere").name == "ssh://elsewhere"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- orin", "is not a mapping of hosts"),
        ("orin: 7", "orin is not a host"),
        ("orin: {url: ssh://orin, urll: x}", "unknown key 'urll' \\(did you mean 'url'"),
        ("orin: {command: x}", "'url' is missing"),
        ("orin: http://orin", "does not begin with ssh://"),
        ("orin: {url: ssh://orin, power_mode: fast}", "power_mode"),
        ("orin: ssh://orin\norin: ssh://orin", "twice"),
        ("'a b': ssh://orin", "is not a valid name for a host"),
        ("orin: [", "line 1"),
    ],
)
def test_a_damaged_file_is_refused_with_its_place(write: Callable[[str], Path], text: str, message: str) -> None:
    path = write(text)
    with pytest.raises(RecipeError, match=message) as caught:
        hosts.read_hosts()
    assert str(path) in str(caught.value)


def test_an_unknown_name_is_refused_with_the_nearest(write: Callable[[str], Path]) -> None:
    write("orin: ssh://orin\n")
    with pytest.raises(UsageError, match="did you mean 'orin'"):
        hosts.find("orim")
    with pytest.raises(UsageError, match="or write ssh://ci@orin"):
        hosts.find("ci@orin")
    with pytest.raises(UsageError, match="cannot be reached by http://, only by ssh://"):
        hosts.find("http://orin")
