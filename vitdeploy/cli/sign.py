"""`vitdeploy sign`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from vitdeploy.cli import options
from vitdeploy.cli.app import USE, app
from vitdeploy.cli.command import command
from vitdeploy.cli.console import Console


@command(app, section=USE, examples=["vitdeploy sign deit --key release.key"])
def sign(
    console: Console,
    artifact: options.ArtifactFolder,
    key: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="The private key: PEM, on the curve P-256, P-384 or P-521. The password of an encrypted one is taken "
            "from VITDEPLOY_KEY_PASSWORD, or asked for.",
            show_default=False,
        ),
    ],
    evidence: options.EvidenceFolder = None,
) -> None:
    """Sign an artifact and its evidence with a private key, offline.

    signature.json covers the files that never change, in the OpenSSF model-signing format. attestation.json covers the
    evidence, and states the verdict, its limits, the digests of the data, and the machines. Sign last: what is measured
    later has to be signed again. Earlier signatures are replaced.
    """
    from vitdeploy.cli.signature_views import show_signed
    from vitdeploy.commands.sign import sign_artifact, sign_family, suggest_gate
    from vitdeploy.commands.signing.keys import explain_readable, read_private

    def ask() -> str:
        return str(typer.prompt(f"Password of {key}", hide_input=True, err=True))

    private = read_private(key, ask if sys.stdin.isatty() else None)
    if (warning := explain_readable(key)) is not None:
        console.warn(warning)
    if options.is_family(artifact):
        options.refuse_for_family({"--evidence": evidence})
        family = options.load_family(artifact)
        signed, command = sign_family(family, private, console), suggest_gate(family)
    else:
        loaded = options.load_artifact(artifact, evidence)
        signed, command = sign_artifact(loaded, private, console), suggest_gate(loaded)
    if signed.verdict != "pass":
        console.warn(f"the verdict is {signed.verdict}" if signed.verdict else f"there is no verdict: run {command}")
    console.show(signed, *show_signed(signed))
