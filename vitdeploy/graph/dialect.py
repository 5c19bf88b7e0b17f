"""The dialect of a target: the form of graph that it compiles best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class FusedAttention:
    """The head sizes that a compiler's fused attention kernel takes.

    The kernel needs one head size for q, k and v, and more than one score matrix.

    Attributes:
        smallest: the smallest head size.
        largest: the largest head size.
        multiple: the step between head sizes.
    """

    smallest: int
    largest: int
    multiple: int

    def padded_size(self, sizes: Sequence[int | None]) -> int | None:
        """Return the head size to which q, k and v of these `sizes` can be padded.

        Return None if they are too large, or if one of them is unknown.
        """
        known = [size for size in sizes if size is not None]
        size = max(self.smallest, -(-max(known, default=0) // self.multiple) * self.multiple)
        return size if len(known) == len(sizes) and size <= self.largest else None

    def describe(self) -> str:
        """Return the head sizes in words."""
        return f"{self.smallest} to {self.largest} in steps of {self.multiple}"


@dataclass(frozen=True)
class Int8AttentionKernel:
    """The attentions for which a compiler has a fused INT8 kernel.

    Attributes:
        head_sizes: the head sizes with a kernel; empty for any.
        tokens: the largest number of queries or keys; None for any.
        values_alone: whether the probabilities and v can be INT8 alone, with q and k in float. Such a kernel takes any
            number of queries, and a result that is read in float. False: q, k, v and the probabilities, or none.
        unsigned_probabilities: whether the probabilities are uint8, which has twice as many codes for them.
    """

    head_sizes: tuple[int, ...] = ()
    tokens: int | None = None
    values_alone: bool = False
    unsigned_probabilities: bool = False


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
    """The form of graph that a compiler gets.

    Attributes:
        opset: the ai.onnx opset of the target-ready graph.
        attention: "primitives" (Mul, Transpose, MatMul, Add, Softmax, MatMul) or "multihead"
            (com.microsoft.MultiHeadAttention).
        int8_linears: "qdq" (Q/DQ pairs around MatMul, which the compiler fuses) or "integer" (QuantizeLinear and
            com.microsoft.MatMulIntegerToFloat as explicit nodes).
        packed_qkv: whether one linear for q, k and v stays one. False for TensorRT and ONNX Runtime. TensorRT splits
            the weights of such a linear, which breaks the Q/DQ pairs, and all three parts then multiply in FP16. ONNX
            Runtime would copy each part out of the packed result.
        activation_codes: the integer type of quantized activations.
        int8_weight_group: how many input channels share a scale where only the weight is INT8. None: one scale for
            each output channel.
        least_pointwise: the least K · N / (K + N) of a 1×1 convolution from K to N channels that INT8 makes faster.
            None: any.
        half_around: whether everything that is not quantized is float16.
        fused_attention: the head sizes to which attention is padded for a fused kernel. None: no padding is needed.
        int8_attention: the attentions that stay fused in INT8. None: there are none.
        partial_int8_attention: whether attention stays one kernel, in INT8 or not, with Q/DQ pairs on any of its
            operands.
        splits_joined_codes: whether the compiler moves the Q/DQ pair of values that a Concat joins before the Concat,
            and then refuses the product behind it.
        overwrites_queries: whether the compiler writes the result of an attention over queries that it still has to
            read, where it moves one of both and there are as many heads as queries.
        norms_of_lists: whether the compiler has one kernel for a LayerNorm of three axes, and several for one of more.
        scales_norms_apart: whether the compiler applies the scale and bias of a LayerNorm in a kernel of their own.
        int8_sums_saturate: whether sums of u8 x s8 products can saturate where the graph runs, so that weights take 7
            bits.
        lacks: ONNX operators that the compiler does not know, each with what writes it in PyTorch.
    """

    opset: int
    attention: Literal["primitives", "multihead"]
    int8_linears: Literal["qdq", "integer"] = "qdq"
    packed_qkv: bool = True
    activation_codes: Literal["uint8", "int8"] = "uint8"
    int8_weight_group: int | None = None
    least_pointwise: int | None = None
    half_around: bool = False
    fused_attention: FusedAttention | None = None
    int8_attention: Int8AttentionKernel | None = None
    partial_int8_attention: bool = False
    splits_joined_codes: bool = False
    overwrites_queries: bool = False
    norms_of_lists: bool = False
    scales_norms_apart: bool = False
    int8_sums_saturate: bool = False
    lacks: Mapping[str, str] = field(default_factory=dict, hash=False)


CANONICAL_OPSET = 23
"""The opset of the raised graph: the first one with `Attention`."""

CONTRIB = "com.microsoft"
"""The domain of ONNX Runtime's own operators."""
