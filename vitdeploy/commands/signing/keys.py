"""Keys in files: the private key that signs, and the public key that verifies. PEM, on one of three NIST curves."""

from __future__ import annotations

import hashlib
import os
import shlex
import stat
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitdeploy.errors import TargetUnavailable, UsageError
from vitdeploy.plain_files import read_plain

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey

PASSWORD = "VITDEPLOY_KEY_PASSWORD"  # noqa: S105  the name of an environment variable
_LARGEST = 1 << 16  # a key has less than a thousand bytes
_CURVES = ("secp256r1", "secp384r1", "secp521r1")
"""The curves of model-signing's format."""
_REQUIRED = ("model_signing", "securesystemslib", "cryptography", "OpenSSL")
_PRIVATE, _PUBLIC = b"PRIVATE KEY-----", b"PUBLIC KEY-----"
_NEW_KEY = "Make one: openssl ecparam -name prime256v1 -genkey -noout -out KEY"


@dataclass(frozen=True)
class PrivateKey:
    """A private key, with the file that it is in. `password` is None if the file is not encrypted."""

    path: Path
    password: bytes | None
    key: EllipticCurvePrivateKey

    @property
    def public(self) -> PublicKey:
        """The public key that verifies what this key signs."""
        return PublicKey(self.path, self.key.public_key())


@dataclass(frozen=True)
class PublicKey:
    """A public key, with the file that it comes from."""

    path: Path
    key: EllipticCurvePublicKey

    @property
    def pem(self) -> bytes:
        """The key as PEM."""
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        return self.key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    @property
    def fingerprint(self) -> str:
        """The sha256 of the key: `openssl pkey -pubin -in FILE -outform DER | sha256sum`."""
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        return hashlib.sha256(self.key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def require_libraries() -> None:
    """Check that the libraries of the extra `sign` are installed.

    Raises:
        TargetUnavailable: one is missing.
    """
    missing = next((name for name in _REQUIRED if find_spec(name) is None), None)
    if missing is not None:
        raise TargetUnavailable(
            f"signatures need {missing.replace('_', '-')}, which is not installed",
            fix="pip install 'vitdeploy[sign]'",
        )


def read_private(path: Path, ask_password: Callable[[], str] | None = None) -> PrivateKey:
    """Read a private key.

    Args:
        path: a PEM file. If it is encrypted, the password is in the environment variable `PASSWORD`, or is asked for.
        ask_password: returns the password; None: nobody can be asked.

    Raises:
        UsageError: the file cannot be read, is no private key on one of the curves, or the password is wrong.
        TargetUnavailable: the extra `sign` is not installed.
    """
    content = _read(path)
    if _PRIVATE not in content:
        if _PUBLIC in content:
            raise UsageError(
                f"{path} is a public key, which cannot sign", fix="Give the private key that belongs to it."
            )
        raise UsageError(f"{path} is not a private key in PEM form", fix=_NEW_KEY)
    password = _find_password(path, content, ask_password)
    key = _load_private(path, content, password)
    _require_curve(path, key)
    return PrivateKey(path, password, key)


def read_public(path: Path) -> PublicKey:
    """Read a public key.

    Raises:
        UsageError: the file cannot be read, or is no public key on one of the curves.
        TargetUnavailable: the extra `sign` is not installed.
    """
    content = _read(path)
    if _PRIVATE in content:
        public = path.with_suffix(".public.pub" if path.suffix == ".pub" else ".pub")
        command = shlex.join(["openssl", "ec", "-in", str(path), "-pubout", "-out", str(public)])
        raise UsageError(
            f"{path} is a private key, which should never leave the machine that signs; verifying takes the public one",
            fix=f"Write it to a file: {command}",
        )
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key: Any = load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm):
        raise UsageError(
            f"{path} is not a public key in PEM form", fix="Give what `openssl ec -in KEY -pubout` writes."
        ) from None
    _require_curve(path, key)
    return PublicKey(path, key)


def explain_readable(path: Path) -> str | None:
    """Return a warning if other users of this machine may read a private key; None if they may not."""
    if os.name == "nt":
        return None  # its rights are not in the mode
    try:
        mode = path.stat().st_mode
    except OSError:
        return None
    if not mode & (stat.S_IRGRP | stat.S_IROTH):
        return None
    return f"other users may read {path}: run chmod 600 {path}"


def _read(path: Path) -> bytes:
    require_libraries()
    try:
        return read_plain(path, _LARGEST)
    except FileNotFoundError:
        raise UsageError(f"there is no key file {path}", fix=_NEW_KEY) from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", fix="Give the file of a key.") from None


def _find_password(path: Path, content: bytes, ask: Callable[[], str] | None) -> bytes | None:
    """Return the password of an encrypted key; None if it is not encrypted."""
    if b"ENCRYPTED" not in content:
        return None
    if (password := os.environ.get(PASSWORD)) is not None:
        return password.encode()
    if ask is None:
        raise UsageError(
            f"{path} is encrypted, and there is no terminal to ask for its password", fix=f"Set {PASSWORD}."
        )
    return ask().encode()


def _load_private(path: Path, content: bytes, password: bytes | None) -> Any:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        return load_pem_private_key(content, password or None)
    except (ValueError, TypeError, UnsupportedAlgorithm):  # TypeError: an empty password
        if password is None:
            raise UsageError(f"{path} is not a private key in PEM form", fix=_NEW_KEY) from None
        raise UsageError(
            f"the password does not open {path}, or it is no private key", fix=f"Set {PASSWORD} to its password."
        ) from None


def _require_curve(path: Path, key: Any) -> None:
    curve = getattr(key, "curve", None)
    if curve is None or curve.name not in _CURVES:
        kind = type(key).__name__.removesuffix("PublicKey").removesuffix("PrivateKey").lstrip("_")
        name = f"a key on the curve {curve.name}" if curve is not None else f"an {kind} key"
        raise UsageError(
            f"{path} is {name}, and signatures of models are made with keys on the curves P-256, P-384 and P-521",
            fix=_NEW_KEY,
        )
