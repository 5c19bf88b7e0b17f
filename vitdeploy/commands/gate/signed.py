"""The signatures of what a gate judges. They are verified before any evidence is read or made again."""

from __future__ import annotations

from pathlib import Path

from vitdeploy.artifact import Artifact
from vitdeploy.artifact.family import Family
from vitdeploy.commands.signing.keys import read_public
from vitdeploy.commands.verify import explain_unsigned
from vitdeploy.errors import VitdeployError
from vitdeploy.verdict import Signature


def verify_signature(judged: Artifact | Family, key: str | None) -> Signature | None:
    """Verify an artifact, or a family with its parts, and the evidence that is judged; None without a key.

    Raises:
        UsageError: the file is no public key.
        TargetUnavailable: the extra `sign` is not installed.
    """
    if key is None:
        return None
    public = read_public(Path(key))
    return Signature(public.fingerprint, problem=explain_unsigned(judged, public))


def verify_again(judged: Artifact | Family, key: str | None) -> Signature | None:
    """Do the same for a stored verdict, whose key may be on another machine: then it is undecided."""
    try:
        return verify_signature(judged, key)
    except VitdeployError as error:
        return Signature("", undecided=error.message)
