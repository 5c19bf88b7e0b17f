"""What a target compiles best, as a value: the passes lower to it, quantization stays inside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Dialect:
    """The form of graph that a compiler is fed.

    Attributes:
        opset: the ai.onnx opset of the target-ready graph.
        attention: "primitives" (Mul, Transpose, MatMul, Add, Softmax, MatMul) or "multihead"
            (com.microsoft.MultiHeadAttention).
        int8_linears: "qdq" (Q/DQ pairs around MatMul, which the compiler fuses) or "integer"
            (QuantizeLinear and com.microsoft.MatMulIntegerToFloat, written out).
    """

    opset: int
    attention: Literal["primitives", "multihead"]
    int8_linears: Literal["qdq", "integer"] = "qdq"


CANONICAL_OPSET = 23
"""The opset of the raised graph: the first with `Attention`."""

CONTRIB = "com.microsoft"
"""The domain of ONNX Runtime's own operators."""
