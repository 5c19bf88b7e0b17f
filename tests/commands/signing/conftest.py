"""Keys, and a signed artifact with evidence of each kind."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from tests.cli.conftest import run
from tests.evidence import timed_bench
from vitdeploy import artifact as artifacts
from vitdeploy.artifact import Artifact


@dataclass(frozen=True)
class Pair:
    """The files of a private key and of its public key."""

    private: Path
    public: Path


def write_pair(folder: Path, name: str, key: ec.EllipticCurvePrivateKey, password: str = "") -> Pair:
    """Write a key as openssl does: SEC1 without a password, PKCS #8 with one."""
    pair = Pair(folder / f"{name}.key", folder / f"{name}.pub")
    form = PrivateFormat.PKCS8 if password else PrivateFormat.TraditionalOpenSSL
    encryption = BestAvailableEncryption(password.encode()) if password else NoEncryption()
    pair.private.write_bytes(key.private_bytes(Encoding.PEM, form, encryption))
    pair.private.chmod(0o600)
    pair.public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return pair


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return write_pair(tmp_path_factory.mktemp("keys"), "release", ec.generate_private_key(ec.SECP256R1()))


@pytest.fixture(scope="session")
def other_keys(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return write_pair(tmp_path_factory.mktemp("keys"), "other", ec.generate_private_key(ec.SECP256R1()))


@pytest.fixture(scope="session")
def made(demo: Callable[..., Artifact], tmp_path_factory: pytest.TempPathFactory, keys: Pair) -> Path:
    """A signed artifact with an audit, an evaluation, a bench, a verdict and a report. Take a copy to change it."""
    out = Path(shutil.copytree(demo(target="onnxruntime").path, tmp_path_factory.mktemp("signed") / "digits"))
    loaded = artifacts.load(out)
    loaded.write_evidence(timed_bench(loaded, 3.0))
    assert run("eval", out, "--data", "demo:digits", "--limit", 60).code == 0
    assert run("gate", out, "--min-fused", 100, "--min-speedup", 2).code == 0
    assert run("report", out, "--images", 0).code == 0
    ended = run("sign", out, "--key", keys.private)
    assert ended.code == 0, ended.err
    return out


@pytest.fixture
def signed(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "digits"))
