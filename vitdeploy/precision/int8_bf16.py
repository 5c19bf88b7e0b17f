"""INT8 linears in a graph that otherwise computes in bfloat16."""

from __future__ import annotations

from typing import ClassVar

from vitdeploy.graph.dialect import Numbers
from vitdeploy.precision.int8 import Int8


class Int8BFloat16(Int8):
    """The Q/DQ pairs of int8; the engine computes what is not quantized in bfloat16."""

    numbers: ClassVar[Numbers] = Numbers("int8-bf16", weights="int8", products="int8", rest="bf16")
    targets: ClassVar[tuple[str, ...]] = ("openvino",)
