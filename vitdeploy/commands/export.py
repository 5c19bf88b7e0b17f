"""`vitdeploy export`: make an artifact from a recipe. Load, export, raise, quantize, lower, compile, audit."""

from __future__ import annotations

import dataclasses
import gc
import shutil
import time
from pathlib import Path

from vitdeploy import artifact as artifacts
from vitdeploy import recipe as recipes
from vitdeploy import sources, tasks
from vitdeploy.artifact import Variant
from vitdeploy.artifact.layout import BLOCKS, EXAMPLE, GRAPH, JUDGE
from vitdeploy.commands.export_order import Elsewhere, ExportOrder, complete
from vitdeploy.errors import ArtifactError
from vitdeploy.frozen import replace
from vitdeploy.graph.onnx_session import OnnxSession
from vitdeploy.pipeline.attempts import Chosen, Request
from vitdeploy.pipeline.candidate import CandidateBuilder
from vitdeploy.pipeline.choose import choose
from vitdeploy.pipeline.choose_merging import choose_merging
from vitdeploy.pipeline.dumps import GraphDumps
from vitdeploy.pipeline.examples import save_examples
from vitdeploy.pipeline.exported_graph import check_graph
from vitdeploy.pipeline.finish import draft_manifest, finish
from vitdeploy.pipeline.graph_cache import GraphCache
from vitdeploy.pipeline.judge_data import save_judge_data
from vitdeploy.pipeline.outputs import explain_unread, note_unread
from vitdeploy.pipeline.prepare import FLOAT32, Options, Prepared, prepare
from vitdeploy.pipeline.record_blocks import record_blocks
from vitdeploy.pipeline.summary import ExportResult, summarize_export
from vitdeploy.pipeline.variants import has_safe_forms, write_variants
from vitdeploy.progress import Progress
from vitdeploy.recipe import InputSpec, Recipe


def export(
    recipe: Recipe,
    out: Path,
    progress: Progress,
    *,
    force: bool = False,
    verify: bool = False,
    elsewhere: Elsewhere | None = None,
    cache: GraphCache | None = None,
    dumps: Path | None = None,
) -> ExportResult:
    """Make the artifact that `recipe` describes; or a bundle, if the target is compiled on another device.

    With another machine in `elsewhere` the result is always a bundle. The target need not be installed here, the
    precision must be one that the other machine's CPU has, and speeds of this machine do not decide anything.

    Args:
        recipe: the model, the target and everything else.
        out: the folder to write.
        progress: gets the steps and warnings.
        force: replace an artifact at `out`.
        verify: check the numbers after every pass.
        elsewhere: the machine that compiles and runs it, if it is not this one.
        cache: the cache of exported graphs; None exports again.
        dumps: a folder for the graph after each phase; None writes no graphs.

    Raises:
        VitdeployError: a step failed. Nothing is left behind.
    """
    started = time.monotonic()
    order = complete(recipe, elsewhere)
    artifacts.refuse_existing(out, force=force)
    with artifacts.atomic_folder(out, force=force) as folder:
        work = folder / "work"
        work.mkdir()
        reduced = order.precision is None or not order.precision.is_float32
        tokens = order.recipe.tokens
        calibrated = reduced or tokens.drops or tokens.searches
        options = Options(calibrated=calibrated, half=reduced, verify=verify, cache=cache, dumps=GraphDumps(dumps))
        prepared = prepare(order.recipe, order.dialect, work, progress, options)
        facts, spec = prepared.facts, order.recipe.target
        builder = CandidateBuilder(
            prepared, order.target, spec.batch, spec.input, work, progress, options.dumps, order.dialect
        )
        request = Request(order.recipe.precision, order.untimed, prepared.judging, order.variants, order.host)
        chosen = choose(builder, request, order.precision, progress)
        if tokens.searches:
            merging = choose_merging(builder, request, chosen, work, progress)
            chosen, builder = merging.chosen, merging.builder
            prepared, facts = builder.prepared, builder.prepared.facts
            del merging
        inside = _record_blocks(folder / BLOCKS, prepared, chosen, order, work, progress)
        variants: tuple[Variant, ...] = ()
        judge_notes: list[str] = []
        if len(chosen.variants) > 1 or (chosen.variants and has_safe_forms(order.target)):
            variants = write_variants(
                folder, chosen.variants, chosen.candidate, facts.examples, spec.input, progress, order.target
            )
            judge_notes = _store_judge_data(order.recipe, prepared, work, folder, progress)
        bundle, compiled = builder.move(chosen.candidate, folder)
        del prepared, builder  # their graphs take as much memory as the model
        gc.collect()
        save_examples(folder / EXAMPLE, facts.examples, spec.input)
        if variants:
            parity = next(v.graph_parity for v in variants if v.name == chosen.candidate.name)
        else:
            with progress.step("Compare the target-ready graph with the reference"):
                kind = chosen.candidate.precision
                parity = check_graph(
                    folder / GRAPH, facts.examples, spec.input,
                    exact=kind.is_float32, has_bfloat16="bf16" in kind.numbers.types,
                )  # fmt: skip
        shutil.rmtree(work)
        manifest = draft_manifest(order.recipe, order.target, facts, chosen, parity, variants)
        artifact, notes = finish(
            bundle, manifest, order.target, progress, out,
            examples=facts.examples.pairs(spec.input), here=elsewhere is None, compiled=compiled,
        )  # fmt: skip
    unread = note_unread(tasks.find(facts.task), facts.examples)
    notes = [*_notes(chosen, verify=verify), *inside, *judge_notes, *unread, *notes, *_note_model(recipe.model.spec)]
    summary = summarize_export(out, artifact.manifest, time.monotonic() - started, notes)
    return ExportResult(dataclasses.replace(artifact, path=out, model=recipe.model), summary)


def _record_blocks(
    path: Path, prepared: Prepared, chosen: Chosen, order: ExportOrder, work: Path, progress: Progress
) -> list[str]:
    """Store values inside the model for a device that cannot compute them. Return a note about the size."""
    if not order.target.watches_alone:
        return []
    candidates = {one.name: one for one in (chosen.candidate, *(c for c, _ in chosen.variants))}
    numbers = {name: candidate.precision.numbers for name, candidate in candidates.items()}
    with progress.step("Record the values inside the model"):
        note = record_blocks(
            path, prepared.graph, prepared.structure,
            {name: candidate.folder / GRAPH for name, candidate in candidates.items()},
            prepared.facts.examples, order.recipe.target.input, work,
            quantized=[name for name, kinds in numbers.items() if kinds.has_pairs],
            bfloat16=[name for name, kinds in numbers.items() if "bf16" in kinds.types],
        )  # fmt: skip
    return [note] if note else []


def read_recipe(path: Path) -> Recipe:
    """Read a recipe from a YAML file; relative paths in it are taken from its folder.

    Raises:
        RecipeError: the file is missing, is not YAML, or does not fit the schema.
    """
    return recipes.read(path, sources.anchor)


def save(recipe: Recipe, path: Path) -> None:
    """Write a recipe to a YAML file, from which `read_recipe` reads the same one. Its paths are absolute.

    Raises:
        ArtifactError: the file cannot be written.
    """
    model, data, gate = recipe.model, recipe.data, recipe.gate

    def anchor(value: str | None, *names: str) -> str | None:
        is_path = value is not None and value not in names and ":" not in value.partition("/")[0]
        return str(Path(str(value)).expanduser().absolute()) if is_path else value

    model = replace(
        model,
        spec=sources.anchor(model.spec, Path.cwd()),
        weights=anchor(model.weights, "pretrained", "random"),
        labels=anchor(model.labels, "imagenet"),
        bind={name: anchor(value) if isinstance(value, str) else value for name, value in model.bind.items()},
        inputs={name: _anchor_input(spec) for name, spec in model.inputs.items()},
    )
    data = replace(data, calibration=anchor(data.calibration), evaluation=anchor(data.evaluation))
    gate = replace(gate, require_signed=anchor(gate.require_signed))
    try:
        with artifacts.atomic_file(path) as temporary:
            temporary.write_text(replace(recipe, model=model, data=data, gate=gate).to_yaml(), encoding="utf-8")
    except OSError as error:
        raise ArtifactError(f"{path} cannot be written: {error.strerror}", fix="Choose another file.") from None


def _anchor_input(spec: InputSpec) -> InputSpec:
    """Return an input with the path of its file made absolute."""

    def anchor(path: str) -> str:
        return str(Path(path).expanduser().absolute())

    if isinstance(spec.value, str):
        return replace(spec, value=anchor(spec.value))
    return spec if spec.examples is None else replace(spec, examples=anchor(spec.examples))


def _store_judge_data(recipe: Recipe, prepared: Prepared, work: Path, folder: Path, progress: Progress) -> list[str]:
    """Store what a device needs to judge variants. Return a note about its size."""
    if prepared.judging is None or prepared.facts.model.weights == "random":
        return []
    if not recipe.data.judge:
        return ["without judge data the device takes the accuracy that was judged here"]
    path, task = folder / JUDGE, tasks.find(prepared.facts.task)
    unread = explain_unread(task, prepared.facts.examples)
    if unread:  # such as of a detector whose task is not named
        return [f"no judge data was stored: {unread}"]
    path.parent.mkdir(exist_ok=True)
    name = prepared.facts.examples.input_name
    with OnnxSession(work / FLOAT32, lean=True) as reference:
        data = save_judge_data(path, prepared.judging, reference, name, task, progress)
    if data is None:
        return ["no judge data was stored: one batch of images with its outputs is too large"]
    size = f"{path.stat().st_size / 2**20:.1f} MiB"
    return [f"judge data: {len(data)} images with FP32's outputs, {size} (--no-judge-data leaves it out)"]


def _notes(chosen: Chosen, *, verify: bool) -> list[str]:
    """Return what the user should know about the choice."""
    candidate = chosen.candidate
    notes = [*candidate.doubts, *chosen.notes]
    if verify and not candidate.precision.is_float32:
        notes.append("--verify checked the passes before quantization; later passes change the numbers on purpose")
    if not candidate.structure.attention:
        notes.insert(0, "the model has no attention site, so it is not recognised as a Vision Transformer")
    return notes


def _note_model(spec: str) -> list[str]:
    """Return how later commands get a model whose code an artifact does not run."""
    if not sources.runs_code(spec):
        return []
    return [f"bench, eval, debug and report compare it with the model if you give it again: --model {spec}"]
