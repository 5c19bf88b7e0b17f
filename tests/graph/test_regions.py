"""Regions of detectors by topology and by names; of other models, which have no decoder."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
from torch import nn

from tests.detectors import Detector, Dropping, Pooled
from tests.graphs import dynamo, legacy, parsed, redrawn, refusals
from tests.two_stages import TwoStages
from vitdeploy import passes
from vitdeploy.graph.model import Graph
from vitdeploy.graph.recognize import recognize
from vitdeploy.graph.regions import assign_regions
from vitdeploy.graph.structure import Structure
from vitdeploy.passes import order
from vitdeploy.session import Array

IMAGE: Array = np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32)
FEATURES = {f"features.{n}.{name}": "backbone" for n in range(2) for name in ("q", "k", "v", "o", "fc1", "fc2")}
CROSS = ("cross_q", "cross_k", "cross_v", "cross_o", "fc1", "fc2")
SECOND = {f"decoding.1.{name}": "decoder" for name in ("q", "k", "v", "o", *CROSS)}
HEADS = {"classes": "heads", "boxes.0.0": "decoder", "boxes.0.2": "decoder", "boxes.1.0": "heads", "boxes.1.2": "heads"}
LEARNED = {f"decoding.0.{name}": "decoder" for name in CROSS if name != "cross_q"}  # the rest of it is constant
SELECTED = {f"decoding.0.{name}": "decoder" for name in ("q", "k", "v", "o", *CROSS)} | {"place": "decoder"}


def structure_of(module: nn.Module, export: Callable[..., bytes] = dynamo, *, named: bool = True) -> Structure:
    graph = parsed(export(redrawn(module).eval(), IMAGE))
    records = passes.run([*order.raising(1), *order.folding()], graph)
    if not named:
        erase_names(graph)
    return assign_regions(graph, recognize(graph, refusals(records, "raise-attention") if named else {}))


def erase_names(graph: Graph) -> None:
    for number, node in enumerate(graph.nodes):
        node.name = f"n{number}"


def regions_of(structure: Structure) -> dict[str, str | None]:
    """Region by module: the legacy exporter writes `features.0/q` and `boxes.0/boxes.0.2`."""

    def module(name: str) -> str:
        parts = re.sub(r"(/MatMul)?_1$", "", name).split("/")
        return parts[-1] if "." in parts[-1] else ".".join(parts)

    return {module(linear.name): linear.region for linear in structure.linears}


@pytest.mark.parametrize("export", [dynamo, legacy])
def test_a_decoder_of_learned_queries(export: Callable[..., bytes]) -> None:
    structure = structure_of(Detector(selects=False), export)
    expected = {"embed": "backbone", **FEATURES, **LEARNED, **SECOND, **HEADS, "place": "decoder"}
    assert structure.is_detector
    assert regions_of(structure) == expected
    assert [site.region for site in structure.attention] == ["backbone"] * 2 + ["decoder"] * 3


@pytest.mark.parametrize("export", [dynamo, legacy])
def test_a_decoder_of_selected_queries(export: Callable[..., bytes]) -> None:
    structure = structure_of(Detector(selects=True), export)
    selection = {"score": "selection", "start": "selection"}
    assert structure.is_detector
    assert regions_of(structure) == {"embed": "backbone", **FEATURES, **selection, **SELECTED, **SECOND, **HEADS}
    assert [site.region for site in structure.attention] == ["backbone"] * 2 + ["decoder"] * 4


@pytest.mark.parametrize("selects", [False, True])
def test_names_do_not_matter(selects: bool) -> None:
    named, unnamed = (structure_of(Detector(selects=selects), named=named) for named in (True, False))
    assert [linear.region for linear in named.linears] == [linear.region for linear in unnamed.linears]
    assert unnamed.is_detector


def test_queries_that_read_each_other_only() -> None:
    structure = structure_of(TwoStages())
    assert structure.is_detector
    assert regions_of(structure) == {
        "embed": "backbone", "score": "selection", "qkv": "decoder", "classes": "heads", "boxes": "heads",
    }  # fmt: skip


@pytest.mark.parametrize("kind", [Pooled, Dropping])
def test_classifiers_have_no_decoder(kind: Callable[[], nn.Module]) -> None:
    structure = structure_of(kind())
    assert not structure.is_detector
    assert set(regions_of(structure).values()) == {"backbone", "heads"}
    assert [linear.name for linear in structure.linears if linear.region == "heads"] == ["head"]


class Named(Detector):
    """Modules that say what they are: attention in the backbone, and in an encoder behind it."""

    def __init__(self) -> None:
        super().__init__(selects=False)
        self.backbone, self.encoder = nn.ModuleList(self.features[:1]), nn.ModuleList(self.features[1:])
        self.neck = nn.Linear(32, 32)
        del self.features

    def forward(self, x):  # type: ignore[no-untyped-def]
        self.features = [*self.backbone, self.neck, *self.encoder]
        return super().forward(x)


def test_backbone_neck_and_encoder_by_their_names() -> None:
    structure = structure_of(Named())
    regions = {name: region for name, region in regions_of(structure).items() if region not in ("decoder", "heads")}
    assert regions["neck"] == "neck"
    assert {region for name, region in regions.items() if name.startswith("backbone.")} == {"backbone"}
    assert {region for name, region in regions.items() if name.startswith("encoder.")} == {"encoder"}
