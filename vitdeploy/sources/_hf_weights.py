"""Build a model of transformers, and give it weights: random, of a checkpoint on disk, or those that it comes with."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitdeploy.errors import SourceError
from vitdeploy.frozen import replace
from vitdeploy.plain_files import expand_home
from vitdeploy.recipe import ModelSpec
from vitdeploy.sources import _weights
from vitdeploy.sources._checkpoint import Fitted, fit

if TYPE_CHECKING:
    from torch import nn

OFFLINE = "the Hugging Face hub does not answer, and the local cache does not have it"


def expand(argument: str) -> str:
    """Return the path of a model's folder, with the user's home written out; the name of a repository as it is."""
    path = expand_home(argument)
    return str(path) if path.is_dir() else argument


def _options(attention: str | None) -> dict[str, str]:
    return {"attn_implementation": attention} if attention else {}


def build_random(argument: str, kind: Any, config: Any, attention: str | None) -> nn.Module:
    """Build a model with seeded random weights.

    Raises:
        SourceError: the config does not fit the class.
    """
    build = kind.from_config if hasattr(kind, "from_config") else kind._from_config
    try:
        with _weights.fixed_seed():
            module: nn.Module = build(config, **_options(attention))
    except (TypeError, ValueError, ImportError, AssertionError) as error:
        raise SourceError(
            f"hf:{argument} cannot be built: {' '.join(str(error).split())[:300]}", fix="Correct model.kwargs."
        ) from None
    return module


@contextmanager
def quiet() -> Iterator[None]:
    """Hide progress bars and load reports of transformers: vitdeploy has its own. Bars of downloads go too."""
    from transformers import utils

    logging: Any = utils.logging  # it has no types
    was_enabled, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if was_enabled:
            logging.enable_progress_bar()


def load_from_file(argument: str, module: Any, path: Path, spec: ModelSpec) -> tuple[Any, Fitted]:
    """Load weights through transformers, because it renames keys between the file and the module.

    If the head in the file has another number of classes, the model is built for that number.
    """
    fitted = fit(path, spec.weights_key, module.state_dict())
    loaded, info = _from_state(module, fitted)
    rows = {(have[0], want[0]) for _, have, want in info["mismatched_keys"] if tuple(have[1:]) == tuple(want[1:])}
    classes, own = next(iter(rows)) if len(rows) == 1 else (0, None)
    if spec.num_classes is None and own == module.config.num_labels:
        config = copy.deepcopy(module.config)
        config.num_labels = classes
        if labels := fitted.labels_for(classes):
            config.id2label = dict(enumerate(labels))
        resized = build_random(argument, type(module), config, spec.kwargs.get("attn_implementation"))
        other, others_info = _from_state(resized, fitted)
        if not others_info["mismatched_keys"]:
            loaded, info = other, others_info
            fitted = dataclasses.replace(fitted, use=replace(fitted.use, classes=classes))
    _weights.check_fit(
        path,
        state=fitted.state,
        missing=sorted(info["missing_keys"]),
        unexpected=sorted(info["unexpected_keys"]),
        shapes=sorted(info["mismatched_keys"]),
    )
    return loaded, fitted


def _from_state(module: Any, fitted: Fitted) -> tuple[Any, Any]:
    """Return a model with these weights, and what did not fit."""
    import torch

    with quiet():
        return type(module).from_pretrained(  # type: ignore[no-any-return]
            None,
            config=module.config,
            state_dict=dict(fitted.state),
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # `check_fit` refuses them, and names them
            dtype=torch.float32,
        )


def load_pretrained(
    argument: str, kind: Any, config: Any, attention: str | None, local: bool, reachable: bool
) -> nn.Module:
    """Load a model with the weights of its folder or repository, in float32.

    Raises:
        SourceError: they are missing, or leave tensors random.
    """
    import torch

    try:
        module: nn.Module
        with quiet() if Path(expand(argument)).is_dir() else nullcontext():
            module, info = kind.from_pretrained(
                expand(argument),
                config=config,
                local_files_only=local,
                output_loading_info=True,
                weights_only=True,
                dtype=torch.float32,
                **_options(attention),
            )
    except Exception as error:  # hub, http, files and checkpoints have errors of their own
        raise _weights.missing_weights(f"hf:{argument}", error if local or reachable else OFFLINE) from error
    fresh = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
    if fresh:
        raise _weights.missing_weights(
            f"hf:{argument}", f"they leave {len(fresh)} tensors of {type(module).__name__} random, first {fresh[0]}"
        )
    return module
