"""The lock of this machine, apart from the one that real sweeps and jobs hold."""

from __future__ import annotations

import os

from vitdeploy import machine_lock

LOCK_FOLDER = "VITDEPLOY_TESTS_LOCK"
"""The environment variable with the folder of the lock. Processes of nodes inherit it."""


def use_own_lock() -> None:
    """Use the lock in that folder, in this process."""
    machine_lock._FOLDERS = (os.environ[LOCK_FOLDER],)
