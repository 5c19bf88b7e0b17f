"""The whole compiler, as two readable lists."""

from __future__ import annotations

from vitdeploy.graph.dialect import Dialect
from vitdeploy.passes import Pass
from vitdeploy.passes.declare_opset import DeclareOpset
from vitdeploy.passes.fold_constants import FoldConstants
from vitdeploy.passes.fold_norm_scale import FoldNormScale
from vitdeploy.passes.lower_integer_linears import LowerIntegerLinears
from vitdeploy.passes.lower_multihead import LowerMultihead
from vitdeploy.passes.lower_primitives import LowerPrimitives
from vitdeploy.passes.name_nodes import NameNodes
from vitdeploy.passes.raise_attention import RaiseAttention
from vitdeploy.passes.raise_linear import RaiseLinear
from vitdeploy.passes.raise_opset import RaiseOpset
from vitdeploy.passes.remove_dead import RemoveDead


def raising() -> list[Pass]:
    """From any exporter's graph to the canonical form."""
    return [
        RaiseOpset(),
        NameNodes(),  # early: what is refused below is named in the model's own words
        FoldConstants(),  # shape arithmetic must be gone before attention is matched
        RaiseLinear(),
        RaiseAttention(),
        RemoveDead(),
    ]


def lowering(dialect: Dialect) -> list[Pass]:
    """From the canonical form, quantized or not, to what the target compiles best."""
    attention: Pass = LowerMultihead() if dialect.attention == "multihead" else LowerPrimitives()
    integer: list[Pass] = [LowerIntegerLinears()] if dialect.int8_linears == "integer" else []
    return [
        FoldNormScale(),  # before the linears change: it looks for the factor right behind the LayerNorm
        attention,
        *integer,
        RemoveDead(),
        DeclareOpset(opset=dialect.opset),
    ]
