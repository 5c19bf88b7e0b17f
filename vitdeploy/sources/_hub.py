"""The network: probed once for the Hugging Face hub, and not used at all for a model that an artifact names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from urllib.parse import urlparse

_PROBE_SECONDS = 5.0

NOT_CACHED = "they are not in the local cache, and nothing is downloaded for a model that an artifact names"

_no_network: ContextVar[bool] = ContextVar("no_network", default=False)


@contextmanager
def no_network() -> Iterator[None]:
    """Use only local caches inside the block."""
    token = _no_network.set(True)
    try:
        yield
    finally:
        _no_network.reset(token)


def may_download(url: str) -> bool:
    """Return True if torch.hub may be asked for this file: it has it in its cache, or the network may be used."""
    import torch

    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    return cached.is_file() or not _no_network.get()


@contextmanager
def cache_only_when_unreachable(*, local: bool = False) -> Iterator[bool]:
    """Use the hub inside the block only if it answers now, and yield True if it does. A `local` model never uses it.

    Without this, the hub's client repeats every failed request five times in half a minute, for each file name.
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    reachable = not (before or local or _no_network.get()) and _answers(constants.ENDPOINT)
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
