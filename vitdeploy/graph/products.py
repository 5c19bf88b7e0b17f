"""Products with constant weights: linears, and the other ones with their multiply-accumulates."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator

import onnx_ir as ir

from vitdeploy.graph.model import Graph, constant, dims, only_consumer, producer
from vitdeploy.graph.structure import Product

CONVOLUTIONS = ("Conv", "ConvInteger", "QLinearConv")
_WEIGHT_INPUT = {
    "Conv": 1, "ConvInteger": 1, "Gemm": 1, "MatMul": 1, "MatMulInteger": 1, "QLinearConv": 3, "QLinearMatMul": 3,
}  # fmt: skip
"""The place of the weight among the inputs of a linear; the last ones are those of quantized files."""


def weight_of(node: ir.Node) -> tuple[int, ...] | None:
    """Return the shape of a linear's constant weight, or None if `node` is not a linear."""
    place = _WEIGHT_INPUT.get(node.op_type)
    if node.domain != "" or place is None or len(node.inputs) <= place:
        return None
    tensor = constant_behind(node.inputs[place])
    if tensor is None:
        return None
    shape = tuple(tensor.numpy().shape)
    if node.op_type in CONVOLUTIONS:
        return shape if _is_patch_embedding(node, shape) else None
    return shape if len(shape) == 2 else None


def constant_behind(value: ir.Value | None) -> ir.TensorProtocol | None:
    """Return the constant behind a value, or behind the DequantizeLinear that makes a weight of its codes; or None."""
    dequantize = producer(value, "DequantizeLinear")
    return constant(value) if dequantize is None else constant(dequantize.inputs[0])


def _is_patch_embedding(node: ir.Node, weight: tuple[int, ...]) -> bool:
    """Return whether a convolution is a linear over patches: its stride is its kernel size."""
    strides = tuple(node.attributes.get_ints("strides", ()))
    return bool(strides) and strides == weight[2:] and max(strides) > 1


def list_products(graph: Graph, batch: int | None) -> Iterator[Product]:
    """Yield the products with a constant weight that are no linears. `batch` is the number of images in the shapes."""
    for node in graph.nodes:
        weight = None if weight_of(node) is not None else _find_weight(node)
        if weight is None:
            continue
        yield Product(
            name=product_name(node),
            nodes=(node.name or "",),
            operator=node.op_type,
            weights=math.prod(dim for dim in dims(weight) or () if dim is not None),
            macs=_count_macs(node, weight, batch),
            initializer=weight.name or "",
            bias=bias_add_name(node),
        )


def _find_weight(node: ir.Node) -> ir.Value | None:
    if node.domain != "" or node.op_type not in ("Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul"):
        return None
    constants = [value for value in node.inputs[:2] if value is not None and constant(value) is not None]
    return constants[0] if len(constants) == 1 and len(constants[0].shape or ()) > 1 else None


def _count_macs(node: ir.Node, weight: ir.Value, batch: int | None) -> int | None:
    """Count the multiply-accumulates of a product for one image: results × numbers that each is a sum of."""
    result, data, sizes = dims(node.outputs[0]), dims(node.inputs[0]), dims(weight)
    if result is None or data is None or sizes is None or batch is None or None in (*result, *sizes):
        return None
    if node.op_type == "ConvTranspose":  # each number of the input is multiplied by all numbers of its filters
        total = _multiply(data) * _multiply(sizes[1:])
    elif node.op_type == "Conv":
        total = _multiply(result) * _multiply(sizes[1:])
    elif node.op_type == "Einsum":
        letters = node.attributes.get_string("equation", "").replace(" ", "").partition("->")[0].split(",")
        shapes = [dims(value) for value in node.inputs]
        if len(letters) != len(shapes) or any(
            s is None or len(s) != len(n) for s, n in zip(shapes, letters, strict=True)
        ):
            return None
        by_letter = {a: d for s, n in zip(shapes, letters, strict=True) for a, d in zip(n, s or (), strict=True)}
        total = _multiply(by_letter.values())
    else:
        is_left = weight is node.inputs[0]
        turned = bool(node.attributes.get_int("transA" if is_left else "transB", 0))
        total = _multiply(result) * (sizes[-1 if is_left != turned else -2] or 1)
    return total // batch if total % batch == 0 else None


def _multiply(sizes: Iterable[int | None]) -> int:
    return math.prod(size or 1 for size in sizes)


def bias_add_name(node: ir.Node) -> str:
    """Return the name of the Add of a constant bias behind a product; empty if there is none."""
    add = only_consumer(node.outputs[0], "Add")
    if add is None or all(constant(v) is None for v in add.inputs):
        return ""
    return add.name or ""


def product_name(node: ir.Node) -> str:
    """Return the name of a product: that of its node without the operator."""
    name = node.name or ""
    return re.sub(r"/(MatMul|Gemm|Conv)$", "", name)
