"""Changed recipes: refused in one line, or read as they are written."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.robustness.cases import FINE, WRONG, Judged
from tests.robustness.mutations import change_place, list_paths, mutate_bytes

_LINES = (
    "model: timm:vit", "<<: *a", "a: &a [*a]", "? [a, b] : c", "- x", "!!python/object/apply:os.system ['id']",
    "precision: {kind: int8, kind: fp16}", "target: {kind: onnxruntime, batch: 1:4:8}", "%YAML 1.1", "---", "...",
    "gate: {max_drop_pp: .nan}", "gate: {min_speedup: 1e400}", "bench: {seconds: -1}", "data: {calibration: ../../..}",
    "model: {spec: 'python:os:system'}", "\t- tab", "key: 'unclosed", "preprocess: {size: [0, 0]}",
    "preprocess: {size: [99999999, 99999999]}", "a: " + "[" * 3000, "a: " + "{a: " * 800, "x: " + "9" * 6000,
)  # fmt: skip
_BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 26))


class Recipes:
    """YAML files, from those that come with vitdeploy."""

    name = "recipes"
    seconds = 60.0
    mebibytes = 256

    def prepare(self, folder: Path) -> None:
        """Read the shipped recipes."""
        from vitdeploy.recipe.shipped import shipped_recipe, shipped_recipes

        self._texts = [shipped_recipe(name)[1] for name in shipped_recipes()]
        for text in self._texts:
            self._read(text.encode(), folder)

    def judge(self, number: int, rng: random.Random, folder: Path) -> Judged:
        """Change one recipe and read it; then compose with it, as `run` does."""
        content, what = _change(rng.choice(self._texts), rng)
        recipe = self._read(content, folder)
        problem = _find_difference(content.decode(), recipe, folder)
        return Judged(WRONG if problem else FINE, f"{what}; {problem}")

    def _read(self, content: bytes, folder: Path) -> dict[str, Any]:
        from vitdeploy import recipe as recipes
        from vitdeploy import targets
        from vitdeploy.commands.export import read_recipe
        from vitdeploy.commands.export_order import default_folder

        path = folder / "recipe.yaml"
        path.write_bytes(content)
        recipe = recipes.compose(base=read_recipe(path))
        targets.find(recipe.target)
        default_folder(recipe)
        dumped: dict[str, Any] = recipe.model_dump(mode="json")
        return dumped


def _change(text: str, rng: random.Random) -> tuple[bytes, str]:
    kind = rng.choice(["place", "place", "place", "bytes", "line", "lines", "bomb"])
    if kind == "place":
        document = yaml.safe_load(text)
        changed, what = change_place(document, rng.choice(list(list_paths(document))), rng)
        return yaml.safe_dump(changed, allow_unicode=True).encode("utf-8", "surrogatepass"), what
    if kind == "bytes":
        return mutate_bytes(text.encode(), rng)
    lines = text.splitlines()
    if kind == "bomb":
        return (_BOMB + text + f"\nx: *a{rng.randrange(26)}\n").encode(), "aliases of aliases"
    if kind == "line":
        line = rng.choice(_LINES)
        lines.insert(rng.randrange(len(lines) + 1), line)
        return "\n".join(lines).encode(), f"the line {line[:60]!r}"
    at = rng.randrange(len(lines))
    lines[at : at + 1] = rng.choice([[], [lines[at]] * 2, [" " + lines[at]], [lines[at].replace(":", "", 1)]])
    return "\n".join(lines).encode(), f"line {at + 1}"


def _find_difference(text: str, recipe: dict[str, Any], folder: Path) -> str:
    """Return a value of the YAML that is not in the recipe as it stands there; empty if there is none."""
    written = yaml.load(text, yaml.BaseLoader)
    for path, value in _leaves(written):
        if path[:1] == ("preprocess",) or not isinstance(value, str):
            continue
        found = _find(recipe, path)
        if found is _ABSENT:
            return f"{'.'.join(map(str, path))}: {value[:60]!r} was dropped"
        if not _same(value, found, folder):
            return f"{'.'.join(map(str, path))}: {value[:60]!r} was read as {found!r}"
    return ""


_ABSENT = object()


def _leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _leaves(inner, (*path, index))
    else:
        yield path, value


def _find(recipe: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        try:
            recipe = recipe[key]
        except (KeyError, IndexError, TypeError):
            return _ABSENT
        if isinstance(recipe, dict) and set(recipe) == {"spec"} and key == "model":
            return recipe["spec"]
    return recipe


def _same(written: str, found: Any, folder: Path) -> bool:
    """Compare a text of the file with the value that it became."""
    if found is None:
        return written in ("", "~", "null", "Null", "NULL")
    if isinstance(found, bool):
        return written.lower() == str(found).lower()
    if isinstance(found, int | float):
        try:
            return float(written) == found
        except ValueError:
            return False
    if isinstance(found, dict):  # `model: NAME`, `batch: 1:4:8`
        return written in map(str, found.values()) or re.fullmatch(r"[\d:]+", written) is not None
    return str(found) == written or str(found).endswith(written) or written in str(found)
