"""Probe the Hugging Face hub once, and use only the local cache when it does not answer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

_PROBE_SECONDS = 5.0


@contextmanager
def cache_only_when_unreachable(*, local: bool = False) -> Iterator[bool]:
    """Use the hub inside the block only if it answers now, and yield True if it does. A `local` model never uses it.

    Without this, the hub's client repeats every failed request five times in half a minute, for each file name.
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

    try:  # the hub's own client knows proxies and certificates
        get_session().head(endpoint, timeout=_PROBE_SECONDS)
    except Exception:  # noqa: BLE001  httpx or requests, depending on the version: any error means no answer
        return False
    return True
