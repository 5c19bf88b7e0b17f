"""`vitdeploy bom`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from vitdeploy.cli import options
from vitdeploy.cli.app import USE, app
from vitdeploy.cli.command import command
from vitdeploy.cli.console import Console


@command(app, section=USE, examples=["vitdeploy bom deit -o deit.cdx.json"])
def bom(
    console: Console,
    artifact: options.ArtifactFolder,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="The file to write, outside of the artifact. Default: it is printed.",
            show_default=False,
        ),
    ] = None,
    evidence: options.EvidenceFolder = None,
) -> None:
    """Write a bill of materials of the model: CycloneDX 1.6, as JSON.

    It names the model with its digest, the weights that it was made of, every file, the data of calibration and
    evaluation by digest, the libraries with their versions, licences where they are known, the quantization, and the
    metrics with their intervals. Doubtful figures are left out.
    """
    from vitdeploy.commands.bom.bom import make_bom
    from vitdeploy.escaping import escape, escape_strings

    bill = make_bom(options.load_artifact(artifact, evidence), output)
    if bill.unlicensed:
        console.warn(f"no licence is known of {', '.join(bill.unlicensed)}")
    if bill.document is not None and not console.json:
        text = json.dumps(escape_strings(bill.document), indent=1)
        console.show_text({}, text + "\n")
        return
    console.show(bill, Text(f"wrote {escape(bill.file or '')}: {bill.components} components"))
