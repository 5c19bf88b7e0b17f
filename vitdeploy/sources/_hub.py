"""The Hugging Face hub without its minute of retries: probe it once, and use the local cache alone when it is away."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

_PROBE_SECONDS = 5.0


@contextmanager
def cache_only_when_unreachable(*, local: bool = False) -> Iterator[bool]:
    """Inside, the hub is asked only if it answers now; yields whether it does. A `local` model never asks it.

    Every failed request to the hub is repeated five times over half a minute, for each file name that is tried.
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    reachable = not (before or local) and _answers(constants.ENDPOINT)
    constants.HF_HUB_OFFLINE = not reachable
    try:
        yield reachable
    finally:
        constants.HF_HUB_OFFLINE = before


def _answers(endpoint: str) -> bool:
    from huggingface_hub import get_session

    try:  # through the hub's own client: it knows proxies and certificates
        get_session().head(endpoint, timeout=_PROBE_SECONDS)
    except Exception:  # noqa: BLE001 - whatever httpx or requests raise, in any version: it did not answer
        return False
    return True
