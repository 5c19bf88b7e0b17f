"""The work of a model for one image: its operations and bytes, from its structure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from vitdeploy.graph.macs import count_attention_products, count_rows
from vitdeploy.graph.structure import Structure

_WEIGHT_BYTES = {"int4": 0.5, "int8": 1.0, "fp8": 1.0, "fp16": 2.0, "bf16": 2.0}
_FLOAT_BYTES = 4.0


@dataclass(frozen=True)
class Work:
    """The work of a model for one image.

    Attributes:
        operations: precision -> operations of all products; a multiply-add is two.
        weight_bytes: bytes of the weights as stored.
        activation_bytes: bytes in and out of all products, in float32.
        unknown: linears and attention sites whose sizes are not known before run time. Their work is not counted.
    """

    operations: Mapping[str, float]
    weight_bytes: float
    activation_bytes: float
    unknown: tuple[str, ...] = ()

    @property
    def total(self) -> float:
        """The operations of all precisions."""
        return sum(self.operations.values())


def count_work(
    structure: Structure,
    precisions: Mapping[str, str],
    stored: Mapping[str, str] | None = None,
    attention: tuple[str, str] = ("fp32", "fp32"),
) -> Work:
    """Count the products of one image: linears and attention in their own precision.

    Norms, softmax and activations are about 1 % of the arithmetic. They are left out, so the result is a lower bound.

    Args:
        structure: attention sites and linears, with their sizes.
        precisions: linear -> precision that it multiplies in, from the audit; float32 for those not named.
        stored: linear -> type of its weights in memory, if the kernel unpacks them.
        attention: the precisions in which queries meet keys, and probabilities meet values.
    """
    operations: defaultdict[str, float] = defaultdict(float)
    weights = activations = 0.0
    unknown = []
    for linear in structure.linears:
        precision = precisions.get(linear.name, "fp32")
        k, n = linear.size or (0, 0)
        weights += k * n * _WEIGHT_BYTES.get((stored or {}).get(linear.name, precision), _FLOAT_BYTES)
        rows = count_rows(linear, structure)
        if rows is None or not k:
            unknown.append(linear.name)
            continue
        operations[precision] += 2.0 * rows * k * n
        activations += rows * (k + n) * _FLOAT_BYTES
    for site in structure.attention:
        products = count_attention_products(site)
        if products is None:
            unknown.append(site.name)
            continue
        for precision, macs in zip(attention, products, strict=True):
            operations[precision] += 2.0 * macs
    return Work(dict(operations), weights, activations, tuple(unknown))


def count_float32_work(structure: Structure) -> Work:
    """Count the work of the FP32 reference, which has no quantized linear."""
    return count_work(structure, {})
