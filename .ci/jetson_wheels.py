#!/usr/bin/env python3
"""Whether every Python package of the light base has a wheel for aarch64 and the Python of each Dockerfile stage.

usage: python .ci/jetson_wheels.py            (needs pip, packaging and a package index)

pip alone cannot tell: it evaluates environment markers for the Python that it runs on. So the dependencies are followed
here, markers evaluated for the stage, and pip is asked for one wheel at a time. Packages that stages take from apt are
listed and not checked: NVIDIA's index for Jetson is not reachable from CI.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import zipfile
from email.parser import Parser
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
# By the Dockerfile's own headlines: `JetPack 6.2: Ubuntu 22.04, Python 3.10, ..`; glibc by Ubuntu's release.
HEADLINE = re.compile(r"^# -+ JetPack (?P<jetpack>[\d.]+): Ubuntu (?P<ubuntu>[\d.]+), Python (?P<python>[\d.]+)", re.M)
STAGE = re.compile(r"^FROM (?P<image>\S+) AS (?P<name>jetpack\d+)$", re.M)
GLIBC = {"22.04": 35, "24.04": 39}


def main() -> int:
    """Check both stages, say what was found; 1 when a wheel is missing."""
    text = (ROOT / "Dockerfile.jetson").read_text(encoding="utf-8")
    stages = list(zip(HEADLINE.finditer(text), STAGE.finditer(text), strict=True))
    if len(stages) != 2:
        print(f"Dockerfile.jetson has {len(stages)} stages with a headline, not 2", file=sys.stderr)
        return 1
    missing = 0
    for headline, stage in stages:
        python, glibc = headline["python"], GLIBC[headline["ubuntu"]]
        print(f"{stage['name']}: JetPack {headline['jetpack']}, Python {python}, glibc 2.{glibc}, {stage['image']}")
        missing += check(python, glibc)
    apt = sorted(set(re.findall(r"\b(?:python3-libnvinfer|libnvinfer-bin)\b", text)))
    print(f"not checked, from NVIDIA: {', '.join(apt)} (apt), and the base images")
    return 1 if missing else 0


def check(python: str, glibc: int) -> int:
    """Follow the dependencies from pyproject.toml; the number of packages without a wheel."""
    environment = {"python_version": python, "python_full_version": f"{python}.0", "platform_machine": "aarch64",
                   "sys_platform": "linux", "platform_system": "Linux", "os_name": "posix", "extra": ""}  # fmt: skip
    environment |= {"implementation_name": "cpython", "platform_python_implementation": "CPython"}
    pinned = constraints(environment)
    waiting = [Requirement(text) for text in project_dependencies()]
    seen: set[str] = set()
    missing = 0
    with tempfile.TemporaryDirectory() as folder:
        while waiting:
            wanted = waiting.pop()
            name = canonicalize_name(wanted.name)
            if name in seen or (wanted.marker is not None and not wanted.marker.evaluate(environment)):
                continue
            seen.add(name)
            specifier = pinned.get(name, str(wanted.specifier))
            wheel = download(f"{wanted.name}{specifier}", python, glibc, Path(folder))
            print(f"  {wanted.name}{specifier}: {wheel.name if wheel else 'NO WHEEL'}")
            missing += wheel is None
            waiting += requirements(wheel) if wheel else []
    return missing


def project_dependencies() -> list[str]:
    """`project.dependencies`, read without tomllib, which Python 3.10 does not have."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = re.search(r"^dependencies = \[(.*?)^\]", text, re.M | re.S)
    if listed is None:
        raise SystemExit("pyproject.toml has no dependencies")
    return re.findall(r'"([^"]+)"', listed[1])


def constraints(environment: dict[str, str]) -> dict[str, str]:
    """constraints.txt as it reads for that environment."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    entries = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {
        canonicalize_name(entry.name): str(entry.specifier)
        for entry in entries
        if entry.marker is None or entry.marker.evaluate(environment)
    }


def download(requirement: str, python: str, glibc: int, folder: Path) -> Path | None:
    """The wheel that pip would choose there; None: there is none."""
    before = set(folder.iterdir())
    platforms = ["manylinux2014_aarch64", *(f"manylinux_2_{minor}_aarch64" for minor in range(17, glibc + 1))]
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", folder,
               "--disable-pip-version-check", "--python-version", python, "--implementation", "cp",
               *(f"--platform={name}" for name in platforms), requirement]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return None if done.returncode else next(iter(set(folder.iterdir()) - before), None)


def requirements(wheel: Path) -> list[Requirement]:
    """What a wheel itself needs."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(name).decode())
    return [Requirement(text) for text in metadata.get_all("Requires-Dist") or []]


if __name__ == "__main__":
    raise SystemExit(main())
