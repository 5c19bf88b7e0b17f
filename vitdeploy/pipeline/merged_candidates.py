"""Candidates with merged tokens, made of a prepared model that is compared with them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from vitdeploy.artifact import FewerTokens
from vitdeploy.pipeline.candidate import CandidateBuilder
from vitdeploy.pipeline.fewer_tokens import merge_tokens
from vitdeploy.pipeline.prepare import Facts, Prepared
from vitdeploy.pipeline.token_schedules import list_schedules
from vitdeploy.recipe import Schedule


@dataclass(frozen=True)
class Possible:
    """The schedules that a model allows, from the most tokens left to the fewest; if none, the reason."""

    schedules: tuple[Schedule, ...]
    reason: str = ""


def list_possible(prepared: Prepared) -> Possible:
    """List the schedules to try."""
    from vitdeploy.passes.merge_tokens import find_mergeable

    sites = [site.block for site in prepared.structure.attention]
    last = max(sites, default=0)  # merging behind it would save one MLP
    mergeable = find_mergeable(prepared.graph, sorted(sites)[:-1] or sites, _unraised(prepared.facts))
    if not mergeable.blocks:
        return Possible((), next(iter(mergeable.refused.values())))
    schedules = list_schedules(mergeable.blocks, mergeable.patches, 1 + last)
    return Possible(tuple(schedules), "" if schedules else f"{mergeable.patches} patches are too few")


def merge_prepared(prepared: Prepared, schedule: Schedule, builder: CandidateBuilder, work: Path) -> Prepared:
    """Return the model with merged tokens, whose answers are those of its own float32 graph from here on.

    Args:
        prepared: the model; not changed.
        schedule: the blocks, and how many tokens are removed behind each.
        builder: of the model's candidates.
        work: an empty folder.

    Raises:
        ExportError: tokens cannot be merged behind one of the blocks.
    """
    from vitdeploy.graph.model import Graph
    from vitdeploy.graph.recognize import recognize
    from vitdeploy.graph.regions import assign_regions

    facts = prepared.facts
    graph, unraised = Graph(prepared.graph.model.clone()), _unraised(facts)
    path = work / "merged.onnx"
    records, examples, parity = merge_tokens(graph, schedule, unraised, facts.examples, builder.form, path)
    for file in work.glob(f"{path.name}*"):
        file.unlink()
    size = None if facts.sizes is None else facts.preprocess.size
    structure = assign_regions(graph, recognize(graph, unraised, size))
    tokens = FewerTokens(merged=schedule, parity=parity)
    facts = dataclasses.replace(facts, passes=(*facts.passes, *records), examples=examples, tokens=tokens)
    verifier = prepared.verify_against(examples)
    return dataclasses.replace(prepared, graph=graph, structure=structure, verifier=verifier, facts=facts)


def _unraised(facts: Facts) -> dict[str, str]:
    """Return the reason for each softmax that was not raised."""
    return {r.site: r.reason for record in facts.passes for r in record.refused if record.name == "raise-attention"}
