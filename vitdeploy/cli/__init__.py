"""The command line: parse, one call, exit code.

Nothing heavy is imported on the way to `--help`: each command imports what it calls.
"""

from __future__ import annotations

# In the order of --help.
from vitdeploy.cli import export as export  # isort: skip
from vitdeploy.cli import compile as compile  # isort: skip
from vitdeploy.cli import run as run  # isort: skip
from vitdeploy.cli import sweep as sweep  # isort: skip
from vitdeploy.cli import inspect as inspect  # isort: skip
from vitdeploy.cli import bench as bench  # isort: skip
from vitdeploy.cli import evaluate as evaluate  # isort: skip
from vitdeploy.cli import debug as debug  # isort: skip
from vitdeploy.cli import gate as gate  # isort: skip
from vitdeploy.cli import report as report  # isort: skip
from vitdeploy.cli import predict as predict  # isort: skip
from vitdeploy.cli import package as package  # isort: skip
from vitdeploy.cli import sign as sign  # isort: skip
from vitdeploy.cli import verify as verify  # isort: skip
from vitdeploy.cli import bom as bom  # isort: skip
from vitdeploy.cli import doctor as doctor  # isort: skip
from vitdeploy.cli import recipes as recipes  # isort: skip
from vitdeploy.cli import hosts as hosts  # isort: skip
from vitdeploy.cli import device as device  # isort: skip
from vitdeploy.cli.app import app as app
from vitdeploy.cli.command import run_app


def main() -> None:
    """Run the command line; the entry point of the installed script."""
    run_app(app)
