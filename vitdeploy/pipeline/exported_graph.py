"""The graph of a model: exported, taken from the cache, or the user's own file; each compared with the reference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from vitdeploy import sources
from vitdeploy.artifact import ExportRecord, Parity
from vitdeploy.artifact.temporary import scratch_folder
from vitdeploy.errors import ExportError, VitdeployError
from vitdeploy.frozen import replace
from vitdeploy.graph.parity import Example
from vitdeploy.pipeline.examples import Examples
from vitdeploy.pipeline.graph_cache import GraphCache, cache_key
from vitdeploy.progress import Progress
from vitdeploy.recipe import Batch, InputForm


def check_graph(path: Path, examples: Examples, form: InputForm, *, exact: bool, has_bfloat16: bool = False) -> Parity:
    """Compare the graph in `path` with the reference.

    Args:
        path: the ONNX file.
        examples: images with the reference's outputs.
        form: the form in which the graph takes images.
        exact: require agreement within the rounding of float32; else only finite numbers.
        has_bfloat16: compute in float32 with the rounded weights: ONNX Runtime has no convolution in bfloat16.

    Raises:
        ExportError: the numbers differ, or are not finite.
    """
    from vitdeploy import onnx_export

    with widened(path) if has_bfloat16 else nullcontext(path) as runnable:
        parity = onnx_export.check(runnable, examples.pairs(form), examples.input_name)
    reason = onnx_export.disagreement(parity)
    if exact and reason is not None:
        raise ExportError(f"the optimised graph is wrong: {reason}", fix="Run with --verify to find the pass.")
    if not parity.finite:
        raise ExportError("the graph in this precision gives NaN or infinity", fix="Use --precision fp32.")
    return parity


@contextmanager
def widened(path: Path) -> Iterator[Path]:
    """Yield a copy of a graph with float32 in place of every bfloat16."""
    from vitdeploy.graph.model import load
    from vitdeploy.graph.widening import widen_floats

    graph = load(path)
    widen_floats(graph.model)
    with scratch_folder("widened") as folder:
        graph.save(folder / path.name)
        yield folder / path.name


def export_graph(
    model: sources.LoadedModel,
    examples: Examples,
    batch: Batch,
    work: Path,
    progress: Progress,
    cache: GraphCache | None,
) -> tuple[Path, ExportRecord]:
    """Return the model as an ONNX file: the user's own, one from the cache, or one that is exported now."""
    from vitdeploy import onnx_export

    if model.module is not None:
        key = cache_key(model, examples.shapes, batch)
        path, pairs = work / "exported.onnx", examples.pairs()
        if cache is not None and (cached := _fetch(cache, key, pairs, examples.input_name, work)) is not None:
            return cached
        with progress.step("Export to ONNX and compare with the reference"):
            record = onnx_export.export(
                model.module, pairs, input_name=examples.input_name, batch=batch, path=path, outputs=model.outputs
            )
        if cache is not None:
            cache.keep(key, path, record)
        return path, record
    assert model.onnx is not None
    with progress.step("Read the ONNX file and run it"):
        return model.onnx, _check_file(model.onnx, examples)


def _fetch(
    cache: GraphCache, key: str, pairs: Sequence[Example], input_name: str, work: Path
) -> tuple[Path, ExportRecord] | None:
    """Return a cached graph if it gives the model's numbers; else discard it, and return None."""
    from vitdeploy import onnx_export

    if (cached := cache.fetch(key, work)) is None:
        return None
    path, record = cached
    with suppress(VitdeployError):  # a damaged file
        parity = onnx_export.check(path, pairs, input_name)
        if onnx_export.disagreement(parity) is None:
            return path, replace(record, parity=parity)
    cache.discard(key)
    for file in work.glob(f"{path.name}*"):
        file.unlink()
    return None


def _check_file(path: Path, examples: Examples) -> ExportRecord:
    """Check a user's ONNX file: its outputs, and the shapes that it declares."""
    from vitdeploy import onnx_export
    from vitdeploy.graph.model import load
    from vitdeploy.graph.screening import check_declared

    pairs = examples.pairs()
    parity = onnx_export.check(path, pairs, examples.input_name)
    graph = load(path)
    for example in pairs:
        check_declared(graph.model, example.outputs, path)
    return ExportRecord(exporter="none", opset=graph.opset, parity=parity)
