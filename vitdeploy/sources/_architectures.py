"""The architectures that timm and torchvision can build: their code, and the shapes of their tensors."""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from types import CodeType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

Shape = tuple[int, ...]

_INITIALISERS = re.compile(r"(add|clamp|constant|copy|erfinv|fill|mul|zero|([a-z]+_)?normal|([a-z]+_)?uniform)_")
"""The functions with which constructors fill tensors."""
OWN_WORDS = 0.9
"""The least share of the words in a checkpoint's keys that the source of its model has, if nobody renamed them."""
_PYTORCH = frozenset(
    (
        "weight",
        "bias",
        "in_proj_weight",
        "in_proj_bias",
        "out_proj",
        "running_mean",
        "running_var",
        "num_batches_tracked",
    )
)
"""The names that PyTorch's own layers give to their tensors."""
_OTHER_TASKS = re.compile(r"\.(detection|optical_flow|quantization|video)\.")


@dataclass(frozen=True)
class Architecture:
    """A model that a library can build.

    Attributes:
        library: "timm" or "torchvision".
        name: its name in the library's list.
        entry: the function that builds it.
        build: builds it with random weights.
    """

    library: str
    name: str
    entry: Callable[..., nn.Module]
    build: Callable[[], nn.Module]

    @property
    def spec(self) -> str:
        """The MODEL of the command line."""
        return f"{self.library}:{self.name}"

    @property
    def words(self) -> frozenset[str]:
        """The words in the source of its module, and of the modules whose classes that uses."""
        return _read_words(self.entry.__module__, self.library)

    @property
    def numbers(self) -> frozenset[int]:
        """The numbers above 1 in its entry function, such as its width, depth and patch size."""
        return frozenset(_find_numbers(_code(self.entry).co_consts))

    @property
    def options(self) -> int:
        """The number of constants in its entry function: more for a variant than for the plain model."""
        return len(_code(self.entry).co_consts)

    def find_head(self, keys: Sequence[str]) -> set[str]:
        """Return those of its keys that are its classifiers'."""
        starts = timm_classifiers(self.name) if self.library == "timm" else (f"{keys[-1].rpartition('.')[0]}.",)
        return {key for key in keys if key.startswith(starts)}

    def list_shapes(self) -> dict[str, Shape]:
        """Return the shapes of its tensors, without making them; nothing if it cannot be built so."""
        import torch

        try:
            with torch.device("meta"), _skip_initialisation():
                return {key: tuple(value.shape) for key, value in self.build().state_dict().items()}
        except Exception:  # noqa: BLE001  constructors that compute with the values of tensors raise what they like
            return {}


def list_architectures() -> Iterator[Architecture]:
    """Yield the architectures of the libraries that are installed."""
    if importlib.util.find_spec("timm") is not None:
        yield from _list_timm()
    if importlib.util.find_spec("torchvision") is not None:
        yield from _list_torchvision()


def timm_classifiers(name: str) -> tuple[str, ...]:
    """Return how the keys of the classifiers of a timm model begin."""
    import timm

    config = timm.get_pretrained_cfg(name.partition(".")[0])
    names: Any = config.classifier if config is not None else None
    return tuple(f"{each}." for each in ((names,) if isinstance(names, str) else names or ()))


def share_of_words(keys: Iterable[str], source: frozenset[str]) -> float:
    """Return the share of the words in keys that a source has; `layer_0` may come from `f"layer_{n}"`."""
    words = {word for key in keys for word in key.split(".") if not word.isdigit()} - _PYTORCH
    own = [word for word in words if word in source or re.sub(r"(?<=_)\d+$", "", word) in source]
    return len(own) / max(1, len(words))


def find_in_transformers(keys: Iterable[str]) -> str | None:
    """Return the model type of transformers, such as "vit", whose keys these are. Its modules are not imported."""
    library = importlib.util.find_spec("transformers")
    for folder in library.submodule_search_locations or () if library else ():
        for name in sorted({key.partition(".")[0] for key in keys}):
            file = Path(folder, "models", name, f"modeling_{name}.py")
            if name.isidentifier() and file.is_file() and share_of_words(keys, _words_of(file)) >= OWN_WORDS:
                return name
    return None


def _list_timm() -> Iterator[Architecture]:
    import timm

    for name in timm.list_models():
        yield Architecture("timm", name, timm.models.model_entrypoint(name), partial(timm.create_model, name))


def _list_torchvision() -> Iterator[Architecture]:
    import torchvision

    for name in torchvision.models.list_models():
        entry = torchvision.models.get_model_builder(name)
        if _OTHER_TASKS.search(entry.__module__):
            continue
        options = {"weights": None, **({"weights_backbone": None} if ".segmentation." in entry.__module__ else {})}
        yield Architecture("torchvision", name, entry, partial(entry, **options))


def _code(entry: Callable[..., Any]) -> CodeType:
    code: CodeType = inspect.unwrap(entry).__code__
    return code


def _find_numbers(constant: object) -> Iterator[int]:
    if isinstance(constant, tuple):
        for each in constant:
            yield from _find_numbers(each)
    elif isinstance(constant, int) and constant > 1:
        yield constant


@cache
def _read_words(module: str, library: str) -> frozenset[str]:
    classes = (value for value in vars(sys.modules[module]).values() if isinstance(value, type))
    modules = {module, *(each.__module__ for each in classes if each.__module__.startswith(f"{library}."))}
    files = (getattr(sys.modules.get(each), "__file__", None) for each in modules)
    return frozenset().union(*(_words_of(Path(file)) for file in files if file))


@cache
def _words_of(file: Path) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", file.read_text(encoding="utf-8")))


def _skip_initialisation() -> Any:
    """Return a mode of PyTorch that leaves tensors as they are. On the meta device, random numbers take 80 % of it."""
    from torch.overrides import TorchFunctionMode

    class SkipInitialisation(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if _INITIALISERS.fullmatch(getattr(function, "__name__", "")):
                return args[0] if args else kwargs["tensor"]
            return function(*args, **(kwargs or {}))

    return SkipInitialisation()
