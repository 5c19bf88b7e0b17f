"""Checkpoints as training scripts leave them: the state dict in them, and the names of its keys."""

from __future__ import annotations

import json
import re
import zipfile
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitdeploy.errors import SourceError
from vitdeploy.evidence import CheckpointUse
from vitdeploy.plain_files import read_plain
from vitdeploy.plugins import did_you_mean
from vitdeploy.sources._archive import refuse_damaged, refuse_packed

if TYPE_CHECKING:
    from torch import Tensor, nn

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".pth.tar", ".safetensors.index.json", ".bin.index.json")
"""The suffixes of checkpoint files. An index lists the files that a large checkpoint was split into."""
EMA = "ema"
"""A `weights_key` that stands for the averaged weights, whatever the training script called them."""
CLASSIFIER_TENSORS = 4
"""The most tensors of a classifier: two heads, as of a distilled model, each with weight and bias."""
_MOST_DIFFERENT = CLASSIFIER_TENSORS + 2  # the stem, if the channels differ too, and the position embedding
_INDEX = ".index.json"
_AVERAGED = ("state_dict_ema", "model_ema", "ema")
_KEYS = (
    "state_dict",
    "model",
    "model_state_dict",
    "module",
    "model_ema",
    "ema",
    "state_dict_ema",
    "teacher",
    "student",
)
"""Keys under which training scripts put the state dict, the first that is there before the others."""
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "backbone.", "encoder.")
"""Prefixes that wrappers put before every key: DistributedDataParallel, torch.compile, Lightning, and common names."""
_MOST_PREFIXES = 4
_MAX_NESTING = 4
_MAX_INDEX_BYTES = 64 << 20
_SAFETENSORS = "Save model.state_dict() with safetensors.torch.save_file."


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint, of which nothing but tensors and plain values was unpickled.

    Attributes:
        path: its file, or the index of its files.
        parts: the state dicts in it, by the keys that lead to them; "" is the file itself.
        labels: class names in the order of the outputs, if they were kept as `class_to_idx` or `id2label`.
    """

    path: Path
    parts: Mapping[str, Mapping[str, Tensor]]
    labels: tuple[str, ...] | None = None

    def choose(self, key: str | None) -> str:
        """Return the keys that lead to the state dict that `key` asks for: the best known ones if it is None.

        Raises:
            SourceError: there is none under `key`, or `key` is needed to choose.
        """
        names = list(self.parts)
        known = ", ".join(name or "(the file itself)" for name in names)
        if key is None:
            usual = [name for name in names if not name or name.partition(".")[0] in _KEYS]
            if not usual and len(names) > 1:
                raise SourceError(f"{self.path} has several state dicts: {known}", fix="Choose one with --weights-key.")
            return (usual or names)[0]
        if key == EMA:
            matches = [name for start in _AVERAGED for name in names if name.partition(".")[0] == start]
            if not matches:
                raise SourceError(f"{self.path} has no averaged weights (EMA). It has: {known}", fix="Leave out --ema.")
            return matches[0]
        matches = [name for name in names if name == key or name.startswith(f"{key}.")]
        if not matches:
            hint = did_you_mean(key, [name for name in names if name])
            raise SourceError(f"{self.path} has no state dict {key!r}{hint}", fix=f"It has: {known}.")
        return matches[0]


@dataclass(frozen=True)
class Fitted:
    """A state dict whose keys are those of the model, as far as prefixes go; see `CheckpointUse`."""

    path: Path
    state: Mapping[str, Tensor]
    use: CheckpointUse
    labels: tuple[str, ...] | None = None

    def labels_for(self, classes: int | None) -> tuple[str, ...] | None:
        """Return the class names in the checkpoint, if there are as many as the model has classes."""
        return self.labels if self.labels is not None and len(self.labels) == classes else None


def has_suffix(name: str) -> bool:
    """Return True if a file of this name can be a checkpoint."""
    return name.lower().endswith(SUFFIXES)


def fit(path: Path, key: str | None, expected: Collection[str]) -> Fitted:
    """Read a checkpoint, choose its state dict, and remove prefixes from its keys.

    A prefix is removed if all keys have it, or if what has it is exactly the model.

    Args:
        path: the checkpoint.
        key: see `Checkpoint.choose`.
        expected: the keys of the model's own state dict.

    Raises:
        SourceError: the checkpoint cannot be read, has no such state dict, or holds the model more than once.
    """
    checkpoint = read_checkpoint(path)
    name = checkpoint.choose(key)
    state, prefix, left_out = _remove_prefixes(path, checkpoint.parts[name], set(expected))
    others = tuple(other for other in checkpoint.parts if other != name)
    use = CheckpointUse(file=path.name, key=name, others=others, prefix=prefix, left_out=left_out)
    return Fitted(path, state, use, checkpoint.labels)


def count_classes(state: Mapping[str, Tensor], module: nn.Module) -> int | None:
    """Return the number of classes in the file if its head has another number than the model's; else None.

    Only the first axis of the head's weights and biases differs then, and by one number. If the module says how many
    classes it has, it is that axis.
    """
    expected, current = module.state_dict(), getattr(module, "num_classes", None)
    rows = set()
    differing = [key for key, value in state.items() if key in expected and value.shape != expected[key].shape]
    for key in differing:
        have, want = state[key].shape, expected[key].shape
        if have[1:] == want[1:] and len(have) > 0:
            layer = [
                state[name] for kind in ("weight", "bias") if (name := f"{key.rpartition('.')[0]}.{kind}") in state
            ]
            rows.add((have[0], want[0]) if all(len(each) == have[0] for each in layer) else (0, 0))
    if len(rows) != 1 or len(differing) > _MOST_DIFFERENT:
        return None
    classes, own = rows.pop()
    if isinstance(current, int) and own != current:
        return None
    return classes or None


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint, and find the state dicts in it.

    Raises:
        SourceError: it is damaged, needs more than tensors and plain values, or has no state dict.
    """
    if path.name.endswith(_INDEX):
        return Checkpoint(path, {"": _read_shards(path)})
    content = _read(path)
    parts = dict(_find_parts(content, "", 0))
    if parts:
        return Checkpoint(path, _sort(parts), _find_labels(content))
    if not isinstance(content, dict) or not content:
        raise _not_a_state_dict(path, f"it holds a {type(content).__name__}")
    import torch

    other = next((k for k, v in content.items() if not isinstance(k, str) or not isinstance(v, torch.Tensor)), None)
    if other is not None:
        raise _not_a_state_dict(path, f"its entry {other!r} is a {type(content[other]).__name__}, not a tensor")
    odd = next(key for key, value in content.items() if not _is_dense(value))
    raise _not_a_state_dict(path, f"its entry {odd!r} is not a dense tensor with values")


def _read(path: Path) -> object:
    import torch

    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file as load_safetensors

            return dict(load_safetensors(path))
        if zipfile.is_zipfile(path):
            refuse_packed(path, torch._C.PyTorchFileReader(str(path)))
            refuse_damaged(path)
        content: object = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip, struct and safetensors have errors of their own
        raise _unreadable(path, error) from error
    return content


def _read_shards(path: Path) -> dict[str, Tensor]:
    """Read the files that an index lists; each tensor from the file that the index says."""
    try:
        places = json.loads(read_plain(path, _MAX_INDEX_BYTES))["weight_map"]
        shards = sorted(set(places.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise _not_a_state_dict(path, "it is not an index with a `weight_map`") from None
    state: dict[str, Tensor] = {}
    for shard in shards:
        file = path.parent / str(shard)
        if Path(str(shard)).name != shard or not has_suffix(shard) or shard.endswith(_INDEX) or not file.is_file():
            raise SourceError(
                f"{path} lists the file {shard!r}, which is not beside it", fix="Copy all files of the checkpoint."
            )
        part = read_checkpoint(file).parts.get("", {})
        missing = next((key for key, place in places.items() if place == shard and key not in part), None)
        if missing is not None:
            raise SourceError(f"{file} has no {missing!r}, which {path.name} says", fix="Copy all files again.")
        state |= {key: value for key, value in part.items() if places.get(key) == shard}
    if not state:
        raise _not_a_state_dict(path, "it lists no tensors")
    return state


def _find_parts(content: object, name: str, depth: int) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """Yield the state dicts in a checkpoint, each with the keys that lead to it. A dict in a pickle may hold itself."""
    if not isinstance(content, dict) or depth > _MAX_NESTING:
        return
    if _is_state_dict(content):
        yield name, content
        return
    for key, value in content.items():
        path = f"{name}.{key}" if name else key
        if isinstance(key, str) and isinstance(value, dict):
            if key in _KEYS:
                yield from _find_parts(value, path, depth + 1)
            elif depth == 0 and _is_state_dict(value):
                yield path, value


def _is_state_dict(content: Mapping[Any, Any]) -> bool:
    import torch

    return bool(content) and all(
        isinstance(key, str) and isinstance(value, torch.Tensor) and _is_dense(value) for key, value in content.items()
    )


def _is_dense(value: Tensor) -> bool:
    import torch

    return value.layout is torch.strided and not value.is_meta and not value.is_quantized


def _sort(parts: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Mapping[str, Tensor]]:
    """Sort by the order of `_KEYS`; other keys come last."""
    order = {key: number for number, key in enumerate(_KEYS)}
    return {name: parts[name] for name in sorted(parts, key=lambda name: order.get(name.partition(".")[0], len(order)))}


def _find_labels(content: object) -> tuple[str, ...] | None:
    """Return the class names that a training script kept, if there is one for each number from 0 on."""
    if not isinstance(content, dict):
        return None
    numbers, names = content.get("class_to_idx"), content.get("id2label")
    pairs: list[tuple[Any, Any]] = []
    if isinstance(numbers, dict):
        pairs = [(number, name) for name, number in numbers.items()]
    elif isinstance(names, dict):
        pairs = list(names.items())
    if not pairs or not all(isinstance(name, str) and re.fullmatch(r"[0-9]+", str(n)) for n, name in pairs):
        return None
    by_number = {int(number): str(name) for number, name in pairs}
    return tuple(by_number[n] for n in sorted(by_number)) if sorted(by_number) == list(range(len(pairs))) else None


def _remove_prefixes(
    path: Path, state: Mapping[str, Tensor], expected: set[str]
) -> tuple[Mapping[str, Tensor], str, tuple[str, ...]]:
    """Return the entries under the names of the model, the prefix that was removed, and the entries without it.

    Raises:
        SourceError: entries with different prefixes are the model, each on its own.
    """
    whole: tuple[Mapping[str, Tensor], str, tuple[str, ...]] = (state, "", ())
    best, exact = whole, []
    queue = deque([whole])
    while queue:
        inside, prefix, left_out = queue.popleft()
        if set(inside) == expected:
            if not left_out:
                return inside, prefix, ()
            exact.append((inside, prefix, left_out))
            continue
        if not left_out and len(expected & set(inside)) > len(expected & set(best[0])):
            best = inside, prefix, left_out
        if prefix.count(".") < _MOST_PREFIXES:
            for start in _PREFIXES:
                shorter = {key.removeprefix(start): value for key, value in inside.items() if key.startswith(start)}
                if shorter:
                    rest = tuple(prefix + key for key in inside if not key.startswith(start))
                    queue.append((shorter, prefix + start, left_out + rest))
    if len(exact) > 1:
        raise SourceError(
            f"{path} holds the model twice, under {exact[0][1]!r} and {exact[1][1]!r}", fix="Save one of them alone."
        )
    return exact[0] if exact else best


def _unreadable(path: Path, error: Exception) -> SourceError:
    text = " ".join(str(error).split()) or type(error).__name__
    match = re.search(r"Unsupported (?:global|class|operand)[^.]*?([\w.]+\.[\w.]+)|GLOBAL ([\w.]+)", text)
    if match is None:
        return _not_a_state_dict(path, text[:200])
    reason = f"it needs {(match[1] or match[2]).rstrip('.')}, which is not a tensor"
    fix = (
        f"Where you trained it, load it with c = torch.load({path.name!r}, weights_only=False), and save its state "
        "dict alone: safetensors.torch.save_file(c['state_dict'], 'plain.safetensors')."
    )
    return SourceError(f"{path} is not a plain state dict: {reason}", fix=fix)


def _not_a_state_dict(path: Path, reason: str) -> SourceError:
    return SourceError(f"{path} is not a plain state dict: {reason}", fix=_SAFETENSORS)
