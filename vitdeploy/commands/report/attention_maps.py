"""Attention maps of FP32 and of an artifact on the same images.

Both graphs run in ONNX Runtime. Compiled attention kernels do not return their probabilities, so the artifact's side is
`graph.onnx`, from which they were compiled.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vitdeploy.artifact import Artifact, Manifest
from vitdeploy.artifact.layout import GRAPH, SITES
from vitdeploy.artifact.temporary import scratch_folder
from vitdeploy.data.dataset import batches
from vitdeploy.data.frames import middle_frame
from vitdeploy.data.opening import open_dataset
from vitdeploy.errors import DataError, GraphError
from vitdeploy.graph import structure as structures
from vitdeploy.graph.structure import AttentionSite, Structure
from vitdeploy.pipeline.float32_graph import rebuild_graph
from vitdeploy.pipeline.graph_cache import GraphCache
from vitdeploy.progress import Progress
from vitdeploy.render.html.attention import AttentionMaps, Site
from vitdeploy.runtime.artifact_session import feed
from vitdeploy.session import Array, Feeds, images_of

if TYPE_CHECKING:
    from vitdeploy.graph.model import Graph
    from vitdeploy.graph.onnx_session import OnnxSession
    from vitdeploy.graph.probabilities import Tap

_RUN_BYTES = 256 << 20
"""The size of the probabilities that one run returns. All of DINOv2-L's at 518 pixels would be 2.9 GB for each side."""

_MAX_PREFIX_TOKENS = 8  # class, distillation and register tokens before the patches; DINOv2 has 1 + 4
_MAX_MATRIX = 256  # larger maps are averaged down to this many queries and keys, because more cannot be seen


def attention_maps(
    artifact: Artifact, data: str | None, count: int, progress: Progress, cache: GraphCache | None = None
) -> AttentionMaps:
    """Compare the attention of FP32 and of the artifact's graph on the first `count` images of the data.

    Args:
        artifact: the artifact. Its model must be available here too.
        data: DATA; None is the recipe's data for evaluation, or else for calibration.
        count: the number of images.
        progress: gets the steps and warnings.
        cache: the cache of exported graphs, which may have the float32 graph.

    Raises:
        DataError: there are no images.
        SourceError: the FP32 model cannot be loaded here.
        CompileError: ONNX Runtime does not run the artifact's graph.
        GraphError: the probabilities of no attention site can be read.
    """
    manifest = artifact.manifest
    spec, images = read_images(manifest, data, count)
    structure = structures.load(artifact.file(SITES))
    all_tokens = max((site.key_tokens or 0 for site in structure.attention), default=0)
    with ExitStack() as stack:
        work = stack.enter_context(scratch_folder("report"))
        with progress.step("Read the artifact's attention"):
            deployed = _Side(_load_graph(artifact.file(GRAPH)), structure, work / "deployed.onnx", stack)
        reference = _Side(_rebuild_float32(artifact, work, progress, cache), structure, work / "reference.onnx", stack)
        left_out = {**reference.missing, **deployed.missing}
        shared = [site for site in structure.attention if site.name in reference.taps and site.name in deployed.taps]
        if not shared:
            reason = next(iter(left_out.values()), "the model has no attention site")
            raise GraphError(
                f"no attention can be read: {reason}", fix="Run vitdeploy inspect to see the model's sites."
            )
        pairs: dict[str, list[_Pair]] = {}
        with progress.step("Compare attention maps", len(images)) as advance:
            for image in images:
                inputs = feed(artifact, image)
                sides = zip(reference.run(inputs, shared), deployed.run(inputs, shared), strict=True)
                for (name, expected), (_, actual) in sides:
                    is_whole = manifest.tokens is None or expected.shape[-1] == all_tokens
                    pair = _make_pair(expected, actual, manifest.preprocess.size if is_whole else None)
                    pairs.setdefault(name, []).append(pair)
                advance(1)
    sites = tuple(_make_site(site, pairs[site.name]) for site in shared)
    return AttentionMaps(spec, tuple(channels_last(image) for image in images), sites, tuple(left_out.items()))


class _Pair:
    """The maps of both sides for one site and image, and their distance for each head."""

    def __init__(self, what: str, *, on_image: bool, reference: Array, deployed: Array, drift: Array) -> None:
        self.what, self.on_image = what, on_image
        self.reference, self.deployed, self.drift = reference, deployed, drift


def read_images(manifest: Manifest, data: str | None, count: int) -> tuple[str, list[Array]]:
    """Return DATA and its first images, each as a batch of the size that the graph takes: uint8 NCHW."""
    spec = data or manifest.recipe.data.evaluation or manifest.recipe.data.calibration
    if spec is None:
        raise DataError("there are no images for attention maps", fix="Give --data DATA: a folder, or an .npz.")
    dataset = open_dataset(spec, manifest.preprocess, labels=None, need_labels=False, split="evaluation")
    copies = manifest.recipe.target.batch.min
    return spec, [np.repeat(batch, copies, axis=0) for batch, _ in batches(dataset, 1, limit=count)]


def _load_graph(path: Path) -> Graph:
    from vitdeploy.graph.model import load

    return load(path)


def _rebuild_float32(artifact: Artifact, work: Path, progress: Progress, cache: GraphCache | None) -> Graph:
    """Return the model's float32 graph, with attention in plain operators.

    Raises:
        SourceError: the model cannot be loaded here.
        MeasureError: its weights have changed since the export.
    """
    from vitdeploy.passes.lower_primitives import LowerPrimitives

    prepared = rebuild_graph(artifact, work, progress, cache=cache)
    LowerPrimitives().apply(prepared.graph)  # their softmax can be read in every version of ONNX Runtime
    return prepared.graph


class _Side:
    """A graph that returns its attention probabilities, opened in ONNX Runtime."""

    def __init__(self, graph: Graph, structure: Structure, path: Path, stack: ExitStack) -> None:
        from vitdeploy.graph.onnx_session import OnnxSession
        from vitdeploy.graph.probabilities import with_taps

        tapped, taps, self.missing = with_taps(graph, structure)
        tapped.save(path)
        self._session: OnnxSession = stack.enter_context(OnnxSession(path, lean=True))
        self.taps = {tap.site.name: tap for tap in taps}

    def run(self, inputs: Feeds, sites: list[AttentionSite]) -> Iterator[tuple[str, Array]]:
        """Yield for each site the probabilities of the first image: (windows, heads, queries, keys) float32."""
        count = len(images_of(inputs))
        for group in _group_taps([self.taps[site.name] for site in sites], count):
            names = [name for tap in group for name in tap.tensors]
            outputs = self._session.run(inputs, outputs=list(dict.fromkeys(names)))
            for tap in group:
                probabilities = tap.read(outputs)
                yield tap.site.name, probabilities[: max(1, len(probabilities) // count)]


def _group_taps(taps: list[Tap], batch: int) -> Iterator[list[Tap]]:
    """Group taps so that the probabilities of a group fit into `_RUN_BYTES`. A tap of unknown size is alone."""
    group: list[Tap] = []
    size = 0
    for tap in taps:
        tap_bytes = 4 * batch * (tap.count or _RUN_BYTES)
        if group and size + tap_bytes > _RUN_BYTES:
            yield group
            group, size = [], 0
        group.append(tap)
        size += tap_bytes
    if group:
        yield group


def _make_pair(reference: Array, deployed: Array, size: tuple[int, int] | None) -> _Pair:
    """Reduce both sides' probabilities, (windows, heads, queries, keys), to maps that can be shown.

    Args:
        reference: of FP32.
        deployed: of the artifact.
        size: of the image; None if the keys are no patches of it, but merged tokens.

    Raises:
        GraphError: the shapes differ, so that the sides cannot be compared.
    """
    if reference.shape != deployed.shape:
        message = f"the attention of FP32 has shape {reference.shape}, that of the artifact {deployed.shape}"
        raise GraphError(message, fix="Export the artifact again with this version.")
    drift = 0.5 * np.abs(reference - deployed).sum(axis=-1).mean(axis=(0, 2))
    windows, _, queries, keys = reference.shape
    grid = patch_grid(keys, size) if windows == 1 and size is not None else None
    if grid is None:
        what = "queries × keys, mean over heads" + (f" and {windows} windows" if windows > 1 else "")
        maps = [_shrink(side.mean(axis=(0, 1))) for side in (reference, deployed)]
        return _Pair(what, on_image=False, reference=maps[0], deployed=maps[1], drift=drift)
    prefix, rows, columns = grid
    by_first = prefix > 0 and queries in (1, keys)
    what = "what the first token attends to" if by_first else "what all queries attend to on average"
    lines = [side[0].mean(axis=0)[0] if by_first else side[0].mean(axis=(0, 1)) for side in (reference, deployed)]
    maps = [line[prefix:].reshape(rows, columns) for line in lines]
    return _Pair(f"{what}, mean over heads", on_image=True, reference=maps[0], deployed=maps[1], drift=drift)


def patch_grid(keys: int, size: tuple[int, int]) -> tuple[int, int, int] | None:
    """Return (tokens before the patches, rows, columns) for `keys` tokens on an image of `size`; None without a grid.

    Patches are assumed to be square, so the grid has the image's aspect ratio. Of several solutions the one with the
    fewest tokens before the patches is returned: 197 keys on 224 × 224 are 1 + 14 × 14, and 1,374 keys on 518 × 518 are
    5 + 37 × 37.
    """
    height, width = size
    for prefix in range(_MAX_PREFIX_TOKENS + 1):
        rows = round(((keys - prefix) * height / width) ** 0.5) if keys > prefix else 0
        columns = round(rows * width / height)
        if rows > 1 and rows * columns == keys - prefix and rows * width == columns * height:
            return prefix, rows, columns
    return None


def _shrink(matrix: Array) -> Array:
    """Average over cells, to at most `_MAX_MATRIX` rows and columns. An incomplete last cell is dropped."""
    steps = [-(-length // _MAX_MATRIX) for length in matrix.shape]
    rows, columns = (length // step for length, step in zip(matrix.shape, steps, strict=True))
    cut = matrix[: rows * steps[0], : columns * steps[1]]
    return np.asarray(cut.reshape(rows, steps[0], columns, steps[1]).mean(axis=(1, 3)))


def _make_site(site: AttentionSite, pairs: list[_Pair]) -> Site:
    return Site(
        name=site.name,
        block=site.block,
        what=pairs[0].what,
        on_image=pairs[0].on_image,
        reference=np.stack([pair.reference for pair in pairs]),
        deployed=np.stack([pair.deployed for pair in pairs]),
        drift=np.mean([pair.drift for pair in pairs], axis=0),
    )


def channels_last(batch: Array) -> Array:
    """Return the first image of a uint8 batch, or the middle frame of the first clip: (height, width, channels)."""
    return np.asarray(middle_frame(batch[0]).transpose(1, 2, 0))
