"""A folder that timm saved: `config.json`, and the weights beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitdeploy.errors import SourceError
from vitdeploy.plain_files import read_plain

CONFIG = "config.json"
WEIGHT_ARGUMENTS = ("pretrained", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict")
"""Arguments of `timm.create_model` that choose weights."""
_WEIGHTS = ("model.safetensors", "pytorch_model.bin", "model.safetensors.index.json")
_MAX_CONFIG_BYTES = 16 << 20
_PREPROCESSING = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode", "test_input_size")


@dataclass(frozen=True)
class SavedModel:
    """A folder as timm writes it for the hub.

    Attributes:
        architecture: the name in timm's model list.
        arguments: the arguments that it was built with.
        labels: class names in the order of the outputs.
        weights: the file of the weights.
    """

    architecture: str
    arguments: Mapping[str, Any]
    labels: tuple[str, ...] | None
    weights: Path


def read_folder(folder: Path) -> SavedModel:
    """Read the folder of a model that timm saved: `config.json` and the weights beside it.

    Raises:
        SourceError: it is not such a folder.
    """
    fix = "Save it with timm.models.save_for_hf(model, FOLDER)."
    try:
        config = json.loads(read_plain(folder / CONFIG, _MAX_CONFIG_BYTES))
        architecture = config["architecture"]
    except FileNotFoundError:
        raise SourceError(f"timm:{folder} has no {CONFIG}", fix=fix) from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise SourceError(f"{folder / CONFIG} names no `architecture` of timm", fix=fix) from None
    details = config.get("pretrained_cfg", config)
    weights = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    if not isinstance(architecture, str) or not isinstance(details, dict):
        raise SourceError(f"{folder / CONFIG} names no `architecture` of timm", fix=fix)
    if weights is None:
        raise SourceError(f"timm:{folder} has none of the files {', '.join(_WEIGHTS)}", fix=fix)
    names = config.get("label_names", details.get("label_names"))
    labels = tuple(names) if isinstance(names, list) and all(isinstance(n, str) for n in names) else None
    built_with = config.get("model_args", {})
    if not isinstance(built_with, dict) or built_with.keys() & set(WEIGHT_ARGUMENTS):
        raise SourceError(f"{folder / CONFIG} has `model_args` that choose other weights", fix=fix)
    arguments = {**built_with, **_overlay(details)}
    return SavedModel(architecture, arguments, labels, weights)


def _overlay(details: Mapping[str, Any]) -> dict[str, Any]:
    """Return the saved preprocessing as the argument that replaces timm's own."""
    preprocessing = {name: details[name] for name in _PREPROCESSING if details.get(name) is not None}
    return {"pretrained_cfg_overlay": preprocessing} if preprocessing else {}
