"""The recipe reference, read from the schema that parses recipes, and from the options of targets and tasks."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from vitdeploy import targets, tasks
from vitdeploy.plugins import names, names_in
from vitdeploy.recipe import Batch, Recipe, SizeRange, TargetSpec
from website.tables import as_code, make_table

DOCS = Path(__file__).parents[1] / "docs"
_HEAD = ("key", "type", "default", "allowed", "meaning")
_PLURALS = {"whole number": "whole numbers", "number": "numbers", "text": "texts"}
_PLUG_INS = {"target.kind": "targets", "task.kind": "tasks", "precision.kind": "precision"}
"""Keys whose values are names of files."""
_BOUNDS = {annotated_types.Ge: ("ge", "≥"), annotated_types.Gt: ("gt", ">"), annotated_types.Le: ("le", "≤"),
           annotated_types.Lt: ("lt", "<")}  # fmt: skip


def write_page() -> str:
    """Return the page: every section with its keys, then the options of each target and task."""
    meanings = {**read_options("recipes.md"), **read_options("tasks.md"), **read_keys()}
    lines = [
        "# Recipe reference",
        "",
        "Made from the schema itself when this site is built. The [guide](recipes.md) has a whole recipe and how-tos.",
        "A key without a default is required.",
        "",
    ]
    for section, field in Recipe.model_fields.items():
        kind = _model_of(field.annotation)
        required = " Required." if field.is_required() else ""
        lines += [f"## {section}", "", f"{_first_paragraph(kind)}{required}", ""]
        lines += _list_keys(section, kind, kind.model_fields, meanings)
    for name in targets.names():
        target = targets.kind_of(name)
        shared = _shared_keys(targets.find(TargetSpec(kind=name)))
        own = {key: field for key, field in target.model_fields.items() if key not in shared}
        lines += [f"## target: {name}", "", f"{_first_paragraph(target)} Keys besides those of [target](#target):", ""]
        lines += _list_keys("target", target, own, meanings, name)
    for name in names(tasks):
        task = tasks.kind_of(name)
        if task is not None and task.model_fields:
            lines += [f"## task: {name}", "", f"{_first_paragraph(task)} Keys besides [task](#task):", ""]
            lines += _list_keys("task", task, task.model_fields, meanings, name)
    return "\n".join(lines)


def _shared_keys(target: targets.Target) -> tuple[str, ...]:
    """Return the fields that are keys of every target, or that this one has no use for."""
    return ("device", "threads") if target.runs_on == "cuda" else ("device",)


def read_keys() -> dict[str, tuple[str, str]]:
    """Return what the guide says about keys without a docstring: key -> (default, meaning)."""
    rows = _read_rows("recipes.md")
    keys = {key: cells for cells in rows for key in re.findall(r"`([a-z]+\.[a-z_]+)`", cells[0])}
    return {key: (cells[1] if len(cells) > 2 else "", cells[-1]) for key, cells in keys.items()}


def read_options(page: str) -> dict[str, tuple[str, str]]:
    """Return the same about the options of targets or tasks: `openvino.hint` -> (default, meaning)."""
    return {
        f"{owner}.{option}": (cells[2], cells[3])
        for cells in _read_rows(page)
        if len(cells) == 4
        for owner in re.findall(r"`([a-z-]+)`", cells[0])
        for option in re.findall(r"`([a-z_]+)`", cells[1])
    }


def _read_rows(page: str) -> list[list[str]]:
    """Return the cells of the rows that begin with code."""
    lines = (DOCS / page).read_text(encoding="utf-8").splitlines()
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines if line.startswith("| `")]


def _list_keys(
    section: str,
    kind: type[BaseModel],
    fields: Mapping[str, FieldInfo],
    guide: Mapping[str, tuple[str, str]],
    owner: str = "",
) -> list[str]:
    documented = _read_attributes(kind)
    rows = []
    for name, field in fields.items():
        key = f"{section}.{name}"
        default, meaning = guide.get(f"{owner}.{name}", guide.get(key, ("", "")))
        written, allowed = describe_type(field.annotation, field.metadata)
        if key in _PLUG_INS:
            allowed = ", ".join(
                map(as_code, [*names_in(_PLUG_INS[key]), *(["auto"] if section == "precision" else [])])
            )
        rows.append((as_code(key), written, _default_of(field, default), allowed, documented.get(name) or meaning))
    return make_table(_HEAD, rows)


def describe_type(annotation: Any, metadata: Iterable[Any] = ()) -> tuple[str, str]:
    """Return the type of a value for people, and the values that it allows."""
    bounds = ", ".join(f"{sign} {getattr(m, name):g}" for m in metadata for kind, (name, sign) in _BOUNDS.items()
                       if isinstance(m, kind))  # fmt: skip
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        inner = [m for a in arguments[1:] for m in getattr(a, "metadata", [a])]
        return describe_type(arguments[0], [*inner, *metadata])
    if origin in (Union, UnionType):
        parts = [describe_type(a, metadata) for a in arguments if a is not NoneType]
        return " or ".join(p for p, _ in parts), "; ".join(dict.fromkeys(a for _, a in parts if a))
    if origin is Literal:
        return "a choice", ", ".join(as_code(value) for value in arguments)
    if origin is tuple:
        item, allowed = describe_type(arguments[0])
        return f"list of {'' if ... in arguments else f'{len(arguments)} '}{_PLURALS.get(item, item)}", allowed
    if annotation is Batch:
        return "a number or a text", "`N`, `MIN:OPT:MAX`"
    if annotation is SizeRange:
        return "a text", "`HxW`, `MIN:OPT:MAX`"
    words = {str: "text", bool: "true or false", int: "whole number", float: "number"}
    return words.get(annotation, "mapping" if origin else getattr(annotation, "__name__", str(annotation))), bounds


def _default_of(field: FieldInfo, explained: str) -> str:
    """Return the default; for `null` what the guide says that it stands for."""
    if field.is_required():
        return ""
    value = field.default
    if value is None and explained and explained != "–":
        return f"`null`: {explained}"
    if isinstance(value, tuple):
        return as_code(list(value))
    return as_code({None: "null", True: "true", False: "false"}.get(value, value) if _is_plain(value) else value)


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, bool)


def _model_of(annotation: Any) -> type[BaseModel]:
    candidates = (annotation, *get_args(annotation))
    return next(k for k in candidates if isinstance(k, type) and issubclass(k, BaseModel))


def _first_paragraph(kind: type) -> str:
    return " ".join((inspect.getdoc(kind) or "").partition("\n\n")[0].split())


def _read_attributes(kind: type) -> dict[str, str]:
    """Read what the docstrings of a class and of its bases say about its attributes."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__[:-1]):
        if base.__module__.startswith("vitdeploy."):
            found |= _read_attributes_section(inspect.cleandoc(base.__doc__ or "")) | _read_strings_below(base)
    return found


def _read_attributes_section(docstring: str) -> dict[str, str]:
    section = docstring.partition("Attributes:\n")[2].partition("\n\n")[0]
    entries = re.findall(r"^    (\w[\w, ]*): (.*(?:\n {8}.*)*)", section, re.MULTILINE)
    return {name: _as_sentence(text) for keys, text in entries for name in keys.split(", ")}


def _read_strings_below(kind: type) -> dict[str, str]:
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    body = getattr(tree, "body", [])
    found = {}
    for statement, below in pairwise(body):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            text = below.value.value if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) else None
            if isinstance(text, str):
                found[statement.target.id] = _as_sentence(text)
    return found


def _as_sentence(text: str) -> str:
    text = " ".join(text.split())
    text = re.sub(r"\bNone\b", "`null`", text)
    return text[:1].upper() + text[1:]
