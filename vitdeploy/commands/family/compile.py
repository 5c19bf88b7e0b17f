"""`vitdeploy compile` of a family: compile both parts on the device, and compare them in turn with the whole model."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path

from vitdeploy import artifact as artifacts
from vitdeploy.artifact.family import Family, load_family, write_family
from vitdeploy.artifact.layout import PAIR_EXAMPLES
from vitdeploy.commands.compile import compile_bundle
from vitdeploy.commands.family.export import FamilyResult, place, rename, summarize
from vitdeploy.frozen import replace
from vitdeploy.pipeline.examples import load_examples
from vitdeploy.pipeline.pair import check_pair
from vitdeploy.progress import Progress
from vitdeploy.recipe import DECODER, ENCODER


def compile_family(
    family: Family,
    out: Path | None,
    progress: Progress,
    *,
    force: bool = False,
    options: Mapping[str, object] | None = None,
) -> FamilyResult:
    """Compile both parts of a family on this device; see `compile_bundle`.

    Raises:
        VitdeployError: a part cannot be compiled, or the pair gives other numbers. The family stays as it was.
    """
    started = time.monotonic()
    in_place = out is None or out.absolute() == family.path.absolute()
    target = out or family.path
    with artifacts.atomic_folder(
        target, force=force or in_place, replaces=family.digest if in_place else None
    ) as folder:
        work = folder / "work"
        work.mkdir()
        results = {
            name: compile_bundle(part, work / name, progress, options=options) for name, part in family.parts.items()
        }
        parts = {name: place(result.artifact, folder / name) for name, result in results.items()}
        work.rmdir()
        (folder / PAIR_EXAMPLES).write_bytes(family.examples.read_bytes())
        manifest, links = parts[ENCODER].manifest, family.record.links
        examples = load_examples(folder / PAIR_EXAMPLES, manifest.preprocess, manifest.recipe.target.input)
        claim = check_pair(parts[ENCODER], parts[DECODER], links, examples, progress)
        records = {name: replace(family.record.parts[name], manifest=part.digest) for name, part in parts.items()}
        record = replace(
            family.record, parts=records, graph_parity=claim.graphs, parity=claim.compiled, mask_iou=claim.mask_iou,
            doubts=claim.doubts,
        )  # fmt: skip
        write_family(folder, record)
        summaries = {name: rename(result.summary, work, target) for name, result in results.items()}
    ready = load_family(target)
    return FamilyResult(
        dataclasses.replace(ready, path=target), summarize(ready, summaries, time.monotonic() - started)
    )
