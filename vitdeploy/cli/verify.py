"""`vitdeploy verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitdeploy.cli import options
from vitdeploy.cli.app import USE, app
from vitdeploy.cli.command import command
from vitdeploy.cli.console import Console


@command(app, section=USE, examples=["vitdeploy verify deit --key release.pub"])
def verify(
    console: Console,
    artifact: options.ArtifactFolder,
    key: Annotated[
        Path,
        typer.Option(metavar="FILE", help="The public key of whoever signed it, as PEM.", show_default=False),
    ],
    evidence: options.EvidenceFolder = None,
) -> None:
    """Verify that an artifact and its evidence are what a key signed.

    A file that was changed, removed or added, or another key, is an error (exit code 1) that names it. The verdict that
    was signed is printed, whatever it is: vitdeploy gate --require-signed judges by your own limits.
    """
    from vitdeploy.cli.signature_views import show_verified
    from vitdeploy.commands.signing.keys import read_public
    from vitdeploy.commands.verify import verify_artifact, verify_family

    public = read_public(key)
    if options.is_family(artifact):
        options.refuse_for_family({"--evidence": evidence})
        verified = verify_family(options.load_family(artifact), public, console)
    else:
        verified = verify_artifact(options.load_artifact(artifact, evidence), public, console)
    console.show(verified, *show_verified(verified))
