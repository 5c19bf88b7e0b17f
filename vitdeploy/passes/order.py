"""The whole compiler, as four lists of passes, and the one behind it that makes safe forms."""

from __future__ import annotations

from collections.abc import Container, Mapping

from vitdeploy.graph.dialect import Dialect
from vitdeploy.passes import Pass
from vitdeploy.passes.declare_opset import DeclareOpset
from vitdeploy.passes.drop_antialias import DropAntialias
from vitdeploy.passes.drop_tokens import DropTokens
from vitdeploy.passes.drop_unread_tokens import DropUnreadTokens
from vitdeploy.passes.fit_attention import FitAttention
from vitdeploy.passes.fix_batch import FixBatch
from vitdeploy.passes.fix_size import FixSize
from vitdeploy.passes.flatten_joined import FlattenJoined
from vitdeploy.passes.flatten_norms import FlattenNorms
from vitdeploy.passes.fold_attention_scale import FoldAttentionScale
from vitdeploy.passes.fold_batch_norm import FoldBatchNorm
from vitdeploy.passes.fold_constants import FoldConstants
from vitdeploy.passes.fold_layer_scale import FoldLayerScale
from vitdeploy.passes.fold_norm_scale import FoldNormScale
from vitdeploy.passes.fold_preprocessing import FoldPreprocessing
from vitdeploy.passes.hoist_moves import HoistMoves
from vitdeploy.passes.hoist_pointwise import HoistPointwise
from vitdeploy.passes.lower_block_weights import LowerBlockWeights
from vitdeploy.passes.lower_col2im import LowerCol2im
from vitdeploy.passes.lower_group_norm import LowerGroupNorm
from vitdeploy.passes.lower_integer_linears import LowerIntegerLinears
from vitdeploy.passes.lower_multihead import LowerMultihead
from vitdeploy.passes.lower_pointwise import LowerPointwise
from vitdeploy.passes.lower_primitives import LowerPrimitives
from vitdeploy.passes.lower_rms_norm import LowerRmsNorm
from vitdeploy.passes.merge_linears import MergeLinears
from vitdeploy.passes.merge_moves import MergeMoves
from vitdeploy.passes.merge_tokens import MergeTokens
from vitdeploy.passes.name_nodes import NameNodes
from vitdeploy.passes.raise_attention import RaiseAttention
from vitdeploy.passes.raise_gelu import RaiseGelu
from vitdeploy.passes.raise_layer_norm import RaiseLayerNorm
from vitdeploy.passes.raise_linear import RaiseLinear
from vitdeploy.passes.raise_opset import RaiseOpset
from vitdeploy.passes.raise_pointwise import RaisePointwise
from vitdeploy.passes.raise_softmax import RaiseSoftmax
from vitdeploy.passes.raise_unfold import RaiseUnfold
from vitdeploy.passes.remove_dead import RemoveDead
from vitdeploy.passes.shield_moves import ShieldMoves
from vitdeploy.passes.unpack_qkv import UnpackQkv


def raising(
    batch: int | None = None,
    size: tuple[int | None, int | None] = (None, None),
    smallest: tuple[int, int] | None = None,
) -> list[Pass]:
    """Return the passes from any exporter's graph to the canonical form.

    Args:
        batch: the batch size if it is fixed.
        size: height and width of the images, to fix those that vary; None for a side that goes on varying.
        smallest: the smallest size of the images if it varies.
    """
    return [
        *([] if size == (None, None) else [FixSize(height=size[0], width=size[1])]),
        *([] if batch is None else [FixBatch(batch=batch)]),
        RaiseOpset(),
        NameNodes(),  # early, so that refusals below use the module names of the model
        FoldConstants(),  # shape arithmetic must be gone before attention is matched
        RaiseSoftmax(),
        RaiseLayerNorm(),
        RaiseGelu(),
        RaiseLinear(),
        RaisePointwise(),  # before attention: heads of channels-first models then come from linears
        RaiseUnfold(),
        RaiseAttention(),
        HoistMoves(),  # a Split between moves keeps them from merging
        MergeMoves(),  # behind it: it brings q, k and v of any rank to one, with moves beside those of the model
        *([] if smallest is None else [DropAntialias(smallest=smallest)]),
        RemoveDead(),
    ]


def folding(
    pixels: FoldPreprocessing | None = None, *, packed_qkv: bool = True, lacks: Container[str] = ()
) -> list[Pass]:
    """Return the passes that fold scales and shifts into the weights, before these are quantized.

    Args:
        pixels: the pass that lets the graph take pixels, for an artifact that does.
        packed_qkv: whether one linear for q, k and v stays one.
        lacks: the operators that the target does not know, to replace what can be replaced.
    """
    return [
        *([] if pixels is None else [pixels]),
        FoldBatchNorm(),  # first: it folds a factor together with the shift behind it
        FoldLayerScale(),
        HoistPointwise(),  # behind the norms that are folded into its weights
        MergeMoves(),  # again: a norm that is gone stood between moves (LeViT: to a matrix and back)
        MergeLinears(),  # once moves between two of them are gone
        MergeMoves(),  # again: a Reshape that was between them is before them now
        FoldAttentionScale(),  # late: the passes above remove nodes between a query and its linear
        *([] if packed_qkv else [UnpackQkv()]),
        DropUnreadTokens(),  # after unpacking: a linear for the queries alone can drop tokens too
        *([LowerCol2im()] if "Col2Im" in lacks else []),  # here already: what stays is refused before calibration
        RemoveDead(),
    ]


def merging(merge: Mapping[int, int], unraised: Mapping[str, str]) -> list[Pass]:
    """Return the passes that trade accuracy for fewer tokens, on the folded graph, before it is quantized.

    Args:
        merge: the number of the block, and how many tokens are removed behind its attention.
        unraised: the reason for each softmax that was not raised.
    """
    return [MergeTokens(schedule=tuple(merge.items()), unraised=dict(unraised)), RemoveDead()]


def dropping(stand_ins: Mapping[int, Mapping[int, int]], unraised: Mapping[str, str]) -> list[Pass]:
    """Return the passes that leave out tokens of fixed positions, in place of those that merge.

    Args:
        stand_ins: the number of the block, the patches that are dropped behind its attention, and the patch that
            stands in for each.
        unraised: the reason for each softmax that was not raised.
    """
    return [DropTokens(stand_ins=stand_ins, unraised=dict(unraised)), RemoveDead()]


def lowering(dialect: Dialect) -> list[Pass]:
    """Return the passes from the canonical form, quantized or not, to the form that the target compiles best."""
    attention: Pass = LowerMultihead() if dialect.attention == "multihead" else LowerPrimitives()
    kernel = dialect.fused_attention
    integer: list[Pass] = [LowerIntegerLinears(), LowerBlockWeights()] if dialect.int8_linears == "integer" else []
    return [
        FoldNormScale(),  # before the linears change: it expects the factor right behind the LayerNorm
        LowerPointwise(int8_linears=dialect.int8_linears),  # before moves are merged with those that it removes
        *([] if kernel is None else [FitAttention(kernel=kernel)]),  # while an attention is still one node
        attention,
        MergeMoves(),  # again: the operator of ONNX Runtime takes q, k and v before their heads are split
        LowerGroupNorm(),
        LowerRmsNorm(),
        *integer,
        *([FlattenNorms()] if dialect.norms_of_lists else []),
        *([ShieldMoves()] if dialect.overwrites_queries else []),  # behind merged moves, which would merge its own
        *([FlattenJoined()] if dialect.splits_joined_codes else []),
        RemoveDead(),
        DeclareOpset(opset=dialect.opset),
    ]


def securing(rewrite: Pass) -> tuple[Pass, ...]:
    """Return the passes from a target-ready graph to a safe form of it, see `pipeline.safe_forms`."""
    return rewrite, RemoveDead()
