"""Which patches share a token: what the page draws is what the graph merges."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vitdeploy.artifact import Artifact
from vitdeploy.artifact.layout import GRAPH
from vitdeploy.commands.report.attention_maps import attention_maps, read_images
from vitdeploy.commands.report.token_groups import compose_merges, token_groups
from vitdeploy.errors import GraphError
from vitdeploy.frozen import replace
from vitdeploy.graph.extra_outputs import with_outputs
from vitdeploy.graph.onnx_session import OnnxSession
from vitdeploy.progress import Silent
from vitdeploy.recipe import DataSpec
from vitdeploy.render.html.tokens import section
from vitdeploy.runtime.artifact_session import feed
from vitdeploy.session import Array

MERGES = {0: 16, 2: 12}


def merge_keys(keys: list[Array], removed: list[int]) -> list[set[frozenset[int]]]:
    """Merge by the text of the paper, on keys (N, d) before each merge: the patches of each token behind it."""
    tokens = [{patch} for patch in range(len(keys[0]))]
    behind = []
    for key, fewer in zip(keys, removed, strict=True):
        unit = key / np.linalg.norm(key, axis=1, keepdims=True)
        first, second = tokens[0::2], [set(one) for one in tokens[1::2]]
        cosine = unit[0::2] @ unit[1::2].T
        turns = sorted(range(len(first)), key=lambda one: -cosine[one].max())
        for one in turns[:fewer]:
            second[int(cosine[one].argmax())] |= first[one]
        tokens = [first[one] for one in turns[fewer:]] + second
        behind.append({frozenset(token) for token in tokens})
    return behind


def sets_of(groups: Array) -> set[frozenset[int]]:
    return {frozenset(np.flatnonzero(groups.ravel() == number).tolist()) for number in np.unique(groups)}


@pytest.mark.parametrize(("target", "precision"), [("onnxruntime", "fp32"), ("openvino", "int8")])
def test_the_groups_are_those_that_the_keys_say(
    target: str, precision: str, demo: Callable[..., Artifact], tmp_path: Path
) -> None:
    artifact = demo(target=target, precision=precision, merge_tokens="0:16,2:12")
    found = token_groups(artifact, None, 3, Silent())
    assert (found.data, len(found.images)) == ("demo:digits", 3)
    assert [(step.block, step.left, step.groups.shape) for step in found.steps] == [
        (0, 48, (3, 8, 8)), (2, 36, (3, 8, 8))
    ]  # fmt: skip
    names = [f"blocks.{block}.attn/merge_tokens/mean_key:0" for block in MERGES]
    assert with_outputs(artifact.file(GRAPH), names, tmp_path / "keys.onnx") == set(names)
    images = read_images(artifact.manifest, None, 3)[1]
    with OnnxSession(tmp_path / "keys.onnx") as session:
        for number, image in enumerate(images):
            outputs = session.run(feed(artifact, image), outputs=names)
            keys = [outputs[name][0, 1:].astype(np.float64) for name in names]  # without the class token
            expected = merge_keys(keys, [*MERGES.values()])
            assert [sets_of(step.groups[number]) for step in found.steps] == expected
    assert len({groups.tobytes() for groups in found.steps[0].groups}) == 3, "each image is merged in its own way"


def test_dropped_positions_are_the_same_for_all_images(demo: Callable[..., Artifact]) -> None:
    artifact = demo(target="onnxruntime", drop_tokens="0:16,2:12")
    found = token_groups(artifact, None, 2, Silent())
    assert artifact.manifest.tokens is not None
    dropped = artifact.manifest.tokens.dropped
    first, last = (step.groups.reshape(2, 64) for step in found.steps)
    for groups in (*first, *last):
        assert (groups[sorted(dropped[0])] == -1).all()
    gone = sorted([*dropped[0], *dropped[2]])
    assert np.flatnonzero(last[1] < 0).tolist() == gone
    assert len(gone) == 28
    assert [step.left for step in found.steps] == [48, 36]
    assert "dropped, at the same positions of every image" in section(found, None).lede  # type: ignore[arg-type]


def test_without_images_made_up_ones_are_shown_and_called_so(demo: Callable[..., Artifact]) -> None:
    artifact = demo(target="onnxruntime", merge_tokens="0:16,2:12", precision="fp32")
    recipe = replace(artifact.manifest.recipe, data=DataSpec())
    without = dataclasses.replace(artifact, manifest=replace(artifact.manifest, recipe=recipe), digest="")
    found = token_groups(without, None, 2, Silent())
    assert found.data.startswith("noise, because there are no others")
    assert found.data in section(found, None).parts[0].body  # type: ignore[arg-type, union-attr]
    assert [step.left for step in found.steps] == [48, 36]


def test_a_merge_of_another_size_than_the_manifest_says_is_refused() -> None:
    best, order = np.array([0, 1]), np.array([1, 0])
    assert compose_merges([(best, order)], [1], 4)[0].tolist() == [0, 1, 2, 2]
    for removed, patches in ((1, 5), (3, 4), (0, 4)):
        with pytest.raises(GraphError, match="a merge"):
            compose_merges([(best, order)], [removed], patches)


def test_attention_over_merged_tokens_is_not_drawn_on_the_image(demo: Callable[..., Artifact]) -> None:
    """36 merged tokens are no 6 × 6 patches."""
    found = attention_maps(demo(target="onnxruntime", merge_tokens="0:16,2:12", precision="fp32"), None, 1, Silent())
    assert [site.on_image for site in found.sites] == [True, False, False, False]
    assert found.sites[3].what.startswith("queries × keys")
