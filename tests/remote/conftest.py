"""A far side: a real sshd on the loopback, with a vitdeploy without torch behind it."""

from __future__ import annotations

import getpass
import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from importlib.metadata import distribution
from pathlib import Path
from venv import create as create_venv

import pytest
from packaging.requirements import Requirement

from tests.cli.conftest import Ended, exported, run
from tests.fakes.board import Board
from tests.remote.cutter import Wire
from vitdeploy.remote.near import ssh

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "timm", "onnx", "onnx_ir", "onnxscript")


@dataclass(frozen=True)
class Far:
    """The far side: its sshd's port, its virtual environment, cache and folder, and how a near side gets in."""

    port: int
    venv: Path
    cache: Path
    folder: Path

    @property
    def url(self) -> str:
        """The direct way there."""
        return self.through(self.port)

    def through(self, port: int) -> str:
        """Another way there."""
        return f"ssh://{getpass.getuser()}@127.0.0.1:{port}"

    def vitdeploy(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run vitdeploy there without a network."""
        return subprocess.run([self.venv / "bin" / "vitdeploy", *words], capture_output=True, text=True, check=False)

    def jobs(self) -> list[Path]:
        """The folders of all jobs."""
        return sorted(p for p in (self.cache / "jobs").glob("*") if not p.name.startswith("."))


@pytest.fixture(scope="session")
def far_venv(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The light base with two runtimes: the wheel, and links to the packages of this environment that it requires."""
    venv = tmp_path_factory.mktemp("far-side") / "venv"
    create_venv(venv, with_pip=False)
    python = venv / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index"]
    subprocess.run([*pip, wheel], check=True, capture_output=True)
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(venv)}))
    link_requirements(site, "vitdeploy", ("openvino", "onnxruntime"))
    heavy = subprocess.run(
        [python, "-c", f"import importlib.util as u; print(*[n for n in {HEAVY} if u.find_spec(n)])"],
        cwd="/", capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert not heavy.stdout.strip(), "the far side is light"
    return venv


def link_requirements(site: Path, package: str, extras: tuple[str, ...]) -> None:
    """Link what a package in this site-packages folder requires, and what that requires, from this environment."""
    pending, seen = [(package, extra) for extra in ("", *extras)], set()
    while pending:
        name, extra = pending.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        [found] = metadata.distributions(name=name, path=[str(site)]) if name == package else [distribution(name)]
        if name != package and not extra:
            for top in {file.parts[0] for file in found.files or () if ".." not in file.parts}:
                if not (site / top).exists():
                    (site / top).symlink_to(found.locate_file(top))
        for requirement in map(Requirement, found.requires or ()):
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                pending += [(requirement.name, needed) for needed in ("", *requirement.extras)]


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Throw-away keys: of the host, another one of a host, of the user, of a stranger."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("host", "other_host", "user", "stranger"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", folder / name], check=True)
    return folder


@pytest.fixture(scope="session")
def far(far_venv: Path, keys: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Far]:
    """The far side, up for the whole session."""
    if _sshd() is None:
        pytest.skip("there is no sshd here: apt-get install openssh-server")
    folder = tmp_path_factory.mktemp("far")
    with sshd(folder, keys, far_venv, "host") as port:
        yield Far(port, far_venv, folder / "cache" / "vitdeploy", folder)


@contextmanager
def sshd(folder: Path, keys: Path, venv: Path, host_key: str, port: int | None = None) -> Iterator[int]:
    """An sshd of this user on a free port of the loopback, until the block ends."""
    port = port or _free_port()
    shutil.copyfile(keys / "user.pub", folder / "authorized_keys")
    bin_ = folder / "bin"
    bin_.mkdir(exist_ok=True)
    config = folder / f"sshd_config-{port}-{host_key}"
    config.write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {keys / host_key}\n"
        f"AuthorizedKeysFile {folder}/authorized_keys\n"
        "PidFile none\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
        "PermitRootLogin prohibit-password\nPrintMotd no\nMaxStartups 100\n"
        f"SetEnv PATH={bin_}:{venv}/bin:/usr/bin:/bin XDG_CACHE_HOME={folder}/cache\n"
    )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where it locks itself in before the login
    with (folder / "sshd.log").open("a") as log:
        server = subprocess.Popen([str(_sshd()), "-D", "-e", "-f", config], stderr=log, start_new_session=True)
    try:
        _wait_for(port, server, folder / "sshd.log")
        yield port
    finally:
        server.terminate()
        server.wait()


@pytest.fixture
def near(
    far: Far, keys: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A near side whose ssh knows the far side and has a key for it; its folder has ssh's `config` and `known_hosts`.

    ssh reads its configuration from the user's home whatever $HOME says, so a wrapper on the PATH names another one.
    """
    folder = tmp_path / "near"
    folder.mkdir()
    (folder / "known_hosts").write_text(f"far {(keys / 'host.pub').read_text()}")
    (folder / "config").write_text(
        f"IdentityFile {keys / 'user'}\nIdentitiesOnly yes\nHostKeyAlias far\n"
        f"UserKnownHostsFile {folder}/known_hosts\nGlobalKnownHostsFile /dev/null\n"
    )
    program = shutil.which("ssh")
    wrapper = folder / "bin" / "ssh"
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh\nexec {program} -F {folder}/config "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{wrapper.parent}:{os.environ['PATH']}")
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
    from vitdeploy.commands.export import Elsewhere, export
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


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 120) -> None:
    """Wait for something that another process does, named by `what` if it does not happen."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.05)


def script(path: Path, *lines: str) -> str:
    """A shell script."""
    path.write_text("\n".join(("#!/bin/sh", *lines, "")))
    path.chmod(0o755)
    return str(path)


def working(far: Far) -> bool:
    """True if a job has the lock: its vitdeploy has started."""
    return any((job / "stdout").exists() and not (job / "ended.json").exists() for job in far.jobs())


def when(condition: Callable[[], bool], act: Callable[[], None]) -> threading.Thread:
    """Act once the condition holds."""

    def watch() -> None:
        wait_until(condition, "the moment to act")
        act()

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def process_of(far: Far) -> tuple[int, int]:
    """The worker of the only job, and its vitdeploy."""
    [job] = far.jobs()
    worker = int((job / "pid").read_text())
    children = Path(f"/proc/{worker}/task/{worker}/children").read_text().split()
    return worker, int(children[0])


def _sshd() -> str | None:
    return shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def _wait_for(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        assert server.poll() is None, log.read_text()
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise AssertionError(f"sshd does not listen: {log.read_text()}")


@pytest.fixture
def board(far: Far, board_driver: Path) -> Iterator[Board]:
    """The far side as a board: install a TensorRT there, with its faults. Every job there finds the fake driver."""
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(far.venv)}))
    board = Board(site, board_driver)
    yield board
    board.remove()
