"""Models that float16 cannot hold, made from a trained one, and their outputs in true half precision."""

from __future__ import annotations

import copy
from typing import Any

import onnx_ir as ir
import torch

from benchmarks.half import compute_in_half as computed_in_true_half
from tests.graphs import dynamo, legacy, parsed
from vitdeploy import passes
from vitdeploy.graph.dialect import Dialect
from vitdeploy.graph.model import Graph
from vitdeploy.graph.recognize import recognize
from vitdeploy.graph.structure import Structure
from vitdeploy.passes import order
from vitdeploy.passes.raise_layer_norm import RaiseLayerNorm
from vitdeploy.session import Array


def with_large_stream(vit: Any, factor: float, blocks: slice = slice(None)) -> Any:
    """The same function up to LayerNorm's epsilon, with `factor` times the numbers on the residual stream.

    With `blocks` only what these blocks' second linear writes is larger, in one channel: massive activations, as large
    trained ViTs have them. That is another function.
    """
    hostile = copy.deepcopy(vit)
    with torch.no_grad():
        if blocks == slice(None):
            for tensor in (hostile.pos_embed, hostile.cls_token, *hostile.patch_embed.proj.parameters()):
                tensor.mul_(factor)
            for block in hostile.blocks:
                for tensor in (*block.attn.proj.parameters(), *block.mlp.fc2.parameters()):
                    tensor.mul_(factor)
        else:
            for block in hostile.blocks[blocks]:
                block.mlp.fc2.bias[0] += factor
    return hostile


def with_hot_attention(vit: Any, factor: float, block: int) -> Any:
    """The attention scores of one block times `factor`. Its softmax picks one key: another function."""
    hostile = copy.deepcopy(vit)
    with torch.no_grad():
        for tensor in hostile.blocks[block].attn.qkv.parameters():
            tensor[: len(tensor) // 3].mul_(factor)
    return hostile


def ready(module: Any, example: Array) -> tuple[Graph, Structure]:
    """Export, raise and fold a model, ready to be quantized."""
    graph = parsed(dynamo(module, example))
    passes.run([*order.raising(1), *order.folding()], graph)
    return graph, recognize(graph, {})


def with_norms_written_out(module: Any, example: Array) -> tuple[Graph, Structure]:
    """The same, but every LayerNorm left as the primitives that opset 16 wants, where x squared is a tensor."""
    graph = parsed(legacy(module, example, opset=16))
    passes.run([p for p in order.raising(1) if not isinstance(p, RaiseLayerNorm)], graph)
    passes.run(order.folding(), graph)
    return graph, recognize(graph, {})


def in_true_half(graph: Graph, images: Array) -> Array:
    """Outputs of the lowered graph, one image at a time, every float16 operator computed in float16."""
    lowered = Graph(graph.model.clone())
    passes.run(order.lowering(Dialect(20, "primitives")), lowered)
    return computed_in_true_half(ir.to_proto(lowered.model), images)
