"""The attention kernels of ONNX Runtime's CUDA provider.

Behind one MultiHeadAttention node it chooses among several kernels at run time, by type, head size, number of tokens
and bias (contrib_ops/cuda/bert/multihead_attention.cc). With the environment variable below it prints its choice, a
line for each node and run (attention_kernel_options.cc):

    Operator=MultiHeadAttention Node=/blocks.0/attn/core DataType=fp16 SdpaKernel=FLASH_ATTENTION

`MATH` is the one that is not fused: a product, a softmax and a product, with the scores in the GPU's memory. The
default takes it in float32 below 256 tokens, and for a bias if the number of tokens is no multiple of 8 (float16) or
16 (float32).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from vitdeploy.targets._onnxruntime.captured import Captured, captured

_SWITCH = "ORT_ENABLE_ATTENTION_KERNEL_DEBUG_INFO"
UNFUSED = "MATH"
WORDS: Mapping[str, str] = {
    "FLASH_ATTENTION": "flash attention",
    "LEAN_ATTENTION": "lean attention",
    "EFFICIENT_ATTENTION": "memory-efficient attention",
    "CUDNN_FLASH_ATTENTION": "cuDNN flash attention",
    "TRT_FUSED_ATTENTION": "TensorRT fused attention",
    "TRT_FLASH_ATTENTION": "TensorRT flash attention",
    "TRT_CROSS_ATTENTION": "TensorRT cross attention",
    "TRT_CAUSAL_ATTENTION": "TensorRT causal attention",
    "FT_CAUSAL_ATTENTION": "FasterTransformer causal attention",
}
_LINE = re.compile(r"Operator=\S+ Node=(?P<node>.*?) DataType=\S+ SdpaKernel=(?P<kernel>[A-Z0-9_]+)")


@contextmanager
def printed_choices(folder: Path) -> Iterator[Captured]:
    """Let the CUDA provider print the attention kernels of sessions that are opened and run in this block."""
    before = os.environ.get(_SWITCH)
    os.environ[_SWITCH] = "1"
    try:
        with captured(1, folder / "attention.txt") as output:
            yield output
    finally:
        if before is None:
            del os.environ[_SWITCH]
        else:
            os.environ[_SWITCH] = before


def parse_choices(text: str) -> dict[str, str]:
    """Return the kernel of each attention node: node -> SdpaKernel."""
    return {match["node"]: match["kernel"] for match in _LINE.finditer(text)}
