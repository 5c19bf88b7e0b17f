"""`vitdeploy doctor`."""

from __future__ import annotations

from vitdeploy.cli.app import app
from vitdeploy.cli.command import command
from vitdeploy.cli.console import Console


@command(app)
def doctor(console: Console) -> None:
    """Say what can run here, what cannot, why, and the fix."""
    from vitdeploy.cli import views
    from vitdeploy.commands.doctor import doctor as run_doctor

    result = run_doctor()
    console.show(result, *views.doctor(result))
