"""Attention maps of FP32 and of an artifact on the same images: both graphs in ONNX Runtime, probabilities read out.

Compiled kernels keep their probabilities inside; `graph.onnx`, which they were compiled from, gives them up.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vitdeploy.artifact import Artifact, Manifest
from vitdeploy.artifact.layout import GRAPH, SITES
from vitdeploy.data.dataset import batches
from vitdeploy.data.opening import open_dataset
from vitdeploy.data.preprocess import to_input
from vitdeploy.errors import DataError, GraphError
from vitdeploy.graph import structure as structures
from vitdeploy.graph.structure import AttentionSite, Structure
from vitdeploy.pipeline.float32_graph import rebuild_graph
from vitdeploy.pipeline.graph_cache import GraphCache
from vitdeploy.progress import Progress
from vitdeploy.render.html.attention import AttentionMaps, Site
from vitdeploy.session import Array

if TYPE_CHECKING:
    from vitdeploy.graph.model import Graph
    from vitdeploy.graph.onnx_session import OnnxSession
    from vitdeploy.graph.probabilities import Tap

_RUN_BYTES = 256 << 20
"""Probabilities asked for in one run. All of DINOv2-L's at 518 pixels would be 2.9 GB a side."""

_MOST_PREFIX_TOKENS = 8  # class, distillation and register tokens before the patches; DINOv2 has 1 + 4
_LARGEST_MATRIX = 256  # a map of more queries or keys than that is averaged down: no eye sees more


def attention_maps(
    artifact: Artifact, data: str | None, count: int, progress: Progress, cache: GraphCache | None = None
) -> AttentionMaps:
    """Compare the attention of FP32 and of the artifact's graph on the first `count` images of the data.

    Args:
        artifact: what to look at; its source has to be here too.
        data: DATA; None takes what the artifact was evaluated or calibrated on.
        count: how many images.
        progress: told about the steps.
        cache: where the float32 graph may have been kept.

    Raises:
        DataError: there are no images.
        SourceError: the FP32 model cannot be had here.
        CompileError: ONNX Runtime does not run the artifact's graph.
        GraphError: no site of it could be read.
    """
    manifest = artifact.manifest
    spec, images = _images(manifest, data, count)
    structure = structures.load(artifact.file(SITES))
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vitdeploy-report-")))
        with progress.step("Read the artifact's attention"):
            deployed = _Side(_loaded(artifact.file(GRAPH)), structure, work / "deployed.onnx", stack)
        reference = _Side(_float32(manifest, work, progress, cache), structure, work / "reference.onnx", stack)
        left_out = {**reference.missing, **deployed.missing}
        shared = [site for site in structure.attention if site.name in reference.taps and site.name in deployed.taps]
        if not shared:
            why = next(iter(left_out.values()), "the model has no attention site")
            raise GraphError(f"no attention could be read: {why}", fix="See vitdeploy inspect.")
        with progress.step("Compare attention maps", len(images)) as advance:
            seen: dict[str, list[_Pair]] = {}
            for image in images:
                feed = to_input(image, manifest.preprocess, manifest.recipe.target.input)
                sides = zip(reference.run(feed, shared), deployed.run(feed, shared), strict=True)
                for (name, ours), (_, theirs) in sides:
                    seen.setdefault(name, []).append(_pair(ours, theirs, manifest.preprocess.size))
                advance(1)
    sites = tuple(_site(site, seen[site.name]) for site in shared)
    return AttentionMaps(spec, tuple(_upright(image) for image in images), sites, tuple(left_out.items()))


class _Pair:
    """Both sides' maps of one site and image, and how far they are apart by head."""

    def __init__(self, what: str, *, on_image: bool, reference: Array, deployed: Array, drift: Array) -> None:
        self.what, self.on_image = what, on_image
        self.reference, self.deployed, self.drift = reference, deployed, drift


def _images(manifest: Manifest, data: str | None, count: int) -> tuple[str, list[Array]]:
    """The first images of the data, each as a batch of the size that the graph takes: uint8 NCHW."""
    spec = data or manifest.recipe.data.evaluation or manifest.recipe.data.calibration
    if spec is None:
        raise DataError("there are no images to look at attention on", fix="Give --data DATA: a folder, or an .npz.")
    dataset = open_dataset(spec, manifest.preprocess, labels=None, need_labels=False, split="evaluation")
    copies = manifest.recipe.target.batch.min
    return spec, [np.repeat(batch, copies, axis=0) for batch, _ in batches(dataset, 1, limit=count)]


def _loaded(path: Path) -> Graph:
    from vitdeploy.graph.model import load

    return load(path)


def _float32(manifest: Manifest, work: Path, progress: Progress, cache: GraphCache | None) -> Graph:
    """Return the model's float32 graph, its attention in plain operators.

    Raises:
        SourceError: the model cannot be had here.
        MeasureError: it is another model now.
    """
    from vitdeploy.passes.lower_primitives import LowerPrimitives

    prepared = rebuild_graph(manifest, work, progress, cache=cache)
    LowerPrimitives().apply(prepared.graph)  # every version of ONNX Runtime gives the softmax of these
    return prepared.graph


class _Side:
    """A graph that gives its probabilities, opened in ONNX Runtime."""

    def __init__(self, graph: Graph, structure: Structure, path: Path, stack: ExitStack) -> None:
        from vitdeploy.graph.onnx_session import OnnxSession
        from vitdeploy.graph.probabilities import with_taps

        tapped, taps, self.missing = with_taps(graph, structure)
        self._input = tapped.model.graph.inputs[0].name or ""
        tapped.save(path)
        self._session: OnnxSession = stack.enter_context(OnnxSession(path, lean=True))
        self.taps = {tap.site.name: tap for tap in taps}

    def run(self, images: Array, sites: list[AttentionSite]) -> Iterator[tuple[str, Array]]:
        """Site by site, the probabilities of the first image: (windows, heads, queries, keys) float32."""
        for group in _groups([self.taps[site.name] for site in sites], len(images)):
            wanted = [name for tap in group for name in tap.tensors]
            found = self._session.run({self._input: images}, outputs=list(dict.fromkeys(wanted)))
            for tap in group:
                probabilities = tap.read(found)
                yield tap.site.name, probabilities[: max(1, len(probabilities) // len(images))]


def _groups(taps: list[Tap], batch: int) -> Iterator[list[Tap]]:
    """Taps in turns whose probabilities stay within `_RUN_BYTES`; one at a time where sizes are not known."""
    group: list[Tap] = []
    size = 0
    for tap in taps:
        own = 4 * batch * (tap.count or _RUN_BYTES)
        if group and size + own > _RUN_BYTES:
            yield group
            group, size = [], 0
        group.append(tap)
        size += own
    if group:
        yield group


def _pair(reference: Array, deployed: Array, size: tuple[int, int]) -> _Pair:
    """Reduce both sides' probabilities, (windows, heads, queries, keys), to maps that can be shown.

    Raises:
        GraphError: the sides differ in shape, so that nothing can be compared.
    """
    if reference.shape != deployed.shape:
        message = f"FP32 attends in shape {reference.shape}, the artifact in {deployed.shape}"
        raise GraphError(message, fix="Export the artifact again with this version.")
    drift = 0.5 * np.abs(reference - deployed).sum(axis=-1).mean(axis=(0, 2))
    windows, _, queries, keys = reference.shape
    grid = patch_grid(keys, size) if windows == 1 else None
    if grid is None:
        what = "queries × keys, mean over heads" + (f" and {windows} windows" if windows > 1 else "")
        maps = [_shrunk(side.mean(axis=(0, 1))) for side in (reference, deployed)]
        return _Pair(what, on_image=False, reference=maps[0], deployed=maps[1], drift=drift)
    prefix, rows, columns = grid
    by_first = prefix > 0 and queries in (1, keys)
    what = "what the first token attends to" if by_first else "what all queries attend to on average"
    lines = [side[0].mean(axis=0)[0] if by_first else side[0].mean(axis=(0, 1)) for side in (reference, deployed)]
    maps = [line[prefix:].reshape(rows, columns) for line in lines]
    return _Pair(f"{what}, mean over heads", on_image=True, reference=maps[0], deployed=maps[1], drift=drift)


def patch_grid(keys: int, size: tuple[int, int]) -> tuple[int, int, int] | None:
    """(tokens before the patches, rows, columns) of `keys` tokens on an image of `size`, or None if they are no grid.

    Patches are taken to be square, so the grid has the image's aspect ratio; the fewest other tokens win: 197 keys on
    224 × 224 are 1 + 14 × 14, 1,374 on 518 × 518 are 5 + 37 × 37.
    """
    height, width = size
    for prefix in range(_MOST_PREFIX_TOKENS + 1):
        rows = round(((keys - prefix) * height / width) ** 0.5) if keys > prefix else 0
        columns = round(rows * width / height)
        if rows > 1 and rows * columns == keys - prefix and rows * width == columns * height:
            return prefix, rows, columns
    return None


def _shrunk(matrix: Array) -> Array:
    """Averaged over cells down to `_LARGEST_MATRIX` on each side; what is left over at the ends goes."""
    steps = [-(-length // _LARGEST_MATRIX) for length in matrix.shape]
    rows, columns = (length // step for length, step in zip(matrix.shape, steps, strict=True))
    cut = matrix[: rows * steps[0], : columns * steps[1]]
    return np.asarray(cut.reshape(rows, steps[0], columns, steps[1]).mean(axis=(1, 3)))


def _site(site: AttentionSite, pairs: list[_Pair]) -> Site:
    return Site(
        name=site.name,
        block=site.block,
        what=pairs[0].what,
        on_image=pairs[0].on_image,
        reference=np.stack([pair.reference for pair in pairs]),
        deployed=np.stack([pair.deployed for pair in pairs]),
        drift=np.mean([pair.drift for pair in pairs], axis=0),
    )


def _upright(batch: Array) -> Array:
    """The first image of a uint8 NCHW batch as (height, width, channels)."""
    return np.asarray(batch[0].transpose(1, 2, 0))
