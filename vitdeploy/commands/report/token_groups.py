"""Which patches share a token in an artifact with fewer tokens, on a few images.

The graph that the artifact was compiled from runs in ONNX Runtime, and returns the matches of its merges. Compiled
engines do not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from vitdeploy.artifact import Artifact, Manifest
from vitdeploy.artifact.layout import GRAPH, SITES
from vitdeploy.artifact.temporary import scratch_folder
from vitdeploy.commands.report.attention_maps import channels_last, patch_grid, read_images
from vitdeploy.data.synthetic import natural_image
from vitdeploy.errors import GraphError
from vitdeploy.graph import structure as structures
from vitdeploy.graph.structure import SIMILARITY
from vitdeploy.progress import Progress
from vitdeploy.render.html.tokens import PatchGroups, TokenGroups
from vitdeploy.runtime.artifact_session import feed
from vitdeploy.session import Array

_MADE_UP = "noise, because there are no others (--data)"
_MOST_STEPS = 5
"""Blocks that are shown, as many as fit beside an image. Of a merge in every block these are spread evenly."""
_FIX = "Export the artifact again with this version."


def token_groups(artifact: Artifact, data: str | None, count: int, progress: Progress) -> TokenGroups:
    """Return what became of the patches of the first `count` images, behind each block that merges or drops tokens.

    Args:
        artifact: with fewer tokens.
        data: DATA; None is the recipe's data for evaluation, or else for calibration, or else made-up images.
        count: the number of images.
        progress: gets the steps.

    Raises:
        DataError: the data cannot be read.
        CompileError: ONNX Runtime does not run the artifact's graph.
        GraphError: its tokens are not a grid of patches.
    """
    manifest, structure = artifact.manifest, structures.load(artifact.file(SITES))
    assert manifest.tokens is not None
    spec, images = _read(manifest, data, count)
    tokens = next((site.tokens for site in structure.attention if site.tokens), None) or 0
    grid = patch_grid(tokens, manifest.preprocess.size) if manifest.preprocess.frames is None else None
    if grid is None:
        raise GraphError(f"the {tokens} tokens of block 0 are no grid of patches", fix="They cannot be drawn.")
    _, rows, columns = grid
    if manifest.tokens.dropped:
        behind = _drop(rows * columns, manifest.tokens.dropped)
        flat = {block: [patches] * len(images) for block, patches in behind.items()}
    else:
        with progress.step("Read which tokens are merged"):
            flat = _run(artifact, images, rows * columns)
    stacked = {block: np.stack(flat[block]).reshape(-1, rows, columns) for block in _spread(sorted(flat))}
    steps = tuple(PatchGroups(block, groups) for block, groups in stacked.items())
    return TokenGroups(spec, tuple(channels_last(image) for image in images), steps)


def _read(manifest: Manifest, data: str | None, count: int) -> tuple[str, list[Array]]:
    """Return where the images are from, and each as a batch: uint8 (batch, channels, height, width)."""
    if (data or manifest.recipe.data.evaluation or manifest.recipe.data.calibration) is not None:
        return read_images(manifest, data, count)
    size = manifest.recipe.target.batch.min
    return _MADE_UP, [natural_image(seed, manifest.preprocess, size) for seed in range(count)]


def _run(artifact: Artifact, images: Sequence[Array], patches: int) -> dict[int, list[Array]]:
    """Return for each block that merges the token of each patch, (patches,), image by image."""
    from vitdeploy.graph.extra_outputs import with_outputs
    from vitdeploy.graph.onnx_session import OnnxSession

    tokens = artifact.manifest.tokens
    assert tokens is not None
    merges = _find_matches(artifact.file(GRAPH))
    blocks = [block for block, removed in sorted(tokens.merged.items()) if removed]
    if len(merges) != len(blocks):
        raise GraphError(f"the graph has {len(merges)} merges, and the manifest {len(blocks)}", fix=_FIX)
    names = [name for pair in merges for name in pair]
    by_block: dict[int, list[Array]] = {block: [] for block in blocks}
    with scratch_folder("report") as work:
        with_outputs(artifact.file(GRAPH), names, work / "tokens.onnx")
        with OnnxSession(work / "tokens.onnx", lean=True) as session:
            for image in images:
                outputs = session.run(feed(artifact, image), outputs=names)
                matches = [(outputs[best][0], outputs[order][0]) for best, order in merges]
                places = compose_merges(matches, [tokens.merged[block] for block in blocks], patches)
                for block, place in zip(blocks, places, strict=True):
                    by_block[block].append(place)
    return by_block


def _find_matches(path: Path) -> list[tuple[str, str]]:
    """Return the tensors of each merge, in order: the best match of each even patch, and the order of the even ones."""
    from vitdeploy.graph.model import load

    best: dict[str, str] = {}
    order: dict[str, str] = {}
    for node in load(path).nodes:
        module, _, label = (node.name or "").partition(SIMILARITY)
        if label == "best":
            best[module] = node.outputs[0].name or ""
        elif label == "order":
            order[module] = node.outputs[1].name or ""
    return [(best[module], order[module]) for module in best if module in order]


def compose_merges(matches: Sequence[tuple[Array, Array]], removed: Sequence[int], patches: int) -> list[Array]:
    """Return where each patch is among the patches behind each merge, (patches,), as `passes/_write_merge.py` has it.

    Args:
        matches: for each merge the best odd patch of each even one, and the even ones from the most similar, (even,).
        removed: how many tokens each merge removes.
        patches: the number of patches before the first.

    Raises:
        GraphError: the merges are not of so many patches.
    """
    behind: list[Array] = []
    count, so_far = patches, np.arange(patches)
    for (best, order), fewer in zip(matches, removed, strict=True):
        even = (count + 1) // 2
        if best.shape != (even,) or order.shape != (even,):
            raise GraphError(f"a merge compares {best.shape} tokens, and there are {count}", fix=_FIX)
        if not 0 < fewer <= even:
            raise GraphError(f"a merge of {even} tokens removes {fewer}", fix=_FIX)
        rank = np.argsort(order)
        places = np.empty(count, np.int64)
        places[0::2] = np.where(rank < fewer, best + even - fewer, rank - fewer)
        places[1::2] = np.arange(count - even) + even - fewer
        so_far, count = places[so_far], count - fewer
        behind.append(so_far)
    return behind


def _drop(patches: int, dropped: Mapping[int, Mapping[int, int]]) -> dict[int, Array]:
    """Return for each block the patches that are left behind it, with -1 for those that are dropped."""
    left = np.arange(patches)
    behind: dict[int, Array] = {}
    for block, gone in sorted(dropped.items()):
        left = np.where(np.isin(np.arange(patches), list(gone)), -1, left)
        behind[block] = left
    return behind


def _spread(blocks: Sequence[int]) -> list[int]:
    """Return at most `_MOST_STEPS` of the blocks, the last one included."""
    places = np.linspace(0, len(blocks) - 1, min(len(blocks), _MOST_STEPS)).round().astype(int)
    return [blocks[place] for place in places]
