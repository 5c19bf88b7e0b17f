"""`vitdeploy doctor`."""

from __future__ import annotations

from vitdeploy.cli.app import LOOK_UP, app
from vitdeploy.cli.command import command
from vitdeploy.cli.console import Console


@command(app, section=LOOK_UP, examples=["vitdeploy doctor", "vitdeploy doctor --json"])
def doctor(console: Console) -> None:
    """Show which targets can run on this machine, and how to fix or install what cannot."""
    from vitdeploy.cli import views
    from vitdeploy.commands.doctor import doctor as run_doctor

    result = run_doctor()
    console.show(result, *views.show_diagnosis(result))
