"""Whether loading a torch.export archive could run code that is in it. What is not known to be harmless is refused.

`torch.export.load` trusts its file (read in torch 2.14). It unpickles weights, constants and example inputs, and
repeats without `weights_only` what failed with it; it loads compiled libraries; it passes symbolic sizes to sympy,
which evaluates them as Python; it looks call targets up anywhere in torch, imports the modules that tree specs
name, and writes node names into the source of the function that runs. So every member is checked before torch sees it.
"""

from __future__ import annotations

import ast
import io
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

PROGRAM = "models/model.json"
_PICKLES = "data/sample_inputs/model.pt"
_CONFIGS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
_MEMBERS = re.compile(
    r"archive_format|archive_version|byteorder|\.format_version|\.storage_alignment|version|\.data/[\w.]+|extra/.*"
    rf"|{re.escape(PROGRAM)}|{re.escape(_PICKLES)}|{'|'.join(map(re.escape, _CONFIGS))}"
    r"|data/weights/weight_\d+|data/constants/tensor_\d+"
)
_LEGACY = re.compile(r"serialized_\w+\.(json|pt)|data/(weights|constants)/[^/]+\.pt")
_RUNS_CODE = re.compile(r"data/aotinductor/.*|data/constants/(custom|opaque)_obj_.*|.*\.(so|py|dll|dylib)")

_IDENTIFIER = re.compile(r"[A-Za-z_]\w*|")
_PLAIN = re.compile(r"[\w.:+\-]*")
"""What any other string in the program may consist of: no bracket, quote or blank, so nothing that could be code."""

_TARGETS = re.compile(
    r"torch\.ops\.aten\.(?!from_file)\w+\.\w+"
    r"|torch\.ops\.higher_order\.(wrap_with_set_grad_enabled|wrap_with_autocast)"
    r"|torch\.sym_(int|float|not|max|min|sum|ite|sqrt)|_operator\.(?!call|methodcaller|attrgetter)\w+"
    r"|math\.(ceil|floor|trunc)"
)
_FREE_TEXT = {"metadata", "stack_trace", "guards_code"}  # kept as text by torch, guards because they are not asked for
_TREES = {"in_spec", "out_spec"}
_TREE_TYPES = re.compile(r"builtins\.(tuple|list|dict)|collections\.OrderedDict|transformers\.modeling_outputs\.\w+")

_SYMBOLIC = {
    "Symbol", "Integer", "Float", "Rational", "Max", "Min", "Add", "Mul", "Pow", "Eq", "Ne", "Lt", "Le", "Gt", "Ge",
    "Not", "And", "Or", "FloorDiv", "ModularIndexing", "Where", "PythonMod", "Mod", "CleanDiv", "CeilToInt",
    "FloorToInt", "CeilDiv", "LShift", "RShift", "PowByNatural", "FloatPow", "FloatTrueDiv", "IntTrueDiv",
    "TruncToFloat", "TruncToInt", "RoundToInt", "RoundDecimal", "ToFloat", "Identity",
    "IsNonOverlappingAndDenseIndicator",
}  # fmt: skip
_SYMBOL = re.compile(r"[a-z]+\d+|true|false|True|False")
_EXPRESSION_NODES = (
    ast.Expression, ast.BinOp, ast.UnaryOp, ast.Compare, ast.BoolOp, ast.operator, ast.unaryop, ast.cmpop, ast.boolop,
    ast.Load, ast.keyword,
)  # fmt: skip


def dangers(members: list[str], read: Callable[[str], bytes]) -> Iterator[str]:
    """Reasons why loading an archive with these members could run what is in it; none for a plain model.

    `members` and `read` come from the reader that torch itself uses, so that both see the same file.
    """
    if len({name.lower() for name in members}) != len(members):  # torch's reader ignores case and takes one of them
        yield "it has two members of one name"
        return
    for name in members:
        if _RUNS_CODE.fullmatch(name):
            yield f"{name} is code"
        elif _LEGACY.fullmatch(name):
            yield f"{name} belongs to an old format that is one pickle"
        elif not _MEMBERS.fullmatch(name):
            yield f"{name} is unknown"
    missing = [name for name in (PROGRAM, _PICKLES, *_CONFIGS) if name not in members]
    if missing:
        yield f"it has no {missing[0]}"
        return
    yield from _bad_pickle(read(_PICKLES))
    for name in _CONFIGS:
        yield from _bad_config(name, json.loads(read(name)))
    yield from _bad_program(json.loads(read(PROGRAM)), key="")


def _bad_pickle(content: bytes) -> Iterator[str]:
    import torch

    if not content:
        return
    try:
        torch.load(io.BytesIO(content), weights_only=True)
    except Exception as error:  # noqa: BLE001 - whatever stops it, torch.export.load would go on without weights_only
        yield f"its example inputs do not load with weights_only=True ({' '.join(str(error).split())[:120]})"


def _bad_config(name: str, config: Any) -> Iterator[str]:
    for entry, payload in config["config"].items():
        if payload.get("use_pickle"):
            yield f"{name} wants {entry!r} unpickled"
        if not re.fullmatch(r"(weight|tensor)_\d+", str(payload.get("path_name"))):
            yield f"{name} reads {entry!r} from {payload.get('path_name')!r}"


def _bad_program(value: Any, *, key: str) -> Iterator[str]:
    """Every string in the program, judged by the key that it stands under."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if not (_PLAIN.fullmatch(name) or (key == "range_constraints" and _is_expression(name))):
                yield f"its program has the key {name[:80]!r}"
            if name not in _FREE_TEXT:
                yield from _bad_program(inner, key=name)
    elif isinstance(value, list):
        for inner in value:
            yield from _bad_program(inner, key=key)
    elif isinstance(value, str) and not _is_safe(value, key):
        yield f"its program says {key} = {value[:80]!r}"


def _is_safe(text: str, key: str) -> bool:
    if key in ("target", "as_operator"):
        return bool(_TARGETS.fullmatch(text))
    if key == "expr_str":
        return _is_expression(text)
    if key in _TREES:
        return _is_tree(text)
    if key in ("name", "as_name", "forward_arg_names"):
        return bool(_IDENTIFIER.fullmatch(text))
    if key in ("as_string", "as_strings"):
        return True  # an argument: it goes to the operator as a value
    return bool(_PLAIN.fullmatch(text))


def _is_expression(text: str) -> bool:
    """Whether sympy, which evaluates `text`, finds only arithmetic on symbols and the functions of symbolic sizes."""
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return all(_is_arithmetic(node) for node in nodes)


def _is_arithmetic(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id in _SYMBOLIC
    if isinstance(node, ast.Name):
        return node.id in _SYMBOLIC or bool(_SYMBOL.fullmatch(node.id))
    if isinstance(node, ast.Constant):
        return isinstance(node.value, (bool, int, float)) or bool(re.fullmatch(r"[a-z]+\d+", str(node.value)))
    return isinstance(node, _EXPRESSION_NODES)


def _is_tree(text: str) -> bool:
    """Whether a serialised pytree is made of plain containers: others import a module that the file names."""
    try:
        protocol, root = json.loads(text)
        return protocol == 1 and _is_plain_node(root)
    except (ValueError, TypeError, KeyError, RecursionError):
        return False


def _is_plain_node(node: Any) -> bool:
    context = json.loads(node["context"]) if node["context"] is not None else None
    keys = context if isinstance(context, list) else []
    return (
        (node["type"] is None or bool(_TREE_TYPES.fullmatch(node["type"])))
        and (context is None or isinstance(context, list))
        and all(isinstance(key, str) and _IDENTIFIER.fullmatch(key) for key in keys)
        and all(_is_plain_node(child) for child in node["children_spec"])
    )
