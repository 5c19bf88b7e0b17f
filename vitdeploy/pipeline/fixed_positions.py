"""Choose the positions whose tokens are dropped in every image: those that are most like others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from vitdeploy.artifact.temporary import scratch_folder
from vitdeploy.errors import ExportError, QuantizeError
from vitdeploy.graph.onnx_session import OnnxSession
from vitdeploy.progress import Progress
from vitdeploy.session import Array, as_feeds

if TYPE_CHECKING:
    from vitdeploy.graph.model import Graph
    from vitdeploy.passes.drop_tokens import KeysOf
    from vitdeploy.quantize import Calibration

_LEAST_LENGTH = 1e-6
"""The length that a key is divided by at least: a key of zeros is similar to none."""


def choose_positions(
    graph: Graph,
    schedule: Mapping[int, int],
    unraised: Mapping[str, str],
    calibration: Calibration | None,
    progress: Progress,
) -> dict[int, dict[int, int]]:
    """Choose the patches to drop behind each block, and the patch that stands in for each.

    Two patches are alike as far as their keys are, the mean over heads: the cosine, its mean over all calibration
    images. Of the two that are most alike, the one that is more like all others is dropped, again and again. A patch
    that is left and most like it stands in for it.

    Args:
        graph: raised and folded, in float32; not changed.
        schedule: the number of a block, and how many patches are dropped behind its attention.
        unraised: the reason for each softmax that was not raised.
        calibration: the images.
        progress: gets the steps.

    Raises:
        ExportError: tokens cannot be dropped behind one of the blocks.
        QuantizeError: there are no images.
    """
    from vitdeploy.passes.drop_tokens import find_keys

    if calibration is None or calibration.synthetic:
        raise QuantizeError(
            "--drop-tokens needs calibration images, and none were given",
            fix="Give --calibration DATA, such as a folder of images of the camera.",
        )
    blocks, refused = find_keys(graph, schedule, unraised)
    if refused:
        place, reason = next(iter(refused.items()))
        raise ExportError(
            f"tokens cannot be dropped after {place}: {reason}",
            fix="Choose other blocks or numbers, or use --drop-tokens off.",
        )
    similarities = _measure_similarity(graph, blocks, calibration, progress)
    left = np.arange(len(similarities[0]))
    chosen: dict[int, dict[int, int]] = {}
    for block, similarity in zip(blocks, similarities, strict=True):
        stand_ins = drop_most_alike(similarity[np.ix_(left, left)], block.removed)
        chosen[block.block] = {int(left[patch]): int(left[other]) for patch, other in stand_ins.items()}
        left = np.delete(left, list(stand_ins))
    return chosen


def drop_most_alike(similarity: Array, count: int) -> dict[int, int]:
    """Return the patches to drop, `count` of them, and the patch that stands in for each.

    Args:
        similarity: of each two patches, (P, P), symmetric.
        count: the number of patches to drop, less than P.
    """
    pairs = np.array(similarity, np.float64)
    np.fill_diagonal(pairs, -np.inf)
    average = np.where(np.isfinite(pairs), pairs, 0).sum(1)
    partner, dropped = pairs.argmax(1), []
    for _ in range(count):
        patches = np.arange(len(pairs))
        first = int(pairs[patches, partner].argmax())
        second = int(partner[first])
        gone = first if average[first] > average[second] else second
        dropped.append(gone)
        pairs[gone, :] = pairs[:, gone] = -np.inf
        for patch in np.flatnonzero(partner == gone):
            partner[patch] = pairs[patch].argmax()
    left = np.delete(np.arange(len(pairs)), dropped)
    return {patch: int(left[similarity[patch, left].argmax()]) for patch in sorted(dropped)}


def _measure_similarity(
    graph: Graph, blocks: list[KeysOf], calibration: Calibration, progress: Progress
) -> list[Array]:
    """Return the mean cosine of the keys of each two patches, (P, P), for each block. No token is dropped yet."""
    from vitdeploy.graph.model import Graph

    probe = Graph(graph.model.clone())
    values = {value.name or "": value for node in probe.nodes for value in node.outputs}
    probe.model.graph.outputs[:] = [values[block.name] for block in blocks]
    feed = probe.model.graph.inputs[0].name or ""
    sums: list[Array] = []
    images = 0
    with scratch_folder("positions") as folder:
        path = folder / "keys.onnx"
        probe.save(path)
        title = "Compare the positions on the calibration images"
        with OnnxSession(path, lean=True) as session, progress.step(title, calibration.count) as advance:
            for batch in calibration.batches():
                outputs = session.run(as_feeds(batch, feed))
                cosines = [_add_cosines(outputs[block.name], block.special) for block in blocks]
                sums = [a + b for a, b in zip(sums, cosines, strict=True)] if sums else cosines
                images += len(outputs[blocks[0].name])
                advance(1)
    return [total / images for total in sums]


def _add_cosines(keys: Array, special: int) -> Array:
    """Return the cosine of the keys of each two patches, summed over images: (B, heads, N, d) becomes (P, P)."""
    mean = keys.astype(np.float64).mean(1)[:, special:]
    unit = mean / np.maximum(np.linalg.norm(mean, axis=-1, keepdims=True), _LEAST_LENGTH)
    return np.asarray((unit @ unit.transpose(0, 2, 1)).sum(0))
