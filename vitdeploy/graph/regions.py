"""Divide a model into regions: backbone, neck, encoder, selection, decoder, heads."""

from __future__ import annotations

import re
from collections.abc import Collection

import onnx_ir as ir

from vitdeploy.frozen import replace
from vitdeploy.graph.flow import nodes_below
from vitdeploy.graph.model import Graph
from vitdeploy.graph.products import CONVOLUTIONS, weight_of
from vitdeploy.graph.query_decoder import QueryDecoder, find_query_decoder
from vitdeploy.graph.structure import AttentionSite, Linear, Product, Region, Structure

_NECKS = re.compile(r"(^|[._])(neck|projector|fpn|pan|input_proj|lateral|pixel_decoder|reassemble_stage|fusion_stage)")
_OWN_NAMES: tuple[tuple[str, Region], ...] = (("backbone", "backbone"), ("encoder", "encoder"))
"""Modules of detectors that say what they are. The first in a path counts: `backbone.encoder.layer.0` is backbone."""
_CNN_CONVOLUTIONS = 5
"""From so many convolutions before the first attention on, the backbone is a CNN. A ViT's stem has up to four."""


def assign_regions(graph: Graph, structure: Structure) -> Structure:
    """Return the structure with the region of each site and product, and whether it is a detector with queries.

    Topology decides where the decoder is, what selects its queries, and where the heads begin; see `query_decoder`.
    Between backbone, neck and encoder the names of modules decide if they tell, else again the topology: what is before
    the first attention if that is a CNN; and what no attention follows.
    """
    softmaxes = {node for site in structure.attention if site.refused is not None for node in site.nodes}
    decoder = find_query_decoder(graph, softmaxes)
    regions = _Regions(graph, structure, decoder)
    return replace(
        structure,
        attention=tuple(replace(site, region=regions.of(site)) for site in structure.attention),
        linears=tuple(replace(linear, region=regions.of(linear)) for linear in structure.linears),
        products=None if structure.products is None else tuple(
            replace(product, region=regions.of(product)) for product in structure.products
        ),
        is_detector=decoder is not None and decoder.gives_boxes,
    )  # fmt: skip


class _Regions:
    """The regions of one graph."""

    def __init__(self, graph: Graph, structure: Structure, decoder: QueryDecoder | None) -> None:
        self._by_name = {node.name: node for node in graph.nodes}
        self._decoder = decoder or QueryDecoder(frozenset(), frozenset(), gives_boxes=False)
        self._has_decoder = decoder is not None
        sites = [self._by_name[site.nodes[0]] for site in structure.attention if site.nodes[0] in self._by_name]
        outside = [node for node in sites if node not in self._decoder.nodes]
        norms = [node for node in graph.nodes if node.op_type == "LayerNormalization"]
        self._before_core = _nodes_before(sites)
        self._before_outside = _nodes_before(outside)
        self._before_norm = _nodes_before(norms)
        self._behind_core = nodes_below(v for node in outside for v in node.outputs)
        convolutions = [
            n for n in graph.nodes if n.op_type in CONVOLUTIONS and weight_of(n) is None and n in self._before_outside
        ]
        is_first = [n for n in convolutions if n not in self._behind_core]
        self._is_cnn = self._has_decoder and len(is_first) >= _CNN_CONVOLUTIONS
        paths = {name for node in graph.nodes for name in re.split(r"[./]", node.name or "")}
        self._is_named = self._has_decoder and {"backbone", "encoder"} <= paths

    def of(self, entry: AttentionSite | Linear | Product) -> Region | None:
        """Return the region of a site or a product; None if its node is not in the graph."""
        node = self._by_name.get(entry.nodes[0])
        if node is None:
            return None
        if node in self._decoder.nodes:
            return "heads" if self._is_head(node) else "decoder"
        if node in self._decoder.selection:
            return "selection"
        if isinstance(entry, Linear) and entry.role == "head":
            return "heads"
        return self._region_of_features(entry, node)

    def _is_head(self, node: ir.Node) -> bool:
        """Return whether neither an attention nor a norm follows: the residual stream has been left."""
        return node not in self._before_core and node not in self._before_norm

    def _region_of_features(self, entry: AttentionSite | Linear | Product, node: ir.Node) -> Region:
        if _NECKS.search(entry.name):
            return "neck"
        if self._is_named:
            parts = re.split(r"[./]", entry.name)
            named = next((region for part in parts for word, region in _OWN_NAMES if part == word), None)
            if named is not None:
                return named
        is_convolution = isinstance(entry, Product) or (isinstance(entry, Linear) and entry.channels_first)
        if self._is_cnn and (node in self._behind_core or not is_convolution):
            return "encoder" if node in self._before_outside or not is_convolution else "neck"
        if node in self._before_outside or isinstance(entry, AttentionSite):
            return "backbone"
        if isinstance(entry, Linear) and entry.role in ("proj", "fc1", "fc2") and node in self._before_norm:
            return "backbone"  # of the last block
        if self._has_decoder:
            return "neck" if self._behind_core else "backbone"
        return "heads" if self._behind_core and self._is_head(node) else "backbone"


def _nodes_before(ends: Collection[ir.Node]) -> set[ir.Node]:
    """Return the nodes that one of `ends` is computed from, without these unless another one follows."""
    before: set[ir.Node] = set()
    pending = [value for node in ends for value in node.inputs]
    while pending:
        value = pending.pop()
        node = value.producer() if value is not None else None
        if node is not None and node not in before:
            before.add(node)
            pending += node.inputs
    return before
