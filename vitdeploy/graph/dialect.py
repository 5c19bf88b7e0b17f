"""What a target compiles best, as a value: the passes lower to it, quantization stays inside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class FusedAttention:
    """What a compiler's fused attention kernel takes: one head size for q, k and v, and more than one score matrix.

    Attributes:
        smallest: head size.
        largest: head size.
        multiple: of which the head size is one.
    """

    smallest: int
    largest: int
    multiple: int

    def fitted(self, sizes: Sequence[int | None]) -> int | None:
        """The head size that q, k and v of `sizes` can be padded to; None when there is none, or one is unknown."""
        known = [size for size in sizes if size is not None]
        size = max(self.smallest, -(-max(known, default=0) // self.multiple) * self.multiple)
        return size if len(known) == len(sizes) and size <= self.largest else None

    @property
    def told(self) -> str:
        """The head sizes, in words."""
        return f"{self.smallest} to {self.largest} in steps of {self.multiple}"


@dataclass(frozen=True)
class Int8Attention:
    """Where a compiler's fused attention kernel takes q, k, v and the probabilities in INT8, all four or none.

    Attributes:
        head_sizes: that have a kernel.
        tokens: the most queries or keys.
    """

    head_sizes: tuple[int, ...]
    tokens: int


@dataclass(frozen=True)
class Numbers:
    """The types of numbers that a precision stores and computes in.

    Attributes:
        precision: its name, such as "int8-bf16".
        weights: the type in which the weights of its linears are stored: "int8", "int4", "fp8" or a float type.
        products: the type in which its linears multiply.
        rest: the type in which everything else computes; "fp32" stands for the target's own float type.
        dynamic: whether the engine takes the ranges of activations anew for each image.
    """

    precision: str
    weights: str = "fp32"
    products: str = "fp32"
    rest: str = "fp32"
    dynamic: bool = False

    @property
    def has_pairs(self) -> bool:
        """Return whether the graph has Q/DQ pairs on activations."""
        return self.products in ("int8", "fp8") and not self.dynamic

    @property
    def types(self) -> frozenset[str]:
        """Every type that something is computed in."""
        return frozenset({self.products, self.rest})


FLOAT32 = Numbers("fp32")


@dataclass(frozen=True)
class Dialect:
    """The form of graph that a compiler is fed.

    Attributes:
        opset: the ai.onnx opset of the target-ready graph.
        attention: "primitives" (Mul, Transpose, MatMul, Add, Softmax, MatMul) or "multihead"
            (com.microsoft.MultiHeadAttention).
        int8_linears: "qdq" (Q/DQ pairs around MatMul, which the compiler fuses) or "integer"
            (QuantizeLinear and com.microsoft.MatMulIntegerToFloat, written out).
        packed_qkv: whether one linear for q, k and v stays one. Not for TensorRT, which takes its result apart inside
            the weights, where that breaks the Q/DQ pairs: the three then multiply in FP16. Not for ONNX Runtime, which
            would copy each part out of the packed result.
        activation_codes: of quantized activations.
        int8_weight_group: inputs that share a scale where only the weight is INT8; None: one for each output channel.
        half_around: whether everything that is not quantized is float16.
        fused_attention: what attention is padded to, where a fused kernel is particular; None where it is not.
        int8_attention: where attention may be INT8 and stays fused; None where it never does.
    """

    opset: int
    attention: Literal["primitives", "multihead"]
    int8_linears: Literal["qdq", "integer"] = "qdq"
    packed_qkv: bool = True
    activation_codes: Literal["uint8", "int8"] = "uint8"
    int8_weight_group: int | None = None
    half_around: bool = False
    fused_attention: FusedAttention | None = None
    int8_attention: Int8Attention | None = None


CANONICAL_OPSET = 23
"""The opset of the raised graph: the first with `Attention`."""

CONTRIB = "com.microsoft"
"""The domain of ONNX Runtime's own operators."""
