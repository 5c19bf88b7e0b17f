"""Write the variants of a bundle: a graph for each, over one file of weights."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vitdeploy import precision as precisions
from vitdeploy.artifact import Parity, Trial, Variant
from vitdeploy.artifact.layout import GRAPH, SITES, WEIGHTS, variant_graph, variant_sites
from vitdeploy.artifact.variants import place_variant
from vitdeploy.frozen import replace
from vitdeploy.pipeline.candidate import Candidate
from vitdeploy.pipeline.examples import Examples
from vitdeploy.pipeline.exported_graph import check_graph
from vitdeploy.pipeline.safe_forms import list_safe_forms
from vitdeploy.progress import Progress
from vitdeploy.recipe import InputForm
from vitdeploy.targets import Target

if TYPE_CHECKING:
    from vitdeploy.graph.model import Graph
    from vitdeploy.graph.shared_weights import SharedWeights


def write_variants(
    folder: Path,
    candidates: Sequence[tuple[Candidate, Trial]],
    selected: Candidate,
    examples: Examples,
    form: InputForm,
    progress: Progress,
    target: Target,
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
        target: the first candidate gets the safe forms, if the target's compiler is known to need them.

    Raises:
        ExportError: a graph gives NaN or infinity.
    """
    from vitdeploy.graph.model import load
    from vitdeploy.graph.shared_weights import SharedWeights

    variants: list[Variant] = []
    forms: list[Variant] = []
    with SharedWeights(folder / WEIGHTS) as weights:
        for candidate, trial in candidates:
            with progress.step(f"Write the variant {candidate.name}"):
                graph = load(candidate.folder / GRAPH)
                weights.add(graph, folder / variant_graph(candidate.name))
            plain = _describe(candidate, trial)
            variants.append(plain)
            if not forms and has_safe_forms(target):
                with progress.step(f"Write the safe forms of {candidate.name}"):
                    forms = _write_forms(graph, candidate, plain, folder, weights, target)
            del graph
            shutil.move(candidate.folder / SITES, folder / variant_sites(candidate.name))
            for file in candidate.folder.glob(f"{GRAPH}*"):
                file.unlink()
    parities: dict[str, Parity] = {}
    for variant in (*variants, *forms):
        if variant.graph:  # that of another variant
            continue
        types = precisions.kind_of(variant.precision).numbers.types
        with progress.step(f"Compare the variant {variant.name} with the reference"):
            parities[variant.name] = check_graph(
                folder / variant_graph(variant.name), examples, form,
                exact=variant.precision == "fp32", has_bfloat16="bf16" in types,
            )  # fmt: skip
    checked = [replace(v, graph_parity=parities[v.files]) for v in (*variants, *forms)]
    place_variant(folder, next(variant for variant in checked if variant.name == selected.name))
    return tuple(checked)


def has_safe_forms(target: Target) -> bool:
    """Return whether the safe forms are for this target: a TensorRT, which has optimization levels."""
    return "optimization_level" in type(target).model_fields


def _write_forms(
    graph: Graph, candidate: Candidate, plain: Variant, folder: Path, weights: SharedWeights, target: Target
) -> list[Variant]:
    """Write the safe forms of a candidate, which compute the same over the same weights. Return them in order."""
    level = getattr(target, "optimization_level", None)
    variants = []
    for form in list_safe_forms(graph, candidate.structure, optimization_level=level).forms:
        variant = replace(
            plain, name=f"{plain.name}-{form.name}", form=form.name, note=form.note,
            optimization_level=form.optimization_level, lost=None, judged_by=None, images=0,
        )  # fmt: skip
        if form.has_graph:
            written = form.rewrite(graph, candidate.structure)
            weights.add(written.graph, folder / variant_graph(variant.name))
            written.structure.save(folder / variant_sites(variant.name))
            variant = replace(variant, passes=(*plain.passes, *written.passes))
        else:
            variant = replace(variant, graph=plain.name)
        variants.append(variant)
    return variants


def _describe(candidate: Candidate, trial: Trial) -> Variant:
    return Variant(
        name=candidate.name,
        precision=candidate.name,
        passes=candidate.passes,
        quantized=candidate.record,
        placement=candidate.placement,
        inputs=candidate.inputs,
        outputs=candidate.outputs,
        lost=trial.lost,
        judged_by=trial.judged_by,
        images=trial.images,
    )
