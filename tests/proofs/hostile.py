"""Names that somebody chose to lead a terminal, a CI system or a Markdown page, and what must not come of them."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel

from vitdeploy.escaping import is_shown

NAMES = (
    "\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "\x1b]8;;http://evil.example\x07link\x1b]8;;\x07", "\x9b31mred", "\x90q",
    "\x00", "\x08\x08back", "\rover", "tab\tbed", "\x7f", "\x85next",
    "safe\u202egnp.exe", "\u2066isolate\u2069", "zero\u200bwidth", "\ufefforder", "soft\u00adhyphen",
    "\u2028line", "\u2029",
    "tag\U000e0041", "half\udc80", "\ud83d",
    "two\nlines", "\n::error title=x::pwned", "::set-output name=verdict::pass", "  ::add-mask::secret",
    "\r\n::stop-commands::x",
    "##[error]pwned", "##[add-mask]x", "%0A::error::x", "\n##vso[task.setvariable variable=x]y",
    "[bold]loud[/bold]", "[link=http://evil.example]here[/link]", "[/]", "[red", ":warning:",
    "a | b |", "`code`", "```", "<img src=x onerror=alert(1)>", "<!-- -->", "&lt;b&gt;", "[text](http://evil.example)",
    "![image](http://evil.example)", "*bold*", "__bold__", "~~gone~~", "$x$", "# heading", "- item", "> quote", "\\",
    "https://evil.example", "www.evil.example", "@everyone", "#1", "| --- |\n| x |", "</script>", "]]>",
    "--help", "-o", "a b", "*", "$(touch pwned)", "`touch pwned`", "; touch pwned", "'\"",
)  # fmt: skip

ValueT = TypeVar("ValueT")


def find_harm(text: str) -> list[str]:
    """Return what a terminal or GitHub's runner would act on in an output."""
    unseen = {character for character in text if character != "\n" and not is_shown(character)}
    commands = [line for line in text.split("\n") if line.lstrip().startswith("::") or "##[" in line]
    return [*map(ascii, sorted(unseen)), *map(ascii, commands)]


def poison(value: ValueT, name: str) -> ValueT:
    """Return evidence in which `name` follows every text that is not one of a fixed few."""
    return _poison(value, name)  # type: ignore[no-any-return]


def _poison(value: Any, name: str) -> Any:
    if isinstance(value, str):
        return value + name
    if isinstance(value, BaseModel):
        changed = {
            field: _poison(getattr(value, field), name)
            for field, facts in type(value).model_fields.items()
            if "Literal" not in str(facts.annotation) and field not in ("task", "unit", "verdict", "status", "method")
        }
        return value.model_copy(update=changed)
    if isinstance(value, dict):
        return {key + name if isinstance(key, str) else key: _poison(item, name) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_poison(item, name) for item in value)
    return value
