"""Half precision on a CPU: every float16 operator computes in float16, and rounds and overflows after each step.

ONNX Runtime's CPU kernels compute FP16 in float32, so an overflow stays hidden there. onnx's reference evaluator
computes in numpy's float16.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from vitdeploy.session import Array


def compute_in_half(model: onnx.ModelProto, images: Array) -> Array:
    """Return the first output for `images`, (N, C, H, W) as the model takes them, computed one image at a time."""
    evaluator = ReferenceEvaluator(model, new_ops=[LayerNormalization])
    name, dtype = evaluator.input_names[0], onnx.helper.tensor_dtype_to_np_dtype(_element_type(model))
    outputs: list[Array] = []
    with np.errstate(all="ignore"):
        for image in images:
            result: Any = evaluator.run(None, {name: image[None].astype(dtype)})
            outputs.append(result[0])
    return np.concatenate(outputs)


def _element_type(model: onnx.ModelProto) -> int:
    return int(model.graph.input[0].type.tensor_type.elem_type)


class LayerNormalization(OpRun):
    """LayerNormalization with float32 statistics.

    That is what stash_type 1 asks for and what backends do. onnx's own operator squares in float16.
    """

    op_domain = ""

    def _run(
        self, x: Array, scale: Array, bias: Any = None, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
    ) -> tuple[Array]:
        assert (axis, stash_type) == (-1, 1)
        wide = x.astype(np.float32)
        centred = wide - wide.mean(-1, keepdims=True)
        y = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + np.float32(epsilon))
        y = y * scale.astype(np.float32) + (0 if bias is None else bias.astype(np.float32))
        return (y.astype(x.dtype),)
