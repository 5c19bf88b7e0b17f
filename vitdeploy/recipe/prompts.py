"""The prompts of a model with a text tower, and the templates that they are put into."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vitdeploy import yaml12
from vitdeploy.errors import RecipeError
from vitdeploy.plain_files import expand_home, read_plain

PLACE = "{}"
"""The place of the prompt in a template."""

_LISTS = (".json", ".yaml", ".yml")
_SUFFIXES = (".txt", *_LISTS)
_MAX_BYTES = 1 << 20
_FORMS = 'Give a file with one prompt per line, or prompts with commas between them: "a cat,a dog".'


def read_prompts(text: str, folder: Path) -> tuple[str, ...]:
    """Return the prompts in a file, or in a text with commas between them.

    A file .json or .yaml has a list. Any other file has one prompt per line.

    Args:
        text: the name of a file, or the prompts.
        folder: the folder that the name is relative to.

    Raises:
        RecipeError: there is no such file, or it cannot be read.
    """
    path = folder / expand_home(text) if len(text) < _MAX_BYTES and "\0" not in text else folder
    if _is_file(path):
        return _read_file(path)
    if text.lower().endswith(_SUFFIXES):
        raise RecipeError(f"there is no file {path} with prompts", fix=_FORMS)
    return split_prompts(text)


def split_prompts(text: str) -> tuple[str, ...]:
    """Return the prompts of a text with commas between them."""
    return tuple(prompt.strip() for prompt in text.split(","))


def check_prompts(prompts: Sequence[str]) -> None:
    """Check that no prompt is empty, and that all are different.

    Raises:
        ValueError: they are not.
    """
    if not prompts:
        raise ValueError(f"there is no prompt. {_FORMS}")
    for number, prompt in enumerate(prompts, start=1):
        if not prompt.strip():
            raise ValueError(f"prompt {number} of {len(prompts)} is empty")
        if prompt in prompts[: number - 1]:
            raise ValueError(f"the prompt {prompt!r} is there twice, as {prompts.index(prompt) + 1} and {number}")


def check_templates(templates: Sequence[str]) -> None:
    """Check that each template has one place for the prompt.

    Raises:
        ValueError: one has none, or several.
    """
    for template in templates:
        if template.count(PLACE) != 1:
            raise ValueError(f'the template {template!r} needs one {{}} for the prompt, such as "a photo of a {{}}"')


def fill_templates(prompt: str, templates: Sequence[str]) -> list[str]:
    """Return the prompt in each template; the prompt itself if there is no template."""
    return [template.replace(PLACE, prompt) for template in templates] or [prompt]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a text that is too long for a name
        return False


def _read_file(path: Path) -> tuple[str, ...]:
    try:
        text = read_plain(path, _MAX_BYTES).decode("utf-8-sig")
        content = yaml12.loads(text) if path.suffix.lower() in _LISTS else text.rstrip().splitlines()
    except OSError as error:
        raise RecipeError(f"{path} cannot be read: {error.strerror}", fix=_FORMS) from None
    except ValueError as error:  # not UTF-8, or not YAML, of which JSON is a part
        reason = " ".join(str(error).split())[:200]
        raise RecipeError(f"{path} is not a readable text: {reason}", fix=_FORMS) from None
    if not isinstance(content, list) or not all(isinstance(prompt, str) for prompt in content):
        raise RecipeError(f"{path} is not a list of prompts", fix=_FORMS)
    return tuple(prompt.strip() for prompt in content)
