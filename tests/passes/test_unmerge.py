"""Layers that read patches at their places, such as heads for depth, get each patch as the token it was merged into."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn

from tests.graphs import apply, dynamo, images, legacy, parsed, redrawn, run
from tests.toys.merging import PATCHES, WIDTH, Vit, merge
from vitdeploy import passes
from vitdeploy.graph.model import Graph
from vitdeploy.passes import order
from vitdeploy.passes.drop_tokens import DropTokens
from vitdeploy.passes.merge_tokens import MergeTokens
from vitdeploy.session import Array

TAPS = (0, 1, 3)
GRID, PATCH = 8, 8
SIDE = GRID * PATCH
KINDS = 3
SCHEDULE = {0: 16, 1: 9, 2: 6}


class Tapped(Vit):
    """Makes a map of the patches behind several blocks, as heads for depth and masks do, and returns all of them."""

    def __init__(self, special: int) -> None:
        super().__init__(special, "dense")
        self.maps = nn.ModuleList(nn.Conv2d(WIDTH, 3, 3, padding=1) for _ in TAPS)

    def forward(self, images: Tensor) -> Tensor:
        """Run without merging."""
        x, features = self.stem(images), []
        for block in self.blocks:
            x = block(x)
            features.append(x)
        return self.join([features[tap][:, self.special :] for tap in TAPS])

    def merged(self, images: Tensor, schedule: Mapping[int, int]) -> Tensor:
        """Run with merging, image by image. Each tap gets the tokens that are there at its block."""
        answers = []
        for image in images:
            x, sizes, features = self.stem(image[None]), None, []
            groups = [[i] for i in range(x.shape[1])]
            for number, block in enumerate(self.blocks):
                update, keys = block.attn(block.norm1(x), sizes)
                x = x + update
                if number in schedule:
                    x, groups = merge(x, keys, groups, schedule[number], self.special)
                    sizes = torch.tensor([[float(len(group)) for group in groups]])
                x = block.mlp(x)
                rows = [next(i for i, group in enumerate(groups) if self.special + p in group) for p in range(PATCHES)]
                features.append(x[:, rows])
            answers.append(self.join([features[tap] for tap in TAPS]))
        return torch.cat(answers)

    def dropped(self, images: Tensor, positions: Mapping[int, Mapping[int, int]]) -> Tensor:
        """Run with dropped patches: block -> patch -> the one that stands in for it."""
        x, features = self.stem(images), []
        left, owner = list(range(PATCHES)), list(range(PATCHES))
        for number, block in enumerate(self.blocks):
            x = x + block.attn(block.norm1(x), None)[0]
            gone = positions.get(number, {})
            rows = [row for row, patch in enumerate(left) if patch not in gone]
            x = x[:, [*range(self.special), *(self.special + row for row in rows)]]
            left, owner = [left[row] for row in rows], [gone.get(other, other) for other in owner]
            x = block.mlp(x)
            features.append(x[:, [self.special + left.index(other) for other in owner]])
        return self.join([features[tap] for tap in TAPS])

    def join(self, features: list[Tensor]) -> Tensor:
        """Return the maps of the features (1, 16, C), one behind the other."""
        grids = [tokens.transpose(1, 2).reshape(-1, WIDTH, 4, 4) for tokens in features]
        return torch.cat([convolution(grid) for convolution, grid in zip(self.maps, grids, strict=True)], 1)


@pytest.mark.parametrize("schedule", [{0: 5, 1: 3, 2: 2}, {1: 8, 3: 4}, {2: 6}, {3: 4}], ids=str)
@pytest.mark.parametrize("special", [0, 1, 3])
def test_each_tap_gets_what_pytorch_gives_it(special: int, schedule: dict[int, int]) -> None:
    model, x = redrawn(Tapped(special)), images(2, seed=1)
    assert isinstance(model, Tapped)
    graph = folded(legacy(model, x, dynamic=True))
    assert merge_by(schedule, graph) == len(schedule)
    with torch.inference_mode():
        expected = model.merged(torch.from_numpy(x), schedule).numpy()
    (answer,) = run(graph, x).values()
    assert np.abs(answer - expected).max() <= 1e-4 * np.abs(expected).max()


class Tensors(nn.Module):
    """A model that returns tensors, and no class of transformers or list."""

    def __init__(self, model: nn.Module, output: str | None = None) -> None:
        super().__init__()
        self.model, self.output = model, output

    def forward(self, images: Tensor) -> Any:
        """Return the output with this name, or all of a list."""
        answer = self.model(images)
        return tuple(answer) if self.output is None else getattr(answer, self.output)


SIZES: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": SIDE, "patch_size": PATCH,
}  # fmt: skip


def _dpt(readout: str, head: str = "DPTForDepthEstimation", output: str = "predicted_depth") -> nn.Module:
    config = transformers.DPTConfig(
        **SIZES, intermediate_size=64, backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[16, 16, 32, 32],
        fusion_hidden_size=16, readout_type=readout, num_labels=4,
    )  # fmt: skip
    return Tensors(getattr(transformers, head)(config), output)


def _dinov2(**options: Any) -> Any:
    return transformers.Dinov2Config(**SIZES, out_indices=[1, 2, 3, 4], **options)  # type: ignore[no-untyped-call]


def _depth_anything() -> nn.Module:
    config = transformers.DepthAnythingConfig(
        backbone_config=_dinov2(reshape_hidden_states=False), patch_size=PATCH, reassemble_hidden_size=32,
        neck_hidden_sizes=[8, 8, 16, 16], fusion_hidden_size=16, head_hidden_size=16,
    )  # fmt: skip
    return Tensors(transformers.DepthAnythingForDepthEstimation(config), "predicted_depth")


def _upernet() -> nn.Module:
    config = transformers.UperNetConfig(
        backbone_config=_dinov2(), hidden_size=16, pool_scales=[1, 2], use_auxiliary_head=False
    )
    return Tensors(transformers.UperNetForSemanticSegmentation(config), "logits")


def _vitpose() -> nn.Module:
    sizes = SIZES | {"image_size": [SIDE, SIDE], "patch_size": [PATCH, PATCH]}
    config = transformers.VitPoseConfig(backbone_config=transformers.VitPoseBackboneConfig(**sizes, out_indices=[4]))
    model = transformers.VitPoseForPoseEstimation(config)
    model.backbone.embeddings.patch_embeddings.projection.padding = (0, 0)  # or each patch sees its neighbours
    return Tensors(model, "heatmaps")


def _features() -> nn.Module:
    import timm

    model = timm.create_model(
        "vit_tiny_patch16_224", features_only=True, out_indices=(0, 1, 3), img_size=SIDE, patch_size=PATCH,
        embed_dim=32, depth=4, num_heads=2,
    )  # fmt: skip
    return Tensors(model)


DENSE: dict[str, tuple[Callable[[], nn.Module], Callable[..., bytes]]] = {
    "DPT": (lambda: _dpt("project"), legacy),
    "DPT that adds its class token": (lambda: _dpt("add"), legacy),
    "DPT for masks": (lambda: _dpt("ignore", "DPTForSemanticSegmentation", "logits"), dynamo),
    "Depth Anything": (_depth_anything, legacy),
    "UperNet on DINOv2": (_upernet, dynamo),
    "ViTPose": (_vitpose, legacy),
    "timm features": (_features, dynamo),
}


@pytest.mark.parametrize("name", list(DENSE))
def test_equal_patches_of_dense_models_are_merged_without_a_change(name: str) -> None:
    """Without positions, equal patches have equal tokens, so that putting them back at their places is exact."""
    build, export = DENSE[name]
    model = without_positions(redrawn(build()))
    graph, x = folded(export(model, mosaic(0))), mosaic(1)
    plain = run(graph, x)
    assert merge_by(SCHEDULE, graph) == len(SCHEDULE)
    after = run(graph, x)
    for output, values in plain.items():
        assert values.std() > 1e-3 * np.abs(values).max()  # places differ, so that a wrong one would show
        assert np.abs(after[output] - values).max() <= 1e-5 * np.abs(values).max()


def test_each_tap_gets_the_stand_ins_of_dropped_patches() -> None:
    model, x = redrawn(Tapped(1)), images(2, seed=2)
    assert isinstance(model, Tapped)
    stand_ins = {0: {4: 5, 9: 8}, 2: {2: 3, 5: 8}}  # the stand-in of 4 goes after it
    graph = folded(legacy(model, x, dynamic=True))
    assert apply(DropTokens(stand_ins=stand_ins), graph) == passes.PassResult(2)
    with torch.inference_mode():
        expected = model.dropped(torch.from_numpy(x), stand_ins).numpy()
    (answer,) = run(graph, x).values()
    assert np.abs(answer - expected).max() <= 1e-4 * np.abs(expected).max()


def folded(model: bytes) -> Graph:
    """The graph as it is when tokens are merged."""
    graph = parsed(model)
    passes.run([*order.raising(), *order.folding()], graph)
    return graph


def merge_by(schedule: dict[int, int], graph: Graph) -> int:
    """Merge, and return behind how many blocks."""
    result = apply(MergeTokens(schedule=tuple(schedule.items())), graph)
    assert not result.refused
    return result.fired


def without_positions(model: nn.Module) -> nn.Module:
    """Set the positions that are added to patches to zero, in place."""
    names = [name for name, _ in model.named_parameters() if "position_embedding" in name or "pos_embed" in name]
    assert names
    with torch.no_grad():
        for name in names:
            model.get_parameter(name).zero_()
    return model


def mosaic(seed: int) -> Array:
    """An image (1, 3, 64, 64) of few kinds of patches in a random order; the kinds are the same for each seed."""
    tiles = np.random.default_rng(0).standard_normal((KINDS, 3, PATCH, PATCH)).astype(np.float32)
    kinds = np.random.default_rng(seed).integers(0, KINDS, (GRID, GRID))
    rows = [np.concatenate([tiles[kind] for kind in row], axis=-1) for row in kinds]
    return np.concatenate(rows, axis=-2)[None]
