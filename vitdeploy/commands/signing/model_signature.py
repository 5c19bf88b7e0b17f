"""The signature of the files that never change after export, in the OpenSSF model-signing format.

It is a Sigstore bundle with a DSSE envelope, made and verified by the library model-signing, offline. Evidence and
signatures are among its ignored paths, so `model_signing verify key` accepts the folder whatever is measured later.
"""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

from vitdeploy.artifact.layout import MODEL_SIGNATURE
from vitdeploy.artifact.temporary import scratch_folder
from vitdeploy.commands.signing.keys import PrivateKey, PublicKey
from vitdeploy.commands.signing.subject import SignedSubject, find_changes
from vitdeploy.errors import ArtifactError

_ALGORITHM = "sha256"
_ELSEWHERE = "Move other files elsewhere, and run the command again."


def sign_files(subject: SignedSubject, key: PrivateKey) -> bytes:
    """Hash the files, and return the content of their signature.

    Raises:
        ArtifactError: the folder changed since it was loaded, or has other files in it.
    """
    from model_signing import hashing, signing

    if subject.unlisted:
        raise ArtifactError(
            f"{subject.folder}: {subject.unlisted[0]} is not listed in {subject.record}", fix=_ELSEWHERE
        )
    hashed = hashing.Config().set_ignored_paths(paths=subject.ignored, ignore_git_paths=False)
    config = signing.Config().set_hashing_config(hashed)
    # The password is annotated as a string, and passed on to a function that takes bytes only.
    config.use_elliptic_key_signer(private_key=key.path, password=key.password)  # type: ignore[arg-type]
    with scratch_folder("signing") as scratch:
        try:
            config.sign(subject.folder, scratch / MODEL_SIGNATURE)
        except OSError as error:
            raise ArtifactError(
                f"{error.filename} cannot be read: {error.strerror}", fix="Run the command again."
            ) from None
        except ValueError as error:  # a link or a pipe that came since the folder was loaded
            raise ArtifactError(
                f"{subject.folder}: model-signing refuses it: {_shorten(error)}", fix=_ELSEWHERE
            ) from None
        content = (scratch / MODEL_SIGNATURE).read_bytes()
    changes = find_changes(subject.files, _list_digests(_read_statement(content)))
    if changes:
        change = changes[0].replace("since it was signed", "while it was signed").replace("and is not signed", "to it")
        raise ArtifactError(f"{subject.folder}: {change}", fix=_ELSEWHERE)
    return content


def explain_files(subject: SignedSubject, key: PublicKey) -> list[str]:
    """Return why the files are not what `key` signed, one sentence for each reason; empty if they are."""
    content = subject.signatures.get(MODEL_SIGNATURE)
    if content is None:
        return [f"there is no {MODEL_SIGNATURE}: it is not signed"]
    try:
        hint = json.loads(content)["verificationMaterial"]["publicKey"].get("hint")
        expected = _list_digests(_read_statement(content))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return [f"{MODEL_SIGNATURE} is not a signature of model-signing with a key"]
    if hint and hint != hashlib.sha256(key.pem).hexdigest():
        return [f"{MODEL_SIGNATURE} was made with another key"]
    problem = _verify(subject.folder, content, key)
    if problem == _FORGED:
        return [f"{MODEL_SIGNATURE} was changed after it was signed: this key did not make the signature in it"]
    # The library leaves out what the signature itself names as ignored. All files have to be among the signed ones.
    changes = find_changes(expected, {**subject.files, **dict.fromkeys(subject.unlisted, "")})
    return changes or ([] if problem is None else [problem])


_FORGED = "forged"


def _verify(folder: Path, content: bytes, key: PublicKey) -> str | None:
    """Return the reason why the library refuses the folder; None if it does not.

    It gets copies of the key and of the signature, so that it reads the same bytes as this module.
    """
    from cryptography.exceptions import InvalidSignature
    from model_signing import verifying

    with scratch_folder("verifying") as scratch:
        (scratch / "key.pub").write_bytes(key.pem)
        (scratch / MODEL_SIGNATURE).write_bytes(content)
        try:
            config = verifying.Config().use_elliptic_key_verifier(public_key=scratch / "key.pub")
            config.verify(folder, scratch / MODEL_SIGNATURE)
        except InvalidSignature:
            return _FORGED
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
            return f"model-signing refuses it: {_shorten(error)}"
        except OSError as error:
            return f"{error.filename} cannot be read: {error.strerror}"
    return None


def _shorten(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _read_statement(content: bytes) -> dict[str, Any]:
    """Return the in-toto statement inside a bundle. Nothing about it is verified."""
    statement = json.loads(base64.b64decode(json.loads(content)["dsseEnvelope"]["payload"]))
    if not isinstance(statement, dict):
        raise TypeError("a statement is an object")
    return statement


def _list_digests(statement: dict[str, Any]) -> dict[str, str]:
    """Return the digest of each file that a statement of model-signing names; of another kind than sha256: empty."""
    resources = statement["predicate"]["resources"]
    return {item["name"]: item["digest"] if item["algorithm"] == _ALGORITHM else "" for item in resources}
