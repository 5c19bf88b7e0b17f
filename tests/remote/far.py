"""A far side without pytest: a real sshd on the loopback, with a vitdeploy without torch behind it, and a way in."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from importlib.metadata import distribution
from pathlib import Path
from venv import create as create_venv

from packaging.requirements import Requirement

_SHARED_FOLDERS = {
    "machine_lock.py": '("/run/lock", "/tmp")',
    "remote/device/clocks.py": '("/var/tmp",)',
}
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
        return url_of(port)

    def vitdeploy(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run vitdeploy there without a network."""
        return subprocess.run([self.venv / "bin" / "vitdeploy", *words], capture_output=True, text=True, check=False)

    def jobs(self) -> list[Path]:
        """The folders of all jobs."""
        return sorted(p for p in (self.cache / "jobs").glob("*") if not p.name.startswith("."))


def url_of(port: int) -> str:
    """The address of an sshd of this user on the loopback."""
    return f"ssh://{getpass.getuser()}@127.0.0.1:{port}"


def make_far_venv(venv: Path, wheel: Path) -> None:
    """Make a virtual environment of the light base with two runtimes.

    It has the wheel, and links to the packages of this environment that it requires. It is a machine of its own: its
    jobs do not wait for those of other far sides on this one, nor list them.
    """
    create_venv(venv, with_pip=False)
    python = venv / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index"]
    subprocess.run([*pip, wheel], check=True, capture_output=True)
    link_requirements(site_packages(venv), "vitdeploy", ("openvino", "onnxruntime"))
    _use_own_lock(venv)
    heavy = subprocess.run(
        [python, "-c", f"import importlib.util as u; print(*[n for n in {HEAVY} if u.find_spec(n)])"],
        cwd="/", capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert not heavy.stdout.strip(), "the far side is light"


def site_packages(venv: Path) -> Path:
    """The folder of the packages of a virtual environment."""
    return Path(sysconfig.get_path("purelib", "venv", {"base": str(venv)}))


def _use_own_lock(venv: Path) -> None:
    """Put what belongs to the machine of the vitdeploy there, files in folders that all users have, into the venv."""
    for name, folders in _SHARED_FOLDERS.items():
        source = site_packages(venv) / "vitdeploy" / name
        text = source.read_text()
        assert text.count(folders) == 1, f"{name} writes its folders in another way"
        source.write_text(text.replace(folders, f'("{venv}",)'))


def make_wheel(folder: Path) -> Path:
    """Build the wheel of this checkout into a folder."""
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, root], check=True)
    return next(folder.glob("*.whl"))


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


def make_keys(folder: Path) -> Path:
    """Make throw-away keys: of the host, another one of a host, of the user, of a stranger."""
    for name in ("host", "other_host", "user", "stranger"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", folder / name], check=True)
    return folder


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
        server = subprocess.Popen([str(find_sshd()), "-D", "-e", "-f", config], stderr=log, start_new_session=True)
    try:
        _wait_for(port, server, folder / "sshd.log")
        yield port
    finally:
        server.terminate()
        server.wait()


def make_near(folder: Path, keys: Path) -> Path:
    """Fill a folder for an ssh that knows the far side and has a key for it. Return the folder of that `ssh`.

    ssh reads its configuration from the user's home whatever $HOME says, so a wrapper on the PATH names another one.
    """
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
    return wrapper.parent


def find_sshd() -> str | None:
    """The program, which is not on the PATH of every user."""
    return shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def _wait_for(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert server.poll() is None, log.read_text()
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise AssertionError(f"sshd does not listen: {log.read_text()}")
