"""The whole compiler, as three readable lists."""

from __future__ import annotations

from vitdeploy.graph.dialect import Dialect
from vitdeploy.passes import Pass
from vitdeploy.passes.declare_opset import DeclareOpset
from vitdeploy.passes.drop_unread_tokens import DropUnreadTokens
from vitdeploy.passes.fit_attention import FitAttention
from vitdeploy.passes.fix_batch import FixBatch
from vitdeploy.passes.fold_attention_scale import FoldAttentionScale
from vitdeploy.passes.fold_batch_norm import FoldBatchNorm
from vitdeploy.passes.fold_constants import FoldConstants
from vitdeploy.passes.fold_layer_scale import FoldLayerScale
from vitdeploy.passes.fold_norm_scale import FoldNormScale
from vitdeploy.passes.fold_preprocessing import FoldPreprocessing
from vitdeploy.passes.lower_block_weights import LowerBlockWeights
from vitdeploy.passes.lower_integer_linears import LowerIntegerLinears
from vitdeploy.passes.lower_multihead import LowerMultihead
from vitdeploy.passes.lower_primitives import LowerPrimitives
from vitdeploy.passes.name_nodes import NameNodes
from vitdeploy.passes.raise_attention import RaiseAttention
from vitdeploy.passes.raise_gelu import RaiseGelu
from vitdeploy.passes.raise_layer_norm import RaiseLayerNorm
from vitdeploy.passes.raise_linear import RaiseLinear
from vitdeploy.passes.raise_opset import RaiseOpset
from vitdeploy.passes.remove_dead import RemoveDead
from vitdeploy.passes.unpack_qkv import UnpackQkv


def raising(batch: int | None = None) -> list[Pass]:
    """From any exporter's graph to the canonical form; `batch` is the one size it will serve, if it is only one."""
    return [
        *([] if batch is None else [FixBatch(batch=batch)]),
        RaiseOpset(),
        NameNodes(),  # early: what is refused below is named in the model's own words
        FoldConstants(),  # shape arithmetic must be gone before attention is matched
        RaiseLayerNorm(),
        RaiseGelu(),
        RaiseLinear(),
        RaiseAttention(),
        RemoveDead(),
    ]


def folding(pixels: FoldPreprocessing | None = None, *, packed_qkv: bool = True) -> list[Pass]:
    """Into the weights, before they are quantized, whatever only scales or shifts a linear.

    `pixels` lets the graph take them, where the artifact shall; `packed_qkv` says whether the target wants q, k and v
    in one linear where the model has them so.
    """
    return [
        *([] if pixels is None else [pixels]),
        FoldBatchNorm(),  # first: it takes a factor and the shift behind it together
        FoldLayerScale(),
        FoldConstants(),  # again: LeViT reshapes to a matrix for each norm, and back
        FoldAttentionScale(),  # last: what stood between a query and its linear may be gone
        *([] if packed_qkv else [UnpackQkv()]),
        DropUnreadTokens(),  # behind it: queries of their own need fewer tokens too
        RemoveDead(),
    ]


def lowering(dialect: Dialect) -> list[Pass]:
    """From the canonical form, quantized or not, to what the target compiles best."""
    attention: Pass = LowerMultihead() if dialect.attention == "multihead" else LowerPrimitives()
    kernel = dialect.fused_attention
    integer: list[Pass] = [LowerIntegerLinears(), LowerBlockWeights()] if dialect.int8_linears == "integer" else []
    return [
        FoldNormScale(),  # before the linears change: it looks for the factor right behind the LayerNorm
        *([] if kernel is None else [FitAttention(kernel=kernel)]),  # while an attention is still one node
        attention,
        *integer,
        RemoveDead(),
        DeclareOpset(opset=dialect.opset),
    ]
