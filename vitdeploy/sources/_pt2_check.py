"""Find reasons why loading a torch.export archive could run code in it. Everything not known as harmless is a reason.

`torch.export.load` trusts its file (seen in the source of torch 2.14):

- It unpickles weights, constants and example inputs. What fails with `weights_only`, it loads again without it.
- It loads compiled libraries.
- It passes symbolic sizes to sympy, which evaluates them as Python.
- It looks call targets up anywhere in torch, and imports the modules that tree specs name.
- It writes node names into the source of the function that runs.

So every member is checked before torch reads it.
"""

from __future__ import annotations

import ast
import io
import json
import math
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
"""The characters of any other string in the program: without brackets, quotes and blanks nothing can be code."""

_TARGETS = re.compile(
    r"torch\.ops\.aten\.(?!from_file)\w+\.\w+"
    r"|torch\.ops\.higher_order\.(wrap_with_set_grad_enabled|wrap_with_autocast)"
    r"|torch\.sym_(int|float|not|max|min|sum|ite|sqrt)|_operator\.(?!call|methodcaller|attrgetter)\w+"
    r"|math\.(ceil|floor|trunc)"
)
_FREE_TEXT = {"metadata", "stack_trace", "guards_code"}  # torch keeps these as text; guards, because we disable them
_TREES = {"in_spec", "out_spec"}
_TREE_TYPES = re.compile(r"builtins\.(tuple|list|dict)|collections\.OrderedDict|transformers\.modeling_outputs\.\w+")

_SYMBOLIC = {
    "Symbol", "Integer", "Float", "Rational", "Max", "Min", "Add", "Mul", "Pow", "Eq", "Ne", "Lt", "Le", "Gt", "Ge",
    "Not", "And", "Or", "FloorDiv", "ModularIndexing", "Where", "PythonMod", "Mod", "CleanDiv", "CeilToInt",
    "FloorToInt", "CeilDiv", "LShift", "RShift", "PowByNatural", "FloatPow", "FloatTrueDiv", "IntTrueDiv",
    "TruncToFloat", "TruncToInt", "RoundToInt", "RoundDecimal", "ToFloat", "Identity",
    "IsNonOverlappingAndDenseIndicator",
}  # fmt: skip
_POWERS = {"Pow", "PowByNatural", "FloatPow", "LShift"}
_MAX_POWERS, _MAX_EXPONENT = 2, 64  # in one size
_SYMBOL = re.compile(r"[a-z]+\d+|true|false|True|False")
_EXPRESSION_NODES = (
    ast.Expression, ast.BinOp, ast.UnaryOp, ast.Compare, ast.BoolOp, ast.operator, ast.unaryop, ast.cmpop, ast.boolop,
    ast.Load, ast.keyword,
)  # fmt: skip


_ITEM_BYTES = {
    1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 2, 7: 4, 8: 8, 9: 4, 10: 8, 11: 16, 12: 1, 13: 2, 28: 2, 29: 1, 30: 1, 31: 1,
    32: 1, 33: 1, 34: 4, 35: 8,
}  # fmt: skip
"""Bytes of an element, by torch._export.serde.schema.ScalarType."""
_MAX_REPEATED = 1 << 20  # elements of a tensor whose strides of 0 repeat its values


def find_dangers(members: list[str], read: Callable[[str], bytes]) -> Iterator[str]:
    """Yield reasons why loading an archive with these members could run code in it; none for a plain model.

    `members` and `read` come from the reader that torch itself uses, so that both see the same file.
    """
    if len({name.lower() for name in members}) != len(members):  # torch's reader ignores case, and takes one of them
        yield "it has two members of the same name"
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
    yield from _check_pickle(read(_PICKLES))
    for name in _CONFIGS:
        yield from _check_config(name, json.loads(read(name)))
    yield from _check_program(json.loads(read(PROGRAM)), key="")


def find_wrong_sizes(read: Callable[[str], bytes], size: Callable[[str], int]) -> Iterator[str]:
    """Yield the tensors whose bytes are not as many as their shape says. Torch reads a file of 0 bytes as zeros.

    Args:
        read: reads a member.
        size: returns the bytes of a member.
    """
    for name in _CONFIGS:
        folder = name.rpartition("/")[0]
        for entry, payload in json.loads(read(name))["config"].items():
            meta, stored = payload["tensor_meta"], size(f"{folder}/{payload['path_name']}")
            sizes, strides, (offset,) = (_integers(values) for values in _layout(meta))
            last = sum((side - 1) * stride for side, stride in zip(sizes, strides, strict=True))
            needed = (offset + 1 + last) * _ITEM_BYTES[meta["dtype"]] if 0 not in sizes else 0
            elements = math.prod(sizes)
            if needed > stored:
                yield f"{entry!r} needs {needed:,} bytes, and its file has {stored:,}"
            elif elements * _ITEM_BYTES[meta["dtype"]] > stored and elements > _MAX_REPEATED:
                yield f"{entry!r} has {elements:,} elements in {stored:,} bytes"


def _layout(meta: Any) -> tuple[list[Any], list[Any], list[Any]]:
    return meta["sizes"], meta["strides"], [meta["storage_offset"]]


def _integers(values: list[Any]) -> list[int]:
    """Return the sizes of a stored tensor.

    Raises:
        ValueError: one is not a number from 0 up.
    """
    numbers = [value.get("as_int") for value in values]
    if not all(isinstance(number, int) and number >= 0 for number in numbers):
        raise ValueError("a stored tensor has no fixed size")
    return numbers


def _check_pickle(content: bytes) -> Iterator[str]:
    import torch

    if not content:
        return
    try:
        torch.load(io.BytesIO(content), weights_only=True)
    except Exception as error:  # noqa: BLE001  after any error torch.export.load goes on without weights_only
        yield f"its example inputs do not load with weights_only=True ({' '.join(str(error).split())[:120]})"


def _check_config(name: str, config: Any) -> Iterator[str]:
    for entry, payload in config["config"].items():
        if payload.get("use_pickle"):
            yield f"{name} asks to unpickle {entry!r}"
        if not re.fullmatch(r"(weight|tensor)_\d+", str(payload.get("path_name"))):
            yield f"{name} reads {entry!r} from {payload.get('path_name')!r}"


def _check_program(value: Any, *, key: str) -> Iterator[str]:
    """Check every string in the program by the rule for its key."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if not (_PLAIN.fullmatch(name) or (key == "range_constraints" and _is_expression(name))):
                yield f"its program has the key {name[:80]!r}"
            if name not in _FREE_TEXT:
                yield from _check_program(inner, key=name)
    elif isinstance(value, list):
        for inner in value:
            yield from _check_program(inner, key=key)
    elif isinstance(value, str) and not _is_safe(value, key):
        yield f"its program has {key} = {value[:80]!r}"


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
        return True  # an argument that the operator gets as a value
    return bool(_PLAIN.fullmatch(text))


def _is_expression(text: str) -> bool:
    """Return True if `text`, which sympy evaluates, has only arithmetic on symbols and functions of symbolic sizes."""
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    powers = [node for node in nodes if _is_power(node)]
    return all(map(_is_arithmetic, nodes)) and len(powers) <= _MAX_POWERS and all(map(_is_small_power, powers))


def _is_power(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id in _POWERS
    return isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Pow, ast.LShift))


def _is_small_power(node: ast.AST) -> bool:
    """Return True if the exponent is a small number: `9**9**9` has more digits than fit into memory."""
    exponent = node.right if isinstance(node, ast.BinOp) else (getattr(node, "args", None) or [None])[-1]
    return isinstance(exponent, ast.Constant) and isinstance(exponent.value, int) and exponent.value <= _MAX_EXPONENT


def _is_arithmetic(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id in _SYMBOLIC
    if isinstance(node, ast.Name):
        return node.id in _SYMBOLIC or bool(_SYMBOL.fullmatch(node.id))
    if isinstance(node, ast.Constant):
        return isinstance(node.value, (bool, int, float)) or bool(re.fullmatch(r"[a-z]+\d+", str(node.value)))
    return isinstance(node, _EXPRESSION_NODES)


def _is_tree(text: str) -> bool:
    """Return True if a serialised pytree has only plain containers. Others import a module that the file names."""
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
