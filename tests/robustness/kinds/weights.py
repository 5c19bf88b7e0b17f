"""Changed weights files: refused, or loaded with the numbers that the file has.

What a file has is read by `weight_files`, which shares no code with the libraries that load it.
"""

from __future__ import annotations

import json
import random
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.robustness import weight_files
from tests.robustness.cases import FINE, WRONG, Judged
from tests.robustness.mutations import mutate_bytes, mutate_json
from tests.robustness.weight_files import Damaged


class Weights:
    """`.pt` (zip, legacy, nested), `.safetensors` and `.pt2`."""

    name = "weights"
    seconds = 60.0
    mebibytes = 1024

    def prepare(self, folder: Path) -> None:
        """Save one small model in every form."""
        import torch
        from safetensors.torch import save_file

        torch.set_num_threads(1)
        torch.manual_seed(0)
        self._module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 4, 4), torch.nn.Flatten(), torch.nn.Linear(16, 5))
        state = self._module.state_dict()
        torch.save(state, folder / "zip.pt")
        torch.save({"epoch": 3, "state_dict": state}, folder / "nested.pth")
        torch.save(state, folder / "legacy.pt", _use_new_zipfile_serialization=False)
        save_file(state, folder / "plain.safetensors")
        image = torch.zeros(1, 3, 8, 8)
        torch.export.save(torch.export.export(self._module.eval(), (image,)), folder / "program.pt2")
        self._files = {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}
        for name in self._files:
            self._compare(folder / name)

    def judge(self, number: int, rng: random.Random, folder: Path) -> Judged:
        """Change one file, load it, and compare."""
        name = rng.choice(sorted(self._files))
        path = folder / name
        content = self._files[name]
        if name.endswith(".safetensors") and rng.random() < 0.5:
            changed, what = _change_header(content, rng)
        elif name != "legacy.pt" and not name.endswith(".safetensors") and rng.random() < 0.6:
            changed, what = _change_member(content, rng, path)
        else:
            changed, what = mutate_bytes(content, rng)
        path.write_bytes(changed)
        problem = self._compare(path)
        return Judged(WRONG if problem else FINE, f"{name}: {what}; {problem}")

    def _compare(self, path: Path) -> str:
        """Load the file. Return how the numbers differ from those in the file; empty if they do not."""
        loaded = self._load(path)
        try:
            held = weight_files.read(path)
        except Damaged as error:
            return f"loaded, although {error}"
        return _find_difference(loaded, held)

    def _load(self, path: Path) -> dict[str, Any]:
        import copy

        import numpy as np

        from vitdeploy.recipe import ModelSpec
        from vitdeploy.sources import _weights, load

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if path.suffix == ".pt2":
                module: Any = load(ModelSpec(spec=str(path)), size=None).module
                return {key.removeprefix("inner."): value.numpy() for key, value in module.state_dict().items()}
            module = copy.deepcopy(self._module)
            for parameter in module.parameters():
                parameter.data.fill_(np.nan)
            _weights.load_file(module, path)
        return {key: value.numpy() for key, value in module.state_dict().items()}


def _find_difference(loaded: Mapping[str, Any], held: Mapping[str, Any]) -> str:
    import numpy as np

    if set(loaded) != set(held):
        return f"it loaded {sorted(loaded)}, but the file has {sorted(held)}"
    for name, values in loaded.items():
        with np.errstate(over="ignore", invalid="ignore"):
            expected = np.asarray(held[name]).astype(values.dtype)
        if values.shape != expected.shape or not np.array_equal(values, expected, equal_nan=True):
            return f"{name} has other numbers than in the file"
    return ""


def _change_header(content: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Change one place of the header of a safetensors file, and give its new length."""
    (size,) = struct.unpack("<Q", content[:8])
    header, what = mutate_json(content[8 : 8 + size], rng)
    return struct.pack("<Q", len(header)) + header + content[8 + size :], what


def _change_member(content: bytes, rng: random.Random, path: Path) -> tuple[bytes, str]:
    """Write the archive again with one member changed, dropped, doubled or renamed; all checksums are right."""
    path.write_bytes(content)
    with zipfile.ZipFile(path) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    at = rng.randrange(len(members))
    name, old = members[at]
    kind = rng.choice(["change", "change", "change", "shorter", "empty", "longer", "drop", "double", "rename"])
    if kind == "change":
        new, what = mutate_json(old, rng) if name.endswith(".json") and _is_json(old) else mutate_bytes(old, rng)
    else:
        what = kind
        new = {"shorter": old[: len(old) // 2], "empty": b"", "longer": old + old}.get(kind, old)
    members[at] = (name, new)
    if kind == "drop":
        del members[at]
    elif kind == "double":
        members.append((name, bytes(len(old))))
    elif kind == "rename":
        members[at] = (name + rng.choice(["x", "/../x", ".so"]), old)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # two members of one name
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            for member, data in members:
                archive.writestr(member, data)
    return path.read_bytes(), f"{name.partition('/')[2]}: {what}"


def _is_json(content: bytes) -> bool:
    try:
        json.loads(content)
    except ValueError:
        return False
    return True
