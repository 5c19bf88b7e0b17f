"""Signatures for people: what was signed or verified, and what it says."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.text import Text

from vitdeploy.escaping import of_escaped

if TYPE_CHECKING:
    from vitdeploy.commands.sign import Signed
    from vitdeploy.commands.verify import Verified


@of_escaped
def show_signed(signed: Signed) -> list[RenderableType]:
    """Show what was signed, the verdict, and the command that verifies it."""
    return [
        Text.assemble(("signed ", "bold"), (signed.artifact, "bold cyan"), f" with the key {signed.key[:16]}"),
        *_describe(signed.files, signed.evidence, signed.verdict),
        Text(f"  wrote {', '.join(signed.written)}"),
        Text.assemble(("Next: ", "bold"), signed.next, no_wrap=True, overflow="ignore"),
    ]


@of_escaped
def show_verified(verified: Verified) -> list[RenderableType]:
    """Show what the key vouches for."""
    limits = ", ".join(f"{name} {limit}" for name, limit in verified.limits.items())
    origins = sorted({f"{each.engine} on {each.machine}" for each in verified.environment})
    return [
        Text.assemble(
            ("verified ", "bold green"), (verified.artifact, "bold cyan"), f": signed by {verified.key[:16]}"
        ),
        *_describe(verified.files, verified.evidence, verified.verdict),
        *([Text(f"  limits: {limits}")] if limits else []),
        *(Text(f"  {each.use}: {each.samples:,} samples, {each.digest[:16]}") for each in verified.data),
        *([Text(f"  measured with {'; '.join(origins)}")] if origins else []),
    ]


def _describe(files: int, evidence: tuple[str, ...], verdict: str | None) -> list[Text]:
    return [
        Text(f"  {files} files; evidence: {', '.join(evidence) or 'none'}"),
        Text(f"  verdict: {verdict or 'none, it was not judged'}"),
    ]
