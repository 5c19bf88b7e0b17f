"""From a Vision Transformer checkpoint to a compiled edge artifact whose speed, fusion and accuracy are proven.

    source ─▶ export ─▶ raise ─▶ rewrite ─▶ quantize ─▶ lower ─▶ [bundle] ─▶ compile ─▶ [artifact] ─▶ measure ─▶ gate

Each bracket is a folder on disk. In Python:

    artifact = vitdeploy.export("timm:deit_tiny_patch16_224", target="openvino")
    with vitdeploy.load(artifact.path) as model:
        print(model.predict("cat.jpg")[0].top[0].label)
    print(vitdeploy.bench(artifact).own)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from vitdeploy import telemetry as _telemetry
from vitdeploy.proofs import bench, evaluate, gate, inspect, report, tune_streams
from vitdeploy.version import __version__

_telemetry.switch_off()  # before anything imports an engine, whatever of vitdeploy is imported first

if TYPE_CHECKING:
    from vitdeploy.artifact import Artifact
    from vitdeploy.commands.predict import Deployed, Guess, Prediction
    from vitdeploy.evidence import Audit, Bench, Eval, Gate, Scenario, StreamTuning
    from vitdeploy.progress import Progress
    from vitdeploy.recipe import Recipe

__all__ = [
    "Artifact", "Audit", "Bench", "Deployed", "Eval", "Gate", "Guess", "Prediction", "Recipe",
    "StreamTuning", "VitdeployError",
    "__version__", "bench", "evaluate", "export", "gate", "inspect", "load", "report", "tune_streams",
]  # fmt: skip


def export(
    model: str | None = None,
    *,
    target: str | None = None,
    device: str | None = None,
    precision: str | None = None,
    max_drop: float | None = None,
    seconds: float | None = None,
    merge_tokens: str | None = None,
    drop_tokens: str | None = None,
    weights: str | None = None,
    weights_key: str | None = None,
    num_classes: int | None = None,
    calibration: str | None = None,
    batch: str | int | None = None,
    image_size: str | None = None,
    labels: str | None = None,
    prompts: str | Sequence[str] | None = None,
    templates: Sequence[str] | None = None,
    bind: Mapping[str, object] | None = None,
    examples: Mapping[str, str] | None = None,
    outputs: str | Sequence[str] | None = None,
    part: str | None = None,
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
        seconds: the time to measure, for each comparison of speed; the recipe's when it is None, else a few seconds.
        merge_tokens: blocks with the tokens to remove behind their attention, "3:60,6:40"; "auto"; "off" by default.
        drop_tokens: the same for tokens of fixed positions, chosen on the calibration images.
        weights: "pretrained" (the default), "random", or a checkpoint.
        weights_key: the part of the checkpoint to take; "ema" for the averaged weights.
        num_classes: the number of classes of the head, 0 for none; as the checkpoint has when it is None.
        calibration: DATA for int8: a folder of images, an .npz, or "demo:digits".
        batch: a number, or "MIN:OPT:MAX".
        image_size: "HxW", or "MIN:OPT:MAX" of these.
        labels: a file with the names of the classes, or "imagenet"; the model's own when it is None.
        prompts: the texts that a model with a text tower answers with: a list, a file, or "a cat,a dog".
        templates: texts with a `{}` that each prompt is put into; of several the mean is taken.
        bind: values of inputs beside the image, by name: numbers, lists of numbers, or a file `.npz`.
        examples: files `.npz` with examples of inputs beside the image that stay open, by name.
        outputs: the names of the outputs to export, or "all"; those that the task reads when it is None.
        part: "encoder" or "decoder" of a promptable model, such as SAM.
        mean: one number for each channel, for pixels from 0 to 1; the model's own when it is None.
        std: the same for the standard deviation.
        interpolation: "bilinear", "bicubic", …; the model's own when it is None.
        resize: "shortest", "exact" or "letterbox"; the model's own when it is None.
        crop_pct: the share of the resized image that the model sees; the model's own when it is None.
        task: "classification", "segmentation", "instance-segmentation", "depth", "detection", "pose", "embedding" or
            "raw"; the model's when it is None.
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
    from vitdeploy.commands.export import export as run
    from vitdeploy.commands.export import read_recipe
    from vitdeploy.commands.export_order import default_folder
    from vitdeploy.commands.given import require_range
    from vitdeploy.pipeline.graph_cache import GraphCache
    from vitdeploy.progress import Silent

    require_range(seconds=(seconds, 0.1))
    base = read_recipe(Path(recipe)) if isinstance(recipe, (str, Path)) else recipe
    composed = recipes.compose(
        model, base=base, target=target, device=device, precision=precision, max_drop=max_drop,
        seconds=seconds, merge_tokens=merge_tokens, drop_tokens=drop_tokens, weights=weights,
        weights_key=weights_key, num_classes=num_classes, calibration=calibration, batch=batch, image_size=image_size,
        labels=labels, prompts=prompts, templates=templates, bind=bind, examples=examples, outputs=outputs, part=part,
        mean=mean, std=std,
        interpolation=interpolation, resize=resize, crop_pct=crop_pct, task=task,
    )  # fmt: skip
    out = Path(output) if output is not None else default_folder(composed)
    graphs = GraphCache() if cache else None
    return run(composed, out, progress or Silent(), force=force, verify=verify, cache=graphs).artifact


def load(
    path: Path | str,
    *,
    threads: int | None = None,
    scenario: Scenario = "single-stream",
    progress: Progress | None = None,
) -> Deployed:
    """Open an artifact to run it: `with vitdeploy.load(DIR) as model: model.predict("cat.jpg")`.

    Many threads may use what it returns at the same time.

    Args:
        path: the artifact's folder.
        threads: the number of CPU threads; the recipe's when it is None, else all cores.
        scenario: "single-stream" answers each image as soon as possible; "multi-stream" and "offline" answer many
            images in as little time as possible, with the streams and the batch that `tune_streams` stored.
        progress: gets a line if there is no such setting for this machine, and the artifact's own is used.

    Raises:
        UsageError: there is no such scenario.
        ArtifactError: the folder is damaged.
        TargetUnavailable: it cannot run on this machine.
    """
    from vitdeploy.commands.given import require_choice
    from vitdeploy.commands.predict import Deployed
    from vitdeploy.evidence import Scenario

    require_choice("scenario", scenario, get_args(Scenario))
    return Deployed(path, threads=threads, scenario=scenario, progress=progress)


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
        "StreamTuning": "evidence",
        "VitdeployError": "errors",
    }
    if name not in homes:
        raise AttributeError(f"module 'vitdeploy' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"vitdeploy.{homes[name]}"), name)
