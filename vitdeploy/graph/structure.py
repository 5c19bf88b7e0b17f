"""The structure of a model: attention sites, linears by role, LayerNorms, blocks.

It is stored as `sites.json`, so that a light device can audit an engine without onnx. Engines keep the names of ONNX
nodes, and each entry here lists the names of its nodes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from vitdeploy.frozen import replace

Role = Literal["patch", "qkv", "proj", "fc1", "fc2", "head", "other"]
Region = Literal["backbone", "neck", "encoder", "selection", "decoder", "heads"]
"""neck: merges features of several scales. selection: scores and boxes of the tokens that become queries, see
`graph.query_decoder`. heads: what turns the last features into classes, boxes or maps."""
Bias = Literal["bias", "window bias", "mask", "causal"]
"""Added to attention scores: numbers, or different numbers in each window (Swin's shift). Or a selection of keys."""
RiskyForm = Literal[
    "rotary positions", "separate q, k, v", "float16 norm", "detector", "sampled features", "instance masks",
    "float16 decoder", "integer decoder", "refined maps",
]  # fmt: skip
"""A form of graph that some compiler is reported to compute wrongly, see `graph.risky_forms`."""

CORE = "/Attention"
"""The nodes of a site are named `SITE/Attention` in the raised graph, and `SITE/Attention/…` after lowering."""

MERGE = "/merge_tokens"
"""The nodes that merge tokens behind a site are named `SITE/merge_tokens/…`."""

SIMILARITY = f"{MERGE}/similarity/"
"""In the names of the nodes that decide which tokens are merged."""

BESIDE = f"{MERGE}/beside/"
"""In the names of the nodes with the sizes and places of merged tokens, which go beside them from block to block."""

PART = "/part"
"""The parts of a product that is computed in several are named `NODE/part0`, `NODE/part1`, …"""


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")
    name: str
    nodes: tuple[str, ...]


class _Located(_Entry):
    region: Region | None = None
    """Its part of the model; None: written by a version that did not tell."""


class AttentionSite(_Located):
    """One attention: softmax(q kᵀ · scale + bias) v. Sizes are None if they are unknown before run time, or if refused.

    Attributes:
        tokens: the number of queries in one window.
        key_tokens: the number of keys in one window.
        windows: how many separate sequences one image makes: 1 for global attention, 64 in Swin's first stage.
        refused: why the attention could not be raised to the canonical form; None if it was.
    """

    block: int
    heads: int | None = None
    head_size: int | None = None
    tokens: int | None = None
    key_tokens: int | None = None
    value_size: int | None = None
    windows: int | None = None
    bias: Bias | None = None
    refused: str | None = None


class Linear(_Located):
    """A product with a constant weight, or the convolution that embeds the patches."""

    role: Role
    block: int | None
    weight: tuple[int, ...]
    """The shape of the weight as stored."""
    size: tuple[int, int] | None = None
    """K x N: each of the N results is a sum of K products, whatever the layout of the weight."""
    rows: int | None = None
    """Rows of K numbers (tokens or patches) that one image feeds through it. None: not known before run time."""
    initializer: str = ""
    """The name of the weight. OpenVINO names a kernel after a graph output that it computes and not after its node."""
    bias: str = ""
    """The name of the Add of the bias, if there is one. OpenVINO names a kernel that adds a bias after it."""
    channels_first: bool = False
    """True for a 1×1 convolution: its input and output are channels first, with moves around the product."""


class Norm(_Entry):
    """A LayerNormalization."""


class Gelu(_Entry):
    """A GELU, in its exact form or with tanh."""


class Product(_Located):
    """A product with a constant weight that is no linear: a convolution, a product by a stack of matrices."""

    operator: str
    weights: int
    """The number of elements of the weight."""
    macs: int | None = None
    """Multiply-accumulates for one image. None: not known before run time."""
    initializer: str = ""
    """The name of the weight."""
    bias: str = ""
    """The name of the Add of the bias, if there is one."""


class Unclassified(_Entry):
    """A softmax that may or may not belong to an attention, and what hides it."""

    reason: str


class Structure(BaseModel):
    """The parts of a model that are recognised, and softmaxes of which it is not known what they belong to."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    attention: tuple[AttentionSite, ...]
    linears: tuple[Linear, ...]
    norms: tuple[Norm, ...]
    gelus: tuple[Gelu, ...] | None = None
    """None: written by a version that did not list them."""
    unclassified: tuple[Unclassified, ...] = ()
    products: tuple[Product, ...] | None = None
    """The products with weights that are no linears; None: written by a version that did not list them."""
    is_detector: bool = False
    """True if a decoder of queries gives boxes, as in DETR."""
    risky_forms: tuple[RiskyForm, ...] = ()
    """The forms that the target-ready graph has and that some compiler is reported to compute wrongly."""

    @property
    def weighted(self) -> tuple[Linear | Product, ...]:
        """All products with weights."""
        return (*self.linears, *(self.products or ()))

    def count_float_linears(self, quantized: Collection[str]) -> int:
        """Return the number of linears that are not among the names of what is quantized."""
        return sum(linear.name not in quantized for linear in self.linears)

    def locate_attention(self, names: Iterable[str]) -> Structure:
        """Return the structure with the attention nodes of a lowered graph, whose node names are `names`."""
        names = list(names)
        sites = tuple(
            replace(site, nodes=tuple(n for n in names if _belongs_to(n, site.name)) or site.nodes)
            for site in self.attention
        )
        return replace(self, attention=sites)

    def locate_parts(self, names: Iterable[str]) -> Structure:
        """Return the structure with the parts of each linear that is computed in several; see `locate_attention`."""
        parts: dict[str, list[str]] = {}
        for name in names:
            whole, part, _ = name.rpartition(PART)
            if part:
                parts.setdefault(whole, []).append(name)
        linears = tuple(
            replace(linear, nodes=tuple(part for node in linear.nodes for part in parts.get(node, [node])))
            for linear in self.linears
        )
        return replace(self, linears=linears)

    def save(self, path: Path) -> None:
        """Write the structure as JSON."""
        path.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")


def load(path: Path) -> Structure:
    """Read a structure that `save` wrote."""
    return Structure.model_validate_json(path.read_bytes())


def _belongs_to(node_name: str, site: str) -> bool:
    return node_name == site + CORE or node_name.startswith(f"{site}{CORE}/")
