"""Merged tokens give what a plain PyTorch program gives that merges them one by one."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

from tests.graphs import apply, dynamo, images, legacy, parsed, redrawn, run, types
from tests.toys import vits
from tests.toys.merging import WIDTH, Vit, vit
from vitdeploy import passes
from vitdeploy.graph.blocks import find_parts
from vitdeploy.graph.dialect import Dialect
from vitdeploy.graph.model import Graph, dims
from vitdeploy.graph.recognize import recognize
from vitdeploy.passes import order
from vitdeploy.passes._plan_removals import plan_removals
from vitdeploy.passes.merge_tokens import MergeTokens
from vitdeploy.session import Array

BOUND = 1e-4
MODELS = {
    "class token": (1, "class"), "registers": (4, "class"), "mean of patches": (1, "mean"), "mean of all": (2, "all"),
    "no class token": (0, "mean"), "two tokens": (2, "two"), "map of patches": (1, "dense"), "map": (0, "dense"),
    "every token": (1, "tokens"),
}  # fmt: skip
SCHEDULES = {
    "one": {1: 4}, "half": {0: 8}, "three": {0: 5, 1: 3, 2: 2}, "to the last": {0: 8, 1: 4, 2: 2}, "a single": {2: 1},
}  # fmt: skip


@cache
def exported(special: int, pool: str, dynamic: bool, **options: bool) -> tuple[Vit, bytes]:
    model = vit(special, pool, **options)
    export = legacy if options.get("positions", True) else dynamo  # without them the legacy exporter hides sizes
    return model, export(model, images(2), dynamic=dynamic)


def folded(model: bytes) -> Graph:
    """The graph as it is when tokens are merged."""
    graph = parsed(model)
    passes.run([*order.raising(), *order.folding()], graph)
    return graph


def schedule_of(schedule: dict[int, int]) -> MergeTokens:
    return MergeTokens(schedule=tuple(schedule.items()))


def reference(model: Vit, x: Array, schedule: dict[int, int]) -> Array:
    with torch.inference_mode():
        return model.merged(torch.from_numpy(x), schedule).numpy()


def near(graph: Graph, x: Array, wanted: Array) -> None:
    (answer,) = run(graph, x).values()
    assert answer.shape == wanted.shape
    assert np.abs(answer - wanted).max() <= BOUND * np.abs(wanted).max()


@pytest.mark.parametrize("schedule", list(SCHEDULES))
@pytest.mark.parametrize("name", list(MODELS))
def test_equal_to_pytorch(name: str, schedule: str) -> None:
    model, proto = exported(*MODELS[name], dynamic=True)
    graph, x = folded(proto), images(3, seed=1)
    plain = run(graph, x)["output_0"]
    assert apply(schedule_of(SCHEDULES[schedule]), graph).fired == len(SCHEDULES[schedule])
    for batch in (1, 2, 3):
        near(graph, x[:batch], reference(model, x[:batch], SCHEDULES[schedule]))
    assert np.abs(run(graph, x)["output_0"] - plain).max() > 10 * BOUND  # merging these is no small change


@pytest.mark.parametrize(("schedule", "left"), [({1: 4}, 13), ({0: 5, 1: 3}, 9)])
def test_an_output_may_be_the_sum_that_is_merged(schedule: dict[int, int], left: int) -> None:
    """Each patch gets the token behind all merges into which it went."""
    _, proto = exported(1, "class", dynamic=True)
    graph, x = folded(proto), images(2, seed=1)
    plan, _ = plan_removals(graph, schedule, {}, lambda patches: patches // 2)
    assert plan is not None
    total = plan.removals[-1].sum
    graph.model.graph.outputs.append(total)
    name = total.name or ""
    apply(schedule_of(schedule), graph)
    tokens = run(graph, x)[name]
    assert tokens.shape == (2, 17, WIDTH)
    assert [len(np.unique(image, axis=0)) for image in tokens] == [left, left]


@pytest.mark.parametrize("pool", ["tokens", "dense"])
def test_an_output_keeps_the_size_that_it_had(pool: str) -> None:
    _, proto = exported(1, pool, dynamic=True)
    graph = folded(proto)
    before = [dims(value) for value in graph.model.graph.outputs]
    apply(schedule_of({0: 5, 1: 3}), graph)
    assert [dims(value) for value in graph.model.graph.outputs] == before


@pytest.mark.parametrize("batch", [1, 2])
def test_fixed_batch(batch: int) -> None:
    model = vit(1, "mean")
    graph, x = folded(dynamo(model, images(batch))), images(batch, seed=2)
    assert apply(schedule_of({0: 3, 2: 4}), graph).fired == 2
    near(graph, x, reference(model, x, {0: 3, 2: 4}))
    assert all(isinstance(size, int) for node in graph.nodes for size in dims(node.outputs[0]) or (None,))


def test_the_bias_of_each_head_stays() -> None:
    model, proto = exported(1, "class", dynamic=True, head_bias=True)
    graph, x = folded(proto), images(2, seed=3)
    assert apply(schedule_of({0: 5, 1: 3}), graph) == passes.PassResult(2)
    near(graph, x, reference(model, x, {0: 5, 1: 3}))


def test_the_number_of_tokens_by_block() -> None:
    _, proto = exported(1, "class", dynamic=True)
    graph = folded(proto)
    apply(schedule_of({0: 5, 2: 3}), graph)
    sites = recognize(graph, {}).attention
    assert [(site.tokens, site.key_tokens) for site in sites] == [(17, 17), (12, 12), (12, 12), (1, 9)]


def test_blocks_still_end_where_they_did() -> None:
    """The sizes of tokens go beside them from block to block, and must not hide where a block ends."""
    _, proto = exported(1, "mean", dynamic=True)
    graph = folded(proto)
    before = [part.block for part in find_parts(graph, recognize(graph, {}))]
    apply(schedule_of({0: 4, 1: 3}), graph)
    assert [part.block for part in find_parts(graph, recognize(graph, {}))] == before == [None, 0, 1, 2, 3, None]


def test_removing_nothing_changes_nothing() -> None:
    _, proto = exported(1, "class", dynamic=True)
    graph, same = folded(proto), folded(proto)
    assert apply(schedule_of({0: 0, 3: 0}), graph) == passes.PassResult(0)
    assert types(graph) == types(same)
    assert np.array_equal(run(graph, images(2))["output_0"], run(same, images(2))["output_0"])


@pytest.mark.parametrize(("special", "pool"), [(1, "class"), (0, "mean"), (1, "mean"), (1, "tokens"), (2, "all")])
def test_equal_tokens_are_merged_without_a_change(special: int, pool: str) -> None:
    """Sizes count in attention and means, so that a token for eight equal patches does what the eight do."""
    _, proto = exported(special, pool, dynamic=True, positions=False)
    one, other = (np.tile(images(2, seed=seed)[:, :, :8, :8], (1, 1, 1, 4)) for seed in (4, 5))
    x = np.concatenate([one, other, one, other], 2)  # by rows: each half of the patches has both kinds, at each merge
    graph = folded(proto)
    plain = run(graph, x)["output_0"]
    assert apply(schedule_of({0: 6, 1: 3}), graph).fired == 2
    assert np.abs(run(graph, x)["output_0"] - plain).max() <= 1e-5 * np.abs(plain).max()


@pytest.mark.parametrize("attention", ["primitives", "multihead"])
def test_lowered_for_each_target(attention: str) -> None:
    """What engines get: opset 20 at most, no scatter, and the same numbers."""
    model, proto = exported(1, "mean", dynamic=True)
    graph, x = folded(proto), images(2, seed=6)
    apply(schedule_of({0: 5, 1: 3}), graph)
    dialect = Dialect(opset=20, attention=attention)  # type: ignore[arg-type]
    passes.run(order.lowering(dialect), graph)
    assert graph.opset <= 20
    assert not [op for op in types(graph) if op.startswith("Scatter") or op in ("Attention", "Loop", "NonZero")]
    near(graph, x, reference(model, x, {0: 5, 1: 3}))


def _timm(name: str, **more: Any) -> nn.Module:
    import timm

    return redrawn(timm.create_model(name, pretrained=False, num_classes=10, **more))


_SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}


def _parallel() -> nn.Module:
    from timm.models.vision_transformer import ParallelScalingBlock

    return _timm("deit_tiny_patch16_224", block_fn=ParallelScalingBlock, **_SMALL)


class Positions(Vit):
    """Adds the positions again before each block, as encoders of detectors do."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run."""
        x = self.stem(x)
        for block in self.blocks:
            x = block(x + self.positions)
        return self.answer(x, None, None)


class Behind(Vit):
    """Has its special tokens behind the patches, as YOLOS has those that become boxes."""

    def stem(self, images: torch.Tensor) -> torch.Tensor:
        """Return the tokens."""
        x = self.embed(images).flatten(2).transpose(1, 2)
        assert self.tokens is not None
        return torch.cat([x, self.tokens.expand(x.shape[0], -1, -1)], 1)


class Convolved(Vit):
    """Has a convolution over the patches before the last block."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run."""
        x = self.stem(x)
        for block in self.blocks[:-1]:
            x = block(x)
        assert self.map is not None
        x = self.map(x.transpose(1, 2).reshape(x.shape[0], WIDTH, 4, 4)).repeat(1, 11, 1, 1)[:, :WIDTH]
        return self.blocks[-1](x.flatten(2).transpose(1, 2)).mean(1)


class Skipped(Vit):
    """Gives the tokens of the first block to the last one, as a U-shaped model does."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run."""
        x = first = self.blocks[0](self.stem(x))
        for block in self.blocks[1:-1]:
            x = block(x)
        return self.answer(self.blocks[-1](x + first), None, None)


class Streams(Vit):
    """Joins the patches of two scales."""

    def stem(self, images: torch.Tensor) -> torch.Tensor:
        """Return the tokens."""
        halved = nn.functional.avg_pool2d(images, 2)
        return torch.cat([self.embed(x).flatten(2).transpose(1, 2) for x in (images, halved)], 1)


class Reduced(Vit):
    """Has fewer keys than queries, as PVT and SegFormer have."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run."""
        x = self.stem(x)
        for block in self.blocks:
            keys = nn.functional.avg_pool1d(x.transpose(1, 2), 2).transpose(1, 2)
            q, (k, v) = block.fc1(x)[..., :WIDTH], block.fc1(keys)[..., : 2 * WIDTH].chunk(2, -1)
            q, k, v = (t.reshape(*t.shape[:2], 2, -1).transpose(1, 2) for t in (q, k, v))
            x = block.mlp(x + nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return self.answer(x, None, None)


def _convolutional() -> nn.Module:
    return redrawn(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()))


REFUSED: dict[str, tuple[Callable[[], nn.Module], dict[int, int], str]] = {
    "windows": (vits.swin, {0: 2}, "its attention works in windows, which cannot lose tokens"),
    "bias by position": (
        lambda: _timm("beit_base_patch16_224", **_SMALL), {0: 2},
        "an attention has a mask, or adds a bias by the places of two tokens",
    ),
    "positions in each block": (
        lambda: redrawn(Positions(1, "class")), {0: 2},
        "each place has numbers of its own behind it, such as positions (Add)",
    ),
    "a convolution": (
        lambda: _with_map(Convolved(0, "dense")), {0: 2},
        "the tokens are arranged as a grid, as windows or in another order",
    ),
    "parallel branches": (
        _parallel, {0: 2}, "Add blocks/blocks.0/Add_1 combines the tokens with those from before some were removed"
    ),
    "a long skip": (lambda: redrawn(Skipped(1, "class")), {1: 2}, "combines the tokens with those from before"),
    "special tokens behind": (
        lambda: redrawn(Behind(2, "all", positions=False)), {0: 2},
        "its special tokens, such as a class token, are not the first ones",
    ),
    "two streams": (
        lambda: redrawn(Streams(0, "mean", positions=False)), {0: 2}, "several streams of tokens are joined in it"
    ),
    "fewer keys": (
        lambda: redrawn(Reduced(0, "mean")), {0: 2},
        "its attention has 8 keys for 16 tokens, so keys do not tell which are alike",
    ),
    "no attention": (_convolutional, {0: 2}, "the model has no attention, so it has no tokens to remove"),
    "no such block": (lambda: vit(1, "class"), {4: 2}, "there is no such block: the model has blocks 0 to 3"),
    "too many": (lambda: vit(1, "class"), {0: 9}, "9 tokens cannot be removed: 16 patches are there, at most 8 can"),
    "too many are left": (
        lambda: vit(1, "class"), {1: 5}, "5 tokens cannot be removed: 8 patches are left, at most 4 can"
    ),
    "only the class token": (lambda: vit(1, "class"), {3: 1}, "only one token goes on behind its attention"),
}  # fmt: skip


def _with_map(model: Vit) -> nn.Module:
    model.map = nn.Conv2d(WIDTH, 3, 3, padding=1)
    return redrawn(model)


@pytest.mark.parametrize("case", list(REFUSED))
def test_refuses_with_the_reason(case: str) -> None:
    build, schedule, reason = REFUSED[case]
    size = 64 if case == "windows" else 32
    x = np.random.default_rng(0).standard_normal((1, 3, size, size)).astype(np.float32)
    graph = folded(legacy(build(), x))
    before, plain = types(graph), run(graph, x)["output_0"]
    first = {0: 8} if case == "too many are left" else {}
    result = apply(schedule_of(first | schedule), graph)
    assert result.fired == len(first)
    assert list(result.refused) == [f"block {block}" for block in schedule]
    assert reason in next(iter(result.refused.values()))
    if not first:
        assert types(graph) == before
        assert np.array_equal(run(graph, x)["output_0"], plain)


def test_rotary_positions_are_refused() -> None:
    graph = folded(dynamo(vits.rope(), images()))
    assert apply(schedule_of({1: 2}), graph).refused == {
        "block 1": "each place has a factor of its own behind it, as with rotary positions (RoPE)"
    }


def test_a_number_of_tokens_that_varies_is_refused() -> None:
    graph = folded(legacy(vit(1, "class"), images()))
    for value in [*graph.model.graph.inputs, *(v for node in graph.nodes for v in node.outputs)]:
        value.shape = None if value.shape is None else ir.Shape([None if n == 17 else n for n in value.shape])
    result = schedule_of({1: 2}).apply(graph)
    assert result.refused == {"block 1": "the number of its tokens varies or is not known"}


def test_a_merge_behind_the_places_that_a_layer_needs_stays() -> None:
    """Only layers behind a merge count. Here the last block takes tokens from behind the first merge alone."""
    model = redrawn(Skipped(1, "class"))
    graph, x = folded(legacy(model, images(1))), images(1, seed=7)
    result = apply(schedule_of({0: 4, 2: 3}), graph)
    assert result.fired == 1
    assert list(result.refused) == ["block 2"]
    assert np.isfinite(run(graph, x)["output_0"]).all()
