"""The model in its own terms: attention sites, linears by role, LayerNorms, blocks.

It is stored as `sites.json`, so that a light device can audit an engine without onnx: engines keep ONNX node names,
and each entry lists its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

Role = Literal["patch", "qkv", "proj", "fc1", "fc2", "head", "other"]
Bias = Literal["bias", "window bias", "mask", "causal"]
"""What attention scores get: numbers added, other numbers in each window (Swin's shift), or a selection of keys."""

CORE = "/Attention"
"""An attention core's nodes are named `SITE/Attention` in the raised graph and `SITE/Attention/…` after lowering."""


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")
    name: str
    nodes: tuple[str, ...]


class AttentionSite(_Entry):
    """One attention: softmax(q kᵀ · scale + bias) v. `refused`: why it could not be raised to the canonical form.

    `tokens` are the queries of one window; `windows` is how many separate sequences one image makes: 1 for global
    attention, 64 in Swin's first stage. None: not known before run time, or not canonical.
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


class Linear(_Entry):
    """A product with a constant weight, or the convolution that embeds the patches."""

    role: Role
    block: int | None
    weight: tuple[int, ...]
    """Its shape as stored."""
    size: tuple[int, int] | None = None
    """K x N: what it multiplies sums K numbers for each of N results, whatever the weight's layout."""
    rows: int | None = None
    """How many vectors of K numbers one image gives it: tokens, or patches. None: not known before run time."""
    initializer: str = ""
    """The weight's name: OpenVINO names a kernel that makes a graph output after that output, not after its node."""
    bias: str = ""
    """The Add behind it, if there is one: OpenVINO names a kernel that adds a bias after that."""


class Norm(_Entry):
    """A LayerNormalization."""


class Structure(BaseModel):
    """What the model is made of."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    attention: tuple[AttentionSite, ...]
    linears: tuple[Linear, ...]
    norms: tuple[Norm, ...]

    def located(self, names: Iterable[str]) -> Structure:
        """The same structure with the attention cores' nodes picked from `names`, those of a lowered graph."""
        names = list(names)
        sites = tuple(
            site.model_copy(update={"nodes": tuple(n for n in names if _of_core(n, site.name)) or site.nodes})
            for site in self.attention
        )
        return self.model_copy(update={"attention": sites})

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        path.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")


def load(path: Path) -> Structure:
    """The structure that `save` wrote."""
    return Structure.model_validate_json(path.read_bytes())


def _of_core(node_name: str, site: str) -> bool:
    return node_name == site + CORE or node_name.startswith(f"{site}{CORE}/")
