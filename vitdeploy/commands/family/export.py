"""`vitdeploy export` of a promptable model: an artifact for each part, and the file that connects them."""

from __future__ import annotations

import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from vitdeploy import artifact as artifacts
from vitdeploy import sources, targets
from vitdeploy.artifact import Artifact, Parity
from vitdeploy.artifact.contents import file_digest
from vitdeploy.artifact.family import NO_MEMORY, Family, FamilyRecord, PartRecord, load_family, write_family
from vitdeploy.artifact.layout import PAIR_EXAMPLES
from vitdeploy.commands.export import export
from vitdeploy.data.point_prompts import BACKGROUND, BOTTOM_RIGHT, EMPTY, FOREGROUND, SLOTS, TOP_LEFT
from vitdeploy.errors import UsageError
from vitdeploy.frozen import replace
from vitdeploy.pipeline.decoder_recipe import IN_FLOAT, is_float
from vitdeploy.pipeline.examples import save_examples
from vitdeploy.pipeline.graph_cache import GraphCache
from vitdeploy.pipeline.pair import PairClaim, check_pair, make_pair_examples
from vitdeploy.pipeline.summary import Exported
from vitdeploy.progress import Progress
from vitdeploy.recipe import DECODER, ENCODER, Recipe
from vitdeploy.runtime.pair import link_parts

_LABELS = {
    "background": BACKGROUND, "foreground": FOREGROUND, "top_left": TOP_LEFT, "bottom_right": BOTTOM_RIGHT,
    "empty": EMPTY,
}  # fmt: skip


class ExportedFamily(BaseModel):
    """The summary that `export` and `compile` print of a family.

    `parity` is the compiled parts in turn against the whole model, and `mask_iou` the overlap of their masks. Both are
    None where the parts cannot run.
    """

    model_config = ConfigDict(frozen=True)
    artifact: str
    stage: Literal["bundle", "artifact"]
    seconds: float
    parts: dict[str, Exported]
    parity: Parity | None
    graph_parity: Parity | None
    mask_iou: float | None
    memory: str = NO_MEMORY
    notes: tuple[str, ...] = ()
    next: str = ""


@dataclass(frozen=True)
class FamilyResult:
    """The family that a command made, and the summary that it prints."""

    family: Family
    summary: ExportedFamily


def export_family(
    recipe: Recipe,
    out: Path,
    progress: Progress,
    *,
    force: bool = False,
    verify: bool = False,
    cache: GraphCache | None = None,
) -> FamilyResult:
    """Export both parts of a promptable model, and compare them in turn with the whole model.

    Args:
        recipe: the recipe of a model that `sources.list_parts` names parts of.
        out: the folder to write.
        progress: gets the steps and warnings.
        force: replace a family or an artifact at `out`.
        verify: check the numbers after every pass.
        cache: the cache of exported graphs; None exports again.

    Raises:
        VitdeployError: a step failed. Nothing is left behind.
    """
    started = time.monotonic()
    batch = recipe.target.batch
    if not batch.static or batch.opt != 1:
        raise UsageError(f"a promptable model takes one image at a time, not {batch}", fix="Leave out --batch.")
    artifacts.refuse_existing(out, force=force)
    recipes: dict[str, Recipe] = {ENCODER: fit_part(recipe, "encoder"), DECODER: fit_part(recipe, "decoder")}
    with artifacts.atomic_folder(out, force=force) as folder:
        work = folder / "work"  # a folder that is being written is locked, and so are new ones inside of it
        work.mkdir()
        results = {
            part: export(one, work / part, progress, verify=verify, cache=cache) for part, one in recipes.items()
        }
        with progress.step("Run the whole model"):
            examples = make_pair_examples(sources.load(recipes[ENCODER].model, size=recipes[ENCODER].image_size))
            save_examples(folder / PAIR_EXAMPLES, examples, recipe.target.input)
        parts = {name: place(result.artifact, folder / name) for name, result in results.items()}
        work.rmdir()
        links = link_parts(parts[ENCODER], parts[DECODER])
        claim = check_pair(parts[ENCODER], parts[DECODER], links, examples.pairs(recipe.target.input), progress)
        reasons = {DECODER: _explain_float(recipe)}
        write_family(folder, make_record(recipe, parts, links, claim, reasons, folder / PAIR_EXAMPLES))
        summaries = {name: rename(result.summary, work, out) for name, result in results.items()}
    family = load_family(out)
    return FamilyResult(family, summarize(family, summaries, time.monotonic() - started))


def make_record(
    recipe: Recipe,
    parts: dict[str, Artifact],
    links: dict[str, str],
    claim: PairClaim,
    reasons: dict[str, str],
    examples: Path,
) -> FamilyRecord:
    """Return what family.json says about parts that were just made."""
    return FamilyRecord(
        model=recipe.model.spec,
        weights=parts[ENCODER].manifest.model.weights,
        parts={
            name: PartRecord(
                manifest=part.digest, precision=part.manifest.target.precision, reason=reasons.get(name, "")
            )
            for name, part in parts.items()
        },
        links=links,
        slots=SLOTS,
        labels=_LABELS,
        graph_parity=claim.graphs,
        parity=claim.compiled,
        mask_iou=claim.mask_iou,
        doubts=claim.doubts,
        examples=file_digest(examples),
    )


def summarize(family: Family, parts: dict[str, Exported], seconds: float) -> ExportedFamily:
    """Return the summary of a family and of its parts."""
    record = family.record
    stage: Literal["bundle", "artifact"] = (
        "artifact" if all(part.stage == "artifact" for part in parts.values()) else "bundle"
    )
    notes = [f"{name} in {part.precision}: {part.reason}" for name, part in record.parts.items() if part.reason]
    notes += [f"doubt: {doubt}" for doubt in record.doubts]
    if record.parity is None:
        notes.append("the pair was not run here, so its numbers are not compared with the whole model")
    following = f"vitdeploy compile {family.path}" if stage == "bundle" else f"vitdeploy bench {family.path}"
    return ExportedFamily(
        artifact=str(family.path),
        stage=stage,
        seconds=round(seconds, 1),
        parts=parts,
        parity=record.parity,
        graph_parity=record.graph_parity,
        mask_iou=record.mask_iou,
        notes=tuple(notes),
        next=following,
    )


def fit_part(recipe: Recipe, part: Literal["encoder", "decoder"]) -> Recipe:
    """Return the recipe of a part. The decoder stays in float where the encoder is quantized."""
    own = replace(recipe, model=replace(recipe.model, part=part))
    if part == ENCODER:
        return own
    kind = recipe.precision.kind
    precision = replace(recipe.precision, max_drop_pp=None)
    if kind is not None and not is_float(kind):
        default = targets.find(recipe.target).default_precision
        precision = replace(precision, kind=default, quantizer=None, seconds=None)  # compared with nothing
    return replace(own, precision=precision, target=replace(recipe.target, input="normalized"))


def _explain_float(recipe: Recipe) -> str:
    kind = recipe.precision.kind
    return "" if kind is None or is_float(kind) else IN_FLOAT


def place(artifact: Artifact, folder: Path) -> Artifact:
    """Move an artifact to its place in the family."""
    artifact.path.rename(folder)
    return dataclasses.replace(artifact, path=folder)


def rename(summary: Exported, folder: Path, out: Path) -> Exported:
    """Return a summary that names the final folder."""
    text = summary.model_dump_json().replace(json.dumps(str(folder))[1:-1], json.dumps(str(out))[1:-1])
    return Exported.model_validate_json(text)
