"""The check that an artifact and its evidence are signed."""

from __future__ import annotations

from vitdeploy.evidence import Check
from vitdeploy.verdict._case import Signature, invalid

_NAME = "signed"


def check_signed(signature: Signature | None, limit: str | None) -> Check | None:
    """Check that the signatures are of the key in the file `limit`, and hold; None if no key is required."""
    if limit is None:
        return None
    if signature is None or signature.undecided:
        return invalid(_NAME, limit, signature.undecided if signature else "the signatures were not verified")
    if signature.problem:
        return Check(name=_NAME, observed="no", limit=limit, status="fail", why=signature.problem)
    reason = f"the artifact and the evidence that is judged are as the key {signature.key[:16]} signed them"
    return Check(name=_NAME, observed="yes", limit=limit, status="pass", why=reason)
