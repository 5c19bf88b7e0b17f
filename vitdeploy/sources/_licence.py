"""The licence of pretrained weights, as their model library or their folder names it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from vitdeploy import yaml12
from vitdeploy.plain_files import read_plain

_CARD = "README.md"
_LARGEST_CARD = 1 << 20
_LONGEST = 200
_FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n---\s*(\n|\Z)", re.DOTALL)


def of_timm(module: Any) -> str:
    """Return the licence in the configuration of timm's pretrained weights; empty if it has none."""
    config = getattr(module, "pretrained_cfg", None)
    return _clean(config.get("license") if isinstance(config, dict) else getattr(config, "license", None))


def of_folder(folder: Path) -> str:
    """Return the licence that the model card in a folder of Hugging Face names; empty if it names none."""
    try:
        text = read_plain(folder / _CARD, _LARGEST_CARD).decode()
        front = _FRONT_MATTER.match(text)
        facts = yaml12.loads(front[1]) if front else None
    except (OSError, ValueError):  # a model card is for people: it need not be there, or be YAML
        return ""
    if not isinstance(facts, dict):
        return ""
    licence = facts.get("license")
    return _clean(facts.get("license_name", licence) if licence == "other" else licence)


def _clean(value: Any) -> str:
    return " ".join(value.split())[:_LONGEST] if isinstance(value, str) else ""
