"""The command line: parse, one call, exit code.

Nothing heavy is imported on the way to `--help`: each command imports what it calls.
"""

from __future__ import annotations

# In the order of --help.
from vitdeploy.cli import making as making  # isort: skip
from vitdeploy.cli import proving as proving  # isort: skip
from vitdeploy.cli import using as using  # isort: skip
from vitdeploy.cli import hosts as hosts  # isort: skip
from vitdeploy.cli import device as device  # isort: skip
from vitdeploy.cli.app import app as app
from vitdeploy.cli.common import run


def main() -> None:
    """The console script."""
    run(app)
