"""What a measurement is worth is tested with the times that users get."""

from __future__ import annotations

import pytest


@pytest.fixture
def short_measurements() -> None:
    """Leave the times as they are; see tests/conftest.py."""
