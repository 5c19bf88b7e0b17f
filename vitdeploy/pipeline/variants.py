"""Write the variants of a bundle: a graph for each, over one file of weights."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from vitdeploy import precision as precisions
from vitdeploy.artifact import Trial, Variant
from vitdeploy.artifact.layout import GRAPH, SITES, WEIGHTS, variant_graph, variant_sites
from vitdeploy.artifact.variants import place_variant
from vitdeploy.frozen import replace
from vitdeploy.pipeline.candidate import Candidate
from vitdeploy.pipeline.examples import Examples
from vitdeploy.pipeline.exported_graph import check_graph
from vitdeploy.progress import Progress
from vitdeploy.recipe import InputForm


def write_variants(
    folder: Path,
    candidates: Sequence[tuple[Candidate, Trial]],
    selected: Candidate,
    examples: Examples,
    form: InputForm,
    progress: Progress,
) -> tuple[Variant, ...]:
    """Write the graphs and sites of candidates into a bundle, and make those of `selected` the bundle's own.

    The graphs are removed from the candidates' folders on the way, so that the disk holds each only once.

    Args:
        folder: of the bundle.
        candidates: with the trial of each.
        selected: one of them.
        examples: images with the reference's outputs, with which each graph is compared.
        form: the form in which the graphs take images.
        progress: gets the steps.

    Raises:
        ExportError: a graph gives NaN or infinity.
    """
    from vitdeploy.graph.model import load
    from vitdeploy.graph.shared_weights import SharedWeights

    variants = []
    with SharedWeights(folder / WEIGHTS) as weights:
        for candidate, trial in candidates:
            with progress.step(f"Write the variant {candidate.name}"):
                weights.add(load(candidate.folder / GRAPH), folder / variant_graph(candidate.name))
            shutil.move(candidate.folder / SITES, folder / variant_sites(candidate.name))
            for file in candidate.folder.glob(f"{GRAPH}*"):
                file.unlink()
            variants.append(_describe(candidate, trial))
    checked = []
    for variant in variants:
        types = precisions.kind_of(variant.precision).numbers.types
        with progress.step(f"Compare the variant {variant.name} with the reference"):
            parity = check_graph(
                folder / variant_graph(variant.name), examples, form,
                exact=variant.precision == "fp32", has_bfloat16="bf16" in types,
            )  # fmt: skip
        checked.append(replace(variant, graph_parity=parity))
    place_variant(folder, selected.name)
    return tuple(checked)


def _describe(candidate: Candidate, trial: Trial) -> Variant:
    return Variant(
        name=candidate.name,
        precision=candidate.name,
        passes=candidate.passes,
        quantized=candidate.quantized.record,
        placement=candidate.quantized.placement,
        inputs=candidate.inputs,
        outputs=candidate.outputs,
        lost=trial.lost,
        judged_by=trial.judged_by,
        images=trial.images,
    )
