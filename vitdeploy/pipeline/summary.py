"""The summary that `export` and `compile` print."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from vitdeploy.artifact import Artifact, FewerTokens, Manifest, Parity, PassRecord, Trial
from vitdeploy.evidence import PixelCheck, QuantizedShare
from vitdeploy.pipeline.outputs import describe_outputs
from vitdeploy.pipeline.pixels import describe_pixels
from vitdeploy.runtime.artifact_session import takes_no_image
from vitdeploy.sources import runs_code

_NOTHING_COMPARED = Parity(
    max_abs=0.0, reference_max=0.0, cosine=0.0, finite=False, batches=(), problem="what was compiled was not run here"
)


class Exported(BaseModel):
    """The summary that `export` and `compile` print."""

    model_config = ConfigDict(frozen=True)
    artifact: str
    stage: Literal["bundle", "artifact"]
    seconds: float
    passes: tuple[PassRecord, ...]
    weights: str
    exporter: str
    parity: Parity
    """The compiled model against FP32. If it cannot run here, nothing was compared: no batches, and not finite."""
    graph_parity: Parity | None
    precision: str = ""
    quantized: QuantizedShare | None = None
    """The share of weights and multiply-accumulates in this precision; None for float32."""
    tokens: FewerTokens | None = None
    """The tokens that are merged or dropped, and what that changes; None if all stay."""
    trials: tuple[Trial, ...] = ()
    """The precisions that were tried, with the accuracy that each lost and its speed-up."""
    faster_than_fp32: bool | None = None
    """None if it was not measured, or if the short measurement on this machine shows no difference."""
    notes: tuple[str, ...] = ()
    pixels: PixelCheck | None = None
    """The preprocessing compared with the model's own."""
    model_precision: str = "float32"
    """The precision that the model's file came with."""
    known_faults: tuple[str, ...] = ()
    """Public reports about the compiler that fit this graph."""
    host: str = ""
    """The machine that compiled it, as --host names it; empty for this machine."""
    next: str = ""
    """The command to run next."""


@dataclass(frozen=True)
class ExportResult:
    """The artifact or bundle that a command made, and the summary that it prints."""

    artifact: Artifact
    summary: Exported


def summarize_export(out: Path, manifest: Manifest, seconds: float, notes: list[str]) -> Exported:
    """Return the summary that `export` and `compile` print about a folder."""
    if manifest.model.weights == "random":
        notes = [*notes, "random weights: speed and fusion are real, accuracy means nothing"]
    if manifest.model.precision != "float32":
        notes = [manifest.model.describe_precision(), *notes]
    if manifest.model.checkpoint is not None:
        notes = [manifest.model.checkpoint.describe(), *notes]
    notes = [*notes, *describe_outputs(manifest), *describe_pixels(manifest.pixels), *_describe_file(manifest)]
    notes = [*notes, *_describe_tokens(manifest.tokens)]
    is_legacy = manifest.export.exporter == "legacy"
    way = "the legacy exporter wrote the graph" if is_legacy else "it wrote the graph in another way"
    notes = [*notes, *(f"{a.exporter} exporter failed: {a.error}; {way}" for a in manifest.export.fallbacks)]
    return Exported(
        artifact=str(out),
        stage=manifest.stage,
        seconds=round(seconds, 1),
        passes=manifest.passes,
        weights=manifest.model.weights,
        exporter=manifest.export.exporter,
        parity=manifest.device_parity or _NOTHING_COMPARED,
        graph_parity=manifest.graph_parity,
        precision=manifest.target.precision,
        quantized=manifest.quantized_share,
        tokens=manifest.tokens,
        trials=manifest.trials,
        faster_than_fp32=_is_faster(manifest.trials),
        notes=tuple(notes),
        pixels=manifest.pixels,
        known_faults=manifest.known_faults,
        next=_find_next(out, manifest),
        model_precision=manifest.model.precision,
    )


def _describe_tokens(tokens: FewerTokens | None) -> list[str]:
    """Return what fewer tokens change, on the example images."""
    if tokens is None:
        return []
    verb = "dropped" if tokens.dropped else "merged"
    counts = {block: len(patches) for block, patches in tokens.dropped.items()} or tokens.merged
    blocks = ", ".join(f"{removed} after block {block}" for block, removed in counts.items())
    images = f"; positions chosen on {tokens.calibration.images} images" if tokens.calibration is not None else ""
    return [
        f"tokens {verb}: {blocks}{images}. In FP32 this alone changes the outputs on the example images to cosine "
        f"{tokens.parity.cosine:.4f} with the model. The comparisons of the export are with the model with {verb} "
        "tokens; vitdeploy eval measures what is lost in all"
    ]


def _find_next(out: Path, manifest: Manifest) -> str:
    """Return the next command: compile a bundle; else measure what its weights allow."""
    recipe = manifest.recipe
    folder = shlex.quote(str(out))
    if manifest.stage == "bundle":
        return f"vitdeploy compile {folder}"
    again = f" --model {shlex.quote(recipe.model.spec)}" if runs_code(recipe.model.spec) else ""
    bench = f"vitdeploy bench {folder}{again}"
    if manifest.model.weights == "random" or takes_no_image(manifest):
        return bench
    data = "" if recipe.data.evaluation else " --data DATA"
    return f"vitdeploy eval {folder}{data}{again} && {bench}"


def _describe_file(manifest: Manifest) -> list[str]:
    """Return what the metadata of the model's file said about preprocessing, and what had to be assumed."""
    spec = manifest.model.spec
    notes = [f"from the metadata in {spec}: {', '.join(manifest.metadata)}"] if manifest.metadata else []
    if manifest.assumed:
        notes.append(
            f"{spec} does not say how its images are prepared; assumed: {', '.join(manifest.assumed)}. If that is "
            "wrong, give --mean and --std, --interpolation, --resize, --crop-pct"
        )
    return notes


def _is_faster(trials: Iterable[Trial]) -> bool | None:
    """Return True if the chosen candidate is faster than the float graph, False if slower, None if unknown."""
    ratio = next((t.speedup for t in trials if t.kept), None)
    if ratio is None or ratio.ci95[0] <= 1 <= ratio.ci95[1]:
        return None
    return ratio.ratio > 1
