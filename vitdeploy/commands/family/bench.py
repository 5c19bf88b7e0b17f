"""`vitdeploy bench` of a family: each part, and one image with one prompt through both."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from vitdeploy.artifact.family import Family
from vitdeploy.commands.bench.bench import Plan, bench
from vitdeploy.errors import MeasureError, SourceError, UsageError
from vitdeploy.evidence import Bench, Role
from vitdeploy.frozen import replace
from vitdeploy.measure import latency
from vitdeploy.pipeline.examples import load_examples
from vitdeploy.progress import Progress
from vitdeploy.recipe import REFERENCE
from vitdeploy.runtime.artifact_session import count_threads
from vitdeploy.runtime.pair import open_pair, open_reference_pair
from vitdeploy.runtime.provenance import describe_provenance
from vitdeploy.session import Feeds, Session


class BenchedFamily(BaseModel):
    """The bench of each part, and of one image with one prompt: encoder and decoder in turn."""

    model_config = ConfigDict(frozen=True)
    parts: dict[str, Bench]
    pair: Bench


@dataclass(frozen=True)
class _Reference:
    """The whole model in PyTorch; None, with the reason, where it is not available."""

    session: Session | None
    missing: str = ""


def bench_family(family: Family, progress: Progress, plan: Plan) -> BenchedFamily:
    """Time both parts by themselves, then one image with one prompt. Each bench is stored beside what it is about.

    Args:
        family: a compiled family.
        progress: gets the steps and warnings.
        plan: its time is spent three times: on each part, and on the pair.

    Raises:
        UsageError: the plan is not for a family.
        TargetUnavailable: it cannot run here.
    """
    _refuse_others(plan)
    parts = {name: bench([part], progress, plan) for name, part in family.parts.items()}
    return BenchedFamily(parts=parts, pair=_bench_pair(family, progress, plan))


def _bench_pair(family: Family, progress: Progress, plan: Plan) -> Bench:
    manifest = family.encoder.manifest
    threads = plan.threads or count_threads(manifest.recipe)
    form = manifest.recipe.target.input
    example = load_examples(family.examples, manifest.preprocess, form)[0]
    image = manifest.inputs[0].name
    feed = example.feed(image)
    with ExitStack() as stack:
        pair = stack.enter_context(open_pair(family, threads, progress))
        reference = _open_reference(family, threads, stack)
        sessions: list[Session] = [pair]
        feeds: list[Feeds] = [feed]
        if reference.session is not None:
            sessions.insert(0, reference.session)
            feeds.insert(0, load_examples(family.examples, manifest.preprocess, "normalized")[0].feed(image))
        with progress.step("Time one image with one prompt", 100):
            result = latency.measure(sessions, feeds, batch=1, seconds=plan.seconds or manifest.recipe.bench.seconds)
    roles: list[Role] = ["artifact"] if reference.session is None else ["reference", "artifact"]
    runs = tuple(
        replace(
            run, role=role, speedup=run.speedup if reference.session else None,
            manifest=family.digest if role == "artifact" else "",
        )
        for run, role in zip(result.runs, roles, strict=True)
    )  # fmt: skip
    missing = {} if reference.session else {REFERENCE: reference.missing}
    for name, reason in missing.items():
        progress.warn(f"no speed-up of the pair over {name}, which is not available here: {reason}")
    provenance = describe_provenance(manifest, threads, "torch")
    result = replace(result, runs=runs, missing=missing, machine=provenance.machine, provenance=provenance)
    return family.write_evidence(result)


def _open_reference(family: Family, threads: int, stack: ExitStack) -> _Reference:
    """Open the parts in PyTorch. The stack closes them."""
    try:
        return _Reference(stack.enter_context(open_reference_pair(family, threads, same_device=True)))
    except (SourceError, MeasureError) as error:
        return _Reference(None, error.message)


def _refuse_others(plan: Plan) -> None:
    """Refuse what is not measured of a family."""
    given = {
        "--against": plan.against, "--batch": plan.batches, "--profile": plan.profile, "--streams": plan.streams,
        "--end-to-end": plan.end_to_end, "--any-model": plan.any_model, "--sustained": plan.sustained,
    }  # fmt: skip
    if plan.scenario != "single-stream":
        given["--scenario"] = True
    named = [flag for flag, value in given.items() if value]
    if named:
        raise UsageError(
            f"{named[0]} is for one artifact, not for a family",
            fix="Leave it out, or bench DIR/encoder and DIR/decoder.",
        )
