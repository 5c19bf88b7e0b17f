"""The Python API of the commands that prove an artifact: inspect, bench, tune_streams, evaluate, gate and report.

`vitdeploy` has them as its own names.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

if TYPE_CHECKING:
    from vitdeploy.artifact import Artifact
    from vitdeploy.evidence import Audit, Bench, Eval, Gate, Scenario, StreamTuning
    from vitdeploy.pipeline.graph_cache import GraphCache
    from vitdeploy.progress import Progress


def inspect(
    artifact: Artifact | Path | str,
    *,
    sensitivity: bool = False,
    calibration: str | None = None,
    model: str | None = None,
    trust_code: bool = False,
    evidence: Path | str | None = None,
    cache: bool = True,
    progress: Progress | None = None,
) -> Audit:
    """Do what `vitdeploy inspect` does: return what the compiler did, read from what it compiled.

    Args:
        artifact: an artifact, a bundle, or its folder.
        sensitivity: also quantize each linear layer alone, and see how much it changes the output.
        calibration: DATA for `sensitivity`; the recipe's when it is None.
        model: MODEL given again, for `sensitivity`: the code of a "python:" model runs only if it is named here.
        trust_code: run the code that the artifact names.
        evidence: the folder for evidence; the artifact's own when it is None.
        cache: reuse an exported graph from the cache.
        progress: gets the steps and warnings.

    Raises:
        ArtifactError: the folder is damaged.
        UsageError: `calibration`, `model` or `trust_code` without `sensitivity`.
        VitdeployError: it says what happened and how to fix it.
    """
    from vitdeploy.commands.given import open_artifact
    from vitdeploy.commands.inspect.inspect import inspect as run
    from vitdeploy.errors import UsageError

    for name, value in {"calibration": calibration, "model": model, "trust_code": trust_code}.items():
        if value and not sensitivity:
            raise UsageError(f"{name} is only used with sensitivity", fix="Add sensitivity=True, or leave it out.")
    loaded = open_artifact(artifact, evidence, model, trust_code=trust_code)
    audit = run(loaded)
    if not sensitivity:
        return audit
    from vitdeploy.commands.inspect.sensitivity import measure_sensitivity
    from vitdeploy.frozen import replace

    measured = measure_sensitivity(loaded, calibration, _or_silent(progress), cache=_open_cache(cache=cache))
    return replace(audit, sensitivity=measured)


def bench(
    *artifacts: Artifact | Path | str,
    against: str | Sequence[str] = (),
    seconds: float | None = None,
    threads: int | None = None,
    batch: str | int | None = None,
    scenario: Scenario | None = None,
    streams: int | None = None,
    profile: bool = False,
    end_to_end: bool = False,
    images: str | None = None,
    sustained: float | None = None,
    any_model: bool = False,
    model: str | None = None,
    trust_code: bool = False,
    evidence: Path | str | None = None,
    progress: Progress | None = None,
) -> Bench:
    """Do what `vitdeploy bench` does: time artifacts and the reference of the first one in turns.

    Args:
        artifacts: artifacts or their folders. The others are also compared with the first.
        against: what to compare with: "pytorch-fp32", "onnxruntime-fp32", …, or folders; the recipe's when it is empty.
        seconds: the time to measure, for each batch size; the recipe's when it is None, else 10.
        threads: the number of CPU threads, for all sides; the recipe's when it is None, else all cores.
        batch: batch sizes to measure one after the other: 4, or "1,4,8"; the artifact's own when it is None.
        scenario: "single-stream" (also when it is None), "multi-stream" or "offline". The last two use the streams and
            the batch that `tune_streams` stored.
        streams: the number of inferences at the same time, for targets with streams.
        profile: also measure the time of each operator.
        end_to_end: also time the first artifact from an encoded image to the answer.
        images: the encoded images for that: a file, a folder or a glob; a made-up JPEG when it is None.
        sustained: the longest time in minutes to run the first artifact alone until it is steady, from 3 to 240.
        any_model: time artifacts of different models too.
        model: MODEL given again: the code of a "python:" model runs only if it is named here.
        trust_code: run the code that the artifact names.
        evidence: the folder for evidence; the first artifact's own when it is None.
        progress: gets the steps and warnings.

    Raises:
        UsageError: there is no artifact, or they take different inputs or not these batches.
        TargetUnavailable: an artifact cannot run here.
        VitdeployError: it says what happened and how to fix it.
    """
    from vitdeploy.commands.bench.bench import Plan, parse_batches
    from vitdeploy.commands.bench.bench import bench as run
    from vitdeploy.commands.given import open_artifacts, require_choice, require_range
    from vitdeploy.evidence import Scenario

    require_range(seconds=(seconds, 0.1), threads=(threads, 1), streams=(streams, 1), sustained=(sustained, 3, 240))
    scenario = scenario or "single-stream"
    require_choice("scenario", scenario, get_args(Scenario))
    plan = Plan(
        seconds=seconds, threads=threads, against=(against,) if isinstance(against, str) else tuple(against),
        scenario=scenario, batches=parse_batches(None if batch is None else str(batch)), streams=streams,
        profile=profile, any_model=any_model, end_to_end=end_to_end or images is not None, images=images,
        sustained=sustained,
    )  # fmt: skip
    return run(open_artifacts(artifacts, evidence, model, trust_code=trust_code), _or_silent(progress), plan)


def tune_streams(
    artifact: Artifact | Path | str,
    *,
    scenario: Scenario | None = None,
    seconds: float | None = None,
    threads: int | None = None,
    evidence: Path | str | None = None,
    progress: Progress | None = None,
) -> StreamTuning:
    """Do what `vitdeploy bench --tune-streams` does: search for streams and batch with the most images a second.

    The result is stored beside the artifact. `bench` and `load` use it for the scenarios multi-stream and offline.

    Args:
        artifact: an artifact, or its folder.
        scenario: "multi-stream" or "offline"; both when it is None.
        seconds: the time to measure for each scenario; the recipe's when it is None, else 10.
        threads: the number of CPU threads of all streams together; the recipe's when it is None, else all cores.
        evidence: the folder for evidence; the artifact's own when it is None.
        progress: gets the steps and warnings.

    Raises:
        UsageError: there is only one setting, or the scenario is "single-stream".
        TargetUnavailable: the artifact cannot run here.
        VitdeployError: it says what happened and how to fix it.
    """
    from vitdeploy.commands.bench.tune_streams import tune_streams as run
    from vitdeploy.commands.given import open_artifact, require_choice, require_range
    from vitdeploy.evidence import Scenario

    require_range(seconds=(seconds, 0.1), threads=(threads, 1))
    if scenario is not None:
        require_choice("scenario", scenario, get_args(Scenario))
    loaded = open_artifact(artifact, evidence)
    return run(loaded, _or_silent(progress), scenario=scenario, seconds=seconds, threads=threads)


def evaluate(
    artifact: Artifact | Path | str,
    *,
    data: str | None = None,
    limit: int | None = None,
    reference: Path | str | None = None,
    at_threshold: float | None = None,
    ray: str | None = None,
    model: str | None = None,
    trust_code: bool = False,
    evidence: Path | str | None = None,
    progress: Progress | None = None,
) -> Eval:
    """Do what `vitdeploy eval` does: measure accuracy, and compare it with FP32 PyTorch on the same images.

    Args:
        artifact: an artifact, or its folder.
        data: DATA with labels; the recipe's when it is None.
        limit: stop after this many samples; all when it is None.
        reference: the reference's answers from `vitdeploy eval --save-reference`; it runs here when it is None.
        at_threshold: also compare what both sides find with at least this score.
        ray: "auto", or HOST:PORT of a Ray cluster, whose nodes answer parts of the data. The result is the same.
        model: MODEL given again: the code of a "python:" model runs only if it is named here.
        trust_code: run the code that the artifact names.
        evidence: the folder for evidence; the artifact's own when it is None.
        progress: gets the steps and warnings.

    Raises:
        RemoteError: the cluster does not answer.
        DataError: the data is damaged, or has no labels of this task.
        SourceError: the reference cannot be loaded here.
        VitdeployError: it says what happened and how to fix it.
    """
    from vitdeploy.commands.evaluate.evaluate import evaluate as run
    from vitdeploy.commands.given import open_artifact, require_range
    from vitdeploy.errors import UsageError

    require_range(limit=(limit, 1))
    if at_threshold is not None and not 0 < at_threshold < 1:
        raise UsageError(f"at_threshold is {at_threshold:g}", fix="Give a score between 0 and 1.")
    if ray is not None and reference is not None:
        raise UsageError("`ray` and `reference` do not go together", fix="Give one of the two.")
    loaded = open_artifact(artifact, evidence, model, trust_code=trust_code)
    saved = None if reference is None else Path(reference)
    return run(loaded, data, _or_silent(progress), limit=limit, reference=saved, at_threshold=at_threshold, ray=ray)


def gate(
    artifact: Artifact | Path | str,
    *,
    baseline: Path | str | None = None,
    data: str | None = None,
    groups: Path | str | None = None,
    against: Path | str | None = None,
    save_baseline: Path | str | None = None,
    evidence: Path | str | None = None,
    junit: Path | str | None = None,
    markdown: Path | str | None = None,
    before_signing: bool = False,
    log: str | Sequence[str] | None = None,
    log_artifact: bool = False,
    progress: Progress | None = None,
    **limits: float | str | None,
) -> Gate:
    """Do what `vitdeploy gate` does: judge the evidence that is stored beside an artifact. `verdict` is the result.

    Args:
        artifact: an artifact, a bundle, or its folder.
        baseline: the folder of an earlier artifact, or a file of `save_baseline`.
        data: DATA that the baseline folder, which may have other weights, and this artifact answer.
        groups: a file that names groups of images or classes, to judge both in each.
        against: the artifact that the bench timed this one against, for `min_speedup`.
        save_baseline: write the figures of this artifact to this file.
        evidence: the folder with the evidence; the artifact's own when it is None.
        junit: write the checks as JUnit XML to this file.
        markdown: write the checks as a Markdown table to this file.
        before_signing: leave `require_signed` of the recipe out, for a verdict that is to be signed.
        log: where the verdict is logged with the figures: "jsonl:FILE", "mlflow:URI", or several of them.
        log_artifact: copy the artifact to MLflow too.
        progress: gets the steps and warnings.
        limits: by their names in a recipe, such as `max_drop_pp=0.5`. They override the recipe's unless they are None.

    Raises:
        RecipeError: there is no such limit, or it cannot have this value.
        ArtifactError: the artifact or the baseline is damaged.
        VitdeployError: it says what happened and how to fix it.
    """
    from vitdeploy.commands.gate.gate import gate as run
    from vitdeploy.commands.given import open_artifact
    from vitdeploy.commands.log.logs import open_logs

    loaded, listener = open_artifact(artifact, evidence), _or_silent(progress)
    return run(
        loaded, limits, listener,
        logs=open_logs((log,) if isinstance(log, str) else log or (), listener, whole=log_artifact),
        baseline=None if baseline is None else Path(baseline),
        data=data,
        groups=None if groups is None else Path(groups),
        against=None if against is None else Path(against),
        save_baseline=None if save_baseline is None else Path(save_baseline),
        junit_file=None if junit is None else Path(junit),
        markdown_file=None if markdown is None else Path(markdown),
        before_signing=before_signing,
    )  # fmt: skip


def report(
    *artifacts: Artifact | Path | str,
    output: Path | str | None = None,
    data: str | None = None,
    images: int = 3,
    model: str | None = None,
    trust_code: bool = False,
    evidence: Path | str | None = None,
    cache: bool = True,
    progress: Progress | None = None,
) -> Path:
    """Do what `vitdeploy report` does: write all evidence into one HTML page, and return its path.

    Args:
        artifacts: artifacts or their folders. Several are shown side by side, in groups that may be compared, and so
            are the trials of a sweep, by its folder.
        output: the file to write; when it is None: report.html in the artifact, or in `evidence`. Of several artifacts:
            report.html in the current folder.
        data: DATA for the attention maps; the recipe's when it is None.
        images: the number of images with attention maps and merged tokens, from 0 to 8.
        model: MODEL given again: the code of a "python:" model runs only if it is named here.
        trust_code: run the code that the artifact names.
        evidence: the folder with the evidence; the first artifact's own when it is None.
        cache: reuse an exported graph from the cache.
        progress: gets the steps and warnings.

    Raises:
        UsageError: there is no artifact, the page cannot be written, or the extra `report` is not installed.
        VitdeployError: it says what happened and how to fix it.
    """
    from vitdeploy.commands.given import open_artifacts, require_range
    from vitdeploy.commands.report.report import report as run
    from vitdeploy.commands.side_by_side.page import is_side_by_side, report_side_by_side
    from vitdeploy.errors import UsageError

    require_range(images=(images, 0, 8))
    out = None if output is None else Path(output)
    if is_side_by_side(artifacts):
        for name, value in {"data": data, "model": model, "trust_code": trust_code, "evidence": evidence}.items():
            if value:
                raise UsageError(f"{name} is for the page of one artifact", fix="Leave it out, or give one artifact.")
        return Path(report_side_by_side(artifacts, out, _or_silent(progress)).report)
    (loaded,) = open_artifacts(artifacts, evidence, model, trust_code=trust_code)
    page = run(loaded, out, _or_silent(progress), images=images, data=data, cache=_open_cache(cache=cache))
    return Path(page.report)


def _or_silent(progress: Progress | None) -> Progress:
    from vitdeploy.progress import Silent

    return progress or Silent()


def _open_cache(*, cache: bool) -> GraphCache | None:
    from vitdeploy.pipeline.graph_cache import GraphCache

    return GraphCache() if cache else None
