"""From a Vision Transformer checkpoint to a compiled edge artifact whose speed, fusion and accuracy are proven.

    source ─▶ export ─▶ raise ─▶ rewrite ─▶ quantize ─▶ lower ─▶ [bundle] ─▶ compile ─▶ [artifact] ─▶ measure ─▶ gate

Each bracket is a folder on disk. In Python:

    artifact = vitdeploy.export("timm:deit_tiny_patch16_224", target="openvino")
    with vitdeploy.load(artifact.path) as model:
        print(model.predict("cat.jpg")[0].top[0].label)
    print(vitdeploy.bench(artifact).own)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from vitdeploy import telemetry as _telemetry
from vitdeploy.version import __version__

_telemetry.switch_off()  # before anything imports an engine, whatever of vitdeploy is imported first

if TYPE_CHECKING:
    from vitdeploy.artifact import Artifact
    from vitdeploy.commands.predict import Deployed, Guess, Prediction
    from vitdeploy.evidence import Audit, Bench, Eval, Gate, Scenario
    from vitdeploy.pipeline.graph_cache import GraphCache
    from vitdeploy.progress import Progress
    from vitdeploy.recipe import Recipe

__all__ = [
    "Artifact", "Audit", "Bench", "Deployed", "Eval", "Gate", "Guess", "Prediction", "Recipe", "VitdeployError",
    "__version__", "bench", "evaluate", "export", "gate", "inspect", "load", "report",
]  # fmt: skip


def export(
    model: str | None = None,
    *,
    target: str | None = None,
    device: str | None = None,
    precision: str | None = None,
    max_drop: float | None = None,
    weights: str | None = None,
    weights_key: str | None = None,
    num_classes: int | None = None,
    calibration: str | None = None,
    batch: str | int | None = None,
    image_size: str | None = None,
    labels: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    interpolation: str | None = None,
    resize: str | None = None,
    crop_pct: float | None = None,
    task: str | None = None,
    recipe: Recipe | Path | str | None = None,
    output: Path | str | None = None,
    force: bool = False,
    verify: bool = False,
    cache: bool = True,
    progress: Progress | None = None,
) -> Artifact:
    """Do what `vitdeploy export` does, with the same names and defaults, and return the artifact or bundle.

    Args:
        model: MODEL of the command line, such as "timm:deit_tiny_patch16_224"; the recipe's when it is None.
        target: "onnxruntime", "openvino", "tensorrt" or "tensorrt-rtx".
        device: the device that the target compiles for: "CPU", "GPU", "sm86", …
        precision: "fp32", "fp16", "int8", … or "auto"; the target's default when it is None.
        max_drop: the most that may be lost, in points of top-1, or of agreement with float32 without labels.
        weights: "pretrained" (the default), "random", or a checkpoint.
        weights_key: the part of the checkpoint to take; "ema" for the averaged weights.
        num_classes: the number of classes of the head, 0 for none; as the checkpoint has when it is None.
        calibration: DATA for int8: a folder of images, an .npz, or "demo:digits".
        batch: a number, or "MIN:OPT:MAX".
        image_size: "HxW", or "MIN:OPT:MAX" of these.
        labels: a file with the names of the classes, or "imagenet"; the model's own when it is None.
        mean: one number for each channel, for pixels from 0 to 1; the model's own when it is None.
        std: the same for the standard deviation.
        interpolation: "bilinear", "bicubic", …; the model's own when it is None.
        resize: "shortest", "exact" or "letterbox"; the model's own when it is None.
        crop_pct: the share of the resized image that the model sees; the model's own when it is None.
        task: "classification", "segmentation", "depth", "detection" or "embedding"; the model's when it is None.
        recipe: a recipe or its file; arguments override it.
        output: the folder to write; ./MODEL-TARGET-PRECISION when it is None.
        force: replace `output` if it is an artifact.
        verify: check the numbers after every pass.
        cache: reuse an exported graph from the cache, and add this one to it.
        progress: gets the steps and warnings.

    Raises:
        VitdeployError: it says what happened and how to fix it. No incomplete folder is left behind.
    """
    from vitdeploy import recipe as recipes
    from vitdeploy.commands.export import default_folder, read_recipe
    from vitdeploy.commands.export import export as run
    from vitdeploy.pipeline.graph_cache import GraphCache
    from vitdeploy.progress import Silent

    base = read_recipe(Path(recipe)) if isinstance(recipe, (str, Path)) else recipe
    composed = recipes.compose(
        model, base=base, target=target, device=device, precision=precision, max_drop=max_drop, weights=weights,
        weights_key=weights_key, num_classes=num_classes, calibration=calibration, batch=batch, image_size=image_size,
        labels=labels, mean=mean, std=std, interpolation=interpolation, resize=resize, crop_pct=crop_pct, task=task,
    )  # fmt: skip
    out = Path(output) if output is not None else default_folder(composed)
    graphs = GraphCache() if cache else None
    return run(composed, out, progress or Silent(), force=force, verify=verify, cache=graphs).artifact


def load(path: Path | str, *, threads: int | None = None) -> Deployed:
    """Open an artifact to run it: `with vitdeploy.load(DIR) as model: model.predict("cat.jpg")`.

    Many threads may use what it returns at the same time.

    Raises:
        ArtifactError: the folder is damaged.
        TargetUnavailable: it cannot run on this machine.
    """
    from vitdeploy.commands.predict import Deployed

    return Deployed(path, threads=threads)


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

    measured = measure_sensitivity(loaded, calibration, _or_silent(progress), cache=_open_cache(wanted=cache))
    return replace(audit, sensitivity=measured)


def bench(
    *artifacts: Artifact | Path | str,
    against: str | Sequence[str] = (),
    seconds: float | None = None,
    threads: int | None = None,
    batch: str | int | None = None,
    scenario: Scenario = "single-stream",
    streams: int | None = None,
    profile: bool = False,
    end_to_end: bool = False,
    images: str | None = None,
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
        scenario: "single-stream", "multi-stream" or "offline".
        streams: the number of inferences at the same time, for targets with streams.
        profile: also measure the time of each operator.
        end_to_end: also time the first artifact from an encoded image to the answer.
        images: the encoded images for that: a file, a folder or a glob; a made-up JPEG when it is None.
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

    require_range(seconds=(seconds, 0.1), threads=(threads, 1), streams=(streams, 1))
    require_choice("scenario", scenario, get_args(Scenario))
    plan = Plan(
        seconds=seconds, threads=threads, against=(against,) if isinstance(against, str) else tuple(against),
        scenario=scenario, batches=parse_batches(None if batch is None else str(batch)), streams=streams,
        profile=profile, any_model=any_model, end_to_end=end_to_end or images is not None, images=images,
    )  # fmt: skip
    return run(open_artifacts(artifacts, evidence, model, trust_code=trust_code), _or_silent(progress), plan)


def evaluate(
    artifact: Artifact | Path | str,
    *,
    data: str | None = None,
    limit: int | None = None,
    reference: Path | str | None = None,
    at_threshold: float | None = None,
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
        model: MODEL given again: the code of a "python:" model runs only if it is named here.
        trust_code: run the code that the artifact names.
        evidence: the folder for evidence; the artifact's own when it is None.
        progress: gets the steps and warnings.

    Raises:
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
    loaded = open_artifact(artifact, evidence, model, trust_code=trust_code)
    saved = None if reference is None else Path(reference)
    return run(loaded, data, _or_silent(progress), limit=limit, reference=saved, at_threshold=at_threshold)


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
    progress: Progress | None = None,
    **limits: float | None,
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
        progress: gets the steps and warnings.
        limits: by their names in a recipe, such as `max_drop_pp=0.5`. They override the recipe's unless they are None.

    Raises:
        RecipeError: there is no such limit, or it cannot have this value.
        ArtifactError: the artifact or the baseline is damaged.
        VitdeployError: it says what happened and how to fix it.
    """
    from vitdeploy.commands.gate import gate as run
    from vitdeploy.commands.given import open_artifact

    return run(
        open_artifact(artifact, evidence), limits, _or_silent(progress),
        baseline=None if baseline is None else Path(baseline),
        data=data,
        groups=None if groups is None else Path(groups),
        against=None if against is None else Path(against),
        save_baseline=None if save_baseline is None else Path(save_baseline),
        junit_file=None if junit is None else Path(junit),
        markdown_file=None if markdown is None else Path(markdown),
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
        artifacts: artifacts or their folders. The others appear in the plot of speed against accuracy.
        output: the file to write; report.html in the first artifact, or in `evidence`, when it is None.
        data: DATA for the attention maps; the recipe's when it is None.
        images: the number of images with attention maps, from 0 to 8.
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

    require_range(images=(images, 0, 8))
    loaded = open_artifacts(artifacts, evidence, model, trust_code=trust_code)
    out = None if output is None else Path(output)
    page = run(loaded, out, _or_silent(progress), images=images, data=data, cache=_open_cache(wanted=cache))
    return Path(page.report)


def _or_silent(progress: Progress | None) -> Progress:
    from vitdeploy.progress import Silent

    return progress or Silent()


def _open_cache(*, wanted: bool) -> GraphCache | None:
    from vitdeploy.pipeline.graph_cache import GraphCache

    return GraphCache() if wanted else None


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    homes = {
        "Artifact": "artifact",
        "Audit": "evidence",
        "Bench": "evidence",
        "Deployed": "commands.predict",
        "Eval": "evidence",
        "Gate": "evidence",
        "Guess": "commands.predict",
        "Prediction": "commands.predict",
        "Recipe": "recipe",
        "VitdeployError": "errors",
    }
    if name not in homes:
        raise AttributeError(f"module 'vitdeploy' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"vitdeploy.{homes[name]}"), name)
