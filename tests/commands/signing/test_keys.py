"""Files that are given as keys: the right one, the wrong one of a pair, encrypted, of another kind, and no key."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from tests.cli.conftest import run
from tests.commands.signing.conftest import Pair, write_pair
from vitdeploy.commands.signing.keys import PASSWORD, explain_readable, read_private, read_public
from vitdeploy.errors import UsageError


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()], ids=lambda curve: curve.name)
def test_each_curve_signs(curve: ec.EllipticCurve, signed: Path, tmp_path: Path) -> None:
    pair = write_pair(tmp_path, "key", ec.generate_private_key(curve))
    assert run("sign", signed, "--key", pair.private).code == 0
    assert run("verify", signed, "--key", pair.public).code == 0


def test_the_keys_that_openssl_writes_are_read(tmp_path: Path) -> None:
    """With and without parameters in front, in both forms of a private key."""
    for words in ("ecparam -name prime256v1 -genkey", "ecparam -name prime256v1 -genkey -noout",
                  "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256"):  # fmt: skip
        private, public = tmp_path / "key", tmp_path / "pub"
        subprocess.run(["openssl", *words.split(), "-out", private], check=True, capture_output=True)
        subprocess.run(["openssl", "ec", "-in", private, "-pubout", "-out", public], check=True, capture_output=True)
        assert read_private(private).public.fingerprint == read_public(public).fingerprint


def test_the_wrong_key_of_a_pair(signed: Path, keys: Pair) -> None:
    assert f"{keys.public} is a public key, which cannot sign" in run("sign", signed, "--key", keys.public).error
    error = run("verify", signed, "--key", keys.private).error
    assert f"{keys.private} is a private key" in error
    assert "verifying takes the public one" in error
    assert f"openssl ec -in {keys.private} -pubout -out {keys.private.with_suffix('.pub')}" in error


def test_the_command_for_a_public_key_does_not_overwrite_the_private_one(
    signed: Path, keys: Pair, tmp_path: Path
) -> None:
    key = tmp_path / "my release.pub"
    shutil.copyfile(keys.private, key)
    error = run("verify", signed, "--key", key).error
    words = shlex.split(error[error.index("openssl ec") :])
    assert words[2:] == ["-in", str(key), "-pubout", "-out", str(tmp_path / "my release.public.pub")]


def test_a_key_that_others_may_read_is_used_with_a_warning(signed: Path, keys: Pair, tmp_path: Path) -> None:
    key = tmp_path / "open.key"
    key.write_bytes(keys.private.read_bytes())
    key.chmod(0o644)
    ended = run("sign", signed, "--key", key)
    assert ended.code == 0
    assert f"other users may read {key}: run chmod 600 {key}" in ended.err.replace("\n", " ")
    key.chmod(0o600)
    assert explain_readable(key) is None
    assert "chmod" not in run("sign", signed, "--key", key).err


def test_an_encrypted_key(signed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = write_pair(tmp_path, "key", ec.generate_private_key(ec.SECP256R1()), password="open sesame")
    assert "is encrypted, and there is no terminal to ask for its password" in run("sign", signed, "--key",
                                                                                   pair.private).error  # fmt: skip
    monkeypatch.setenv(PASSWORD, "wrong")
    assert "the password does not open" in run("sign", signed, "--key", pair.private).error
    monkeypatch.setenv(PASSWORD, "")
    assert "the password does not open" in run("sign", signed, "--key", pair.private).error
    monkeypatch.setenv(PASSWORD, "open sesame")
    assert run("sign", signed, "--key", pair.private).code == 0
    assert run("verify", signed, "--key", pair.public).code == 0
    monkeypatch.delenv(PASSWORD)
    assert read_private(pair.private, lambda: "open sesame").public.fingerprint == read_public(pair.public).fingerprint


def test_keys_of_other_kinds_are_refused(tmp_path: Path) -> None:
    kinds = {
        "Ed25519": ed25519.Ed25519PrivateKey.generate(),
        "RSA": rsa.generate_private_key(65537, 2048),
        "secp256k1": ec.generate_private_key(ec.SECP256K1()),
    }
    for name, key in kinds.items():
        private, public = tmp_path / "key", tmp_path / "pub"
        private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
        for read, file in ((read_private, private), (read_public, public)):
            with pytest.raises(UsageError, match=rf"{name}.* curves P-256, P-384 and P-521"):
                read(file)


@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 100, b"-----BEGIN PRIVATE KEY-----\nMA==\n-----END PRIVATE KEY-----\n",
     b"-----BEGIN ENCRYPTED PRIVATE KEY-----\nMA==\n-----END ENCRYPTED PRIVATE KEY-----\n",
     b"-----BEGIN OPENSSH PRIVATE KEY-----\nMA==\n-----END OPENSSH PRIVATE KEY-----\n"],
)  # fmt: skip
def test_what_is_no_key_is_one_line(
    content: bytes, signed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PASSWORD, "x")
    key = tmp_path / "key"
    key.write_bytes(content)
    assert "private key" in run("sign", signed, "--key", key).error
    assert "key" in run("verify", signed, "--key", key).error


def test_what_is_no_public_key_is_one_line(signed: Path, tmp_path: Path) -> None:
    key = tmp_path / "key"
    for content in (b"", b"ssh-ed25519 AAAA me", b"-----BEGIN PUBLIC KEY-----\nMA==\n-----END PUBLIC KEY-----\n"):
        key.write_bytes(content)
        assert "is not a public key in PEM form" in run("verify", signed, "--key", key).error


def test_files_that_cannot_be_keys(signed: Path, tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.write_bytes(b"\0" * (1 << 17))
    for command in ("sign", "verify"):
        assert "there is no key file" in run(command, signed, "--key", tmp_path / "nowhere").error
        assert "cannot be read" in run(command, signed, "--key", tmp_path).error
        assert "more than 65,536" in run(command, signed, "--key", large).error
