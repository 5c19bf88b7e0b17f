"""A far side: a real sshd on the loopback, with a vitdeploy without torch behind it."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Ended, exported, run
from tests.fakes.board import Board
from tests.remote.cutter import Wire
from tests.remote.far import Far, find_sshd, make_far_venv, make_keys, make_near, site_packages, sshd
from vitdeploy.remote.near import ssh


@pytest.fixture(scope="session")
def far_venv(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The light base with two runtimes: the wheel, and links to the packages of this environment that it requires."""
    venv = tmp_path_factory.mktemp("far-side") / "venv"
    make_far_venv(venv, wheel)
    return venv


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Throw-away keys: of the host, another one of a host, of the user, of a stranger."""
    return make_keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="session")
def far(far_venv: Path, keys: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Far]:
    """The far side, up for the whole session."""
    if find_sshd() is None:
        pytest.skip("there is no sshd here: apt-get install openssh-server")
    folder = tmp_path_factory.mktemp("far")
    with sshd(folder, keys, far_venv, "host") as port:
        yield Far(port, far_venv, folder / "cache" / "vitdeploy", folder)


@pytest.fixture
def near(
    far: Far, keys: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A near side with a key for the far side; its folder has ssh's `config` and `known_hosts`."""
    folder = tmp_path / "near"
    programs = make_near(folder, keys)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder / "settings"))
    monkeypatch.setattr(ssh, "PATIENCE_S", 20.0)
    return folder


@pytest.fixture
def wire(far: Far) -> Iterator[Wire]:
    """A way to the far side that can be cut."""
    with Wire(far.port) as wire:
        yield wire


@pytest.fixture
def named(near: Path) -> Callable[[str], None]:
    """Write the user's hosts file."""

    def write(text: str) -> None:
        (near / "settings" / "vitdeploy").mkdir(parents=True, exist_ok=True)
        (near / "settings" / "vitdeploy" / "hosts.yaml").write_text(text)

    return write


@pytest.fixture
def lab(far: Far, named: Callable[[str], None], tmp_path: Path) -> Callable[..., Far]:
    """Name the far side `lab`, with a cache of its own and further settings of hosts.yaml."""

    def name(*, port: int | None = None, **settings: object) -> Far:
        cache = tmp_path / "far-cache"
        named(json.dumps({"lab": {"url": far.through(port or far.port), "cache": str(cache), **settings}}))
        return Far(far.port, far.venv, cache, far.folder)

    return name


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits for OpenVINO, INT8, not compiled. Not to be changed: take a copy."""
    from vitdeploy import recipe as recipes
    from vitdeploy.commands.export import export
    from vitdeploy.commands.export_order import Elsewhere
    from vitdeploy.environment import host
    from vitdeploy.pipeline.graph_cache import GraphCache
    from vitdeploy.progress import Silent

    out = tmp_path_factory.mktemp("bundle") / "digits"
    recipe = recipes.compose("demo:digits", target="openvino", precision="int8")
    elsewhere = Elsewhere("another machine", host())
    summary = export(recipe, out, Silent(), cache=GraphCache(), elsewhere=elsewhere).summary
    assert summary.stage == "bundle"
    return out


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits for ONNX Runtime. Not to be changed: take a copy."""
    return exported(tmp_path_factory.mktemp("artifact"), "demo:digits --target onnxruntime")


@pytest.fixture
def copy(tmp_path: Path) -> Callable[[Path], Path]:
    """A copy of a folder that a test may change."""

    def make(folder: Path) -> Path:
        return Path(shutil.copytree(folder, tmp_path / f"copy-of-{folder.parent.name}"))

    return make


def on(far: Far, *words: object) -> Ended:
    """A command with --host, in this process."""
    return run(*words, "--host", far.url, "--json")


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 300) -> None:
    """Wait for something that another process does, named by `what` if it does not happen."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.05)


def size_of(path: Path) -> int:
    """The bytes of a file that another process may move away at any moment."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def script(path: Path, *lines: str) -> str:
    """A shell script."""
    path.write_text("\n".join(("#!/bin/sh", *lines, "")))
    path.chmod(0o755)
    return str(path)


def working(far: Far) -> bool:
    """True if a job has the lock: its vitdeploy has started."""
    return any((job / "stdout").exists() and not (job / "ended.json").exists() for job in far.jobs())


def waiting(far: Far) -> bool:
    """True if a job has said that it waits for the lock."""
    logs = (job / "stderr" for job in far.jobs())  # a job's folder is there before its log
    return any(log.exists() and "waiting" in log.read_text() for log in logs)


def when(condition: Callable[[], bool], act: Callable[[], None]) -> threading.Thread:
    """Act once the condition holds."""

    def watch() -> None:
        wait_until(condition, "the moment to act")
        act()

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def process_of(far: Far) -> tuple[int, int]:
    """The worker of the only job, and its vitdeploy, as soon as both have started."""
    [job] = far.jobs()
    wait_until((job / "pid").exists, "the worker starts")
    worker = int((job / "pid").read_text())
    children = Path(f"/proc/{worker}/task/{worker}/children")
    wait_until(lambda: bool(children.read_text()), "its vitdeploy starts")
    return worker, int(children.read_text().split()[0])


@pytest.fixture
def board(far: Far, board_driver: Path) -> Iterator[Board]:
    """The far side as a board: install a TensorRT there, with its faults. Every job there finds the fake driver."""
    board = Board(site_packages(far.venv), board_driver)
    yield board
    board.remove()
