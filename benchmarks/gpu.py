"""Run DeiT-Tiny and ViT-Base in ONNX Runtime on an NVIDIA GPU, against PyTorch on the same GPU.

    python -m benchmarks.gpu [--minutes 10] [--seconds 8] [--devices cuda,trt-rtx] [--out FILE]

For a machine with a GPU, with `vitdeploy[export]`, and with `vitdeploy[cuda]` in place of the package onnxruntime. Each
case is exported, compiled, compared with FP32, audited (which kernel runs each attention) and timed in turns with
PyTorch eager and torch.compile in the same precision. TF32 is off on all sides, except in TensorRT-RTX, which decides
by itself. Writes benchmarks/gpu.md row by row. A run that was stopped, or that has no time left for another case, is
continued by the next one. `--devices CPU --out FILE` tries the script on a machine without a GPU.
"""

from __future__ import annotations

import argparse
import copy
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import timm
import torch

from benchmarks.images import make_input
from benchmarks.tables import describe_machine, format_doubts, format_ratio, read_rows, write_page
from benchmarks.zoo.entry import redraw
from vitdeploy import environment, precision, sources, targets
from vitdeploy import recipe as recipes
from vitdeploy.artifact import Artifact
from vitdeploy.commands.export import export
from vitdeploy.commands.inspect.inspect import inspect
from vitdeploy.errors import VitdeployError
from vitdeploy.evidence import Audit
from vitdeploy.measure.latency import measure
from vitdeploy.measure.statistics import ratio_interval
from vitdeploy.pipeline.graph_cache import GraphCache
from vitdeploy.progress import Silent
from vitdeploy.recipe import ModelSpec, Recipe, TargetSpec
from vitdeploy.runtime.artifact_session import open_session
from vitdeploy.runtime.torch_session import TorchSession
from vitdeploy.session import Session

MODELS = {"DeiT-Tiny": "deit_tiny", "ViT-Base": "vit_base"}
"""Name in the table -> function of this file."""
DEVICES = ("cuda", "trt-rtx")
PRECISIONS = ("fp32", "fp16")
TABLE = Path(__file__).with_suffix(".md")
COLUMNS = (
    "model", "device", "precision", "cosine with FP32", "attention fused", "attention kernels", "nodes by provider",
    "torch eager, ms", "torch.compile, ms", "artifact, ms", "speed-up over eager", "speed-up over torch.compile",
    "measurement",
)  # fmt: skip
_EAGER, _COMPILED, _ARTIFACT = "torch eager", "torch.compile", "artifact"
_FAILED = "failed"
"""The beginning of the measurement of a case that failed. It is tried again."""


def deit_tiny() -> Any:
    """Return DeiT-Tiny with redrawn weights."""
    return _redrawn("deit_tiny_patch16_224")


def vit_base() -> Any:
    """Return ViT-Base with redrawn weights."""
    return _redrawn("vit_base_patch16_224")


def _redrawn(name: str) -> Any:
    module: Any = redraw(timm.create_model(name, pretrained=False))
    module.vitdeploy_preprocess = {"size": (224, 224), "mean": (0.5,) * 3, "std": (0.5,) * 3}
    return module


class Half(torch.nn.Module):
    """A module that computes in float16, and takes and gives float32 as FP16 artifacts do."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = copy.deepcopy(module).half()

    def forward(self, image: Any) -> Any:
        """Return the outputs for a batch of images."""
        return self.module(image.half()).float()


def main() -> None:
    """Run the cases that the table lacks, as far as the time reaches."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="begin no case after this time (default: 10)")
    parser.add_argument("--seconds", type=float, default=8.0, help="time to measure each case (default: 8)")
    parser.add_argument("--devices", default=",".join(DEVICES), help="devices of the target onnxruntime")
    parser.add_argument("--models", default=",".join(MODELS), help="names of models")
    parser.add_argument("--out", type=Path, default=TABLE, help="the page to write (default: benchmarks/gpu.md)")
    options = parser.parse_args()
    started = time.monotonic()
    rows = [row for row in read_rows(options.out, COLUMNS) if not row[-1].startswith(_FAILED)]
    devices, reasons = _find_devices(options.devices.split(","))
    for device, reason in reasons.items():
        print(f"{device}: not run: {reason}", flush=True)
    if not devices and not rows:
        write_page(options.out, _heading(reasons), COLUMNS, rows)
    done = {row[:3] for row in rows}
    for case in _list_cases(options.models.split(","), devices):
        if case in done:
            continue
        if time.monotonic() - started > 60 * options.minutes:
            print("there is no time left: run it again for the other cases")
            return
        rows.append(_run(case, options.seconds))
        print(*rows[-1], sep=" | ", flush=True)
        write_page(options.out, _heading(reasons), COLUMNS, rows)


def _find_devices(names: list[str]) -> tuple[list[str], dict[str, str]]:
    """Return the devices that can be used here, and the reasons of the others."""
    problems = {name: _target(name).unavailable() for name in names}
    reasons = {name: problem.why for name, problem in problems.items() if problem is not None}
    return [name for name in names if name not in reasons], reasons


def _target(device: str) -> targets.Target:
    return targets.find(TargetSpec(kind="onnxruntime", device=device))


def _list_cases(models: list[str], devices: list[str]) -> Iterator[tuple[str, str, str]]:
    for model in models:
        for device in devices:
            for kind in PRECISIONS:
                if kind in precision.names_for(_target(device)):
                    yield model, device, kind


def _run(case: tuple[str, str, str], seconds: float) -> tuple[str, ...]:
    """Return the row of a case; one that fails has the error as its measurement."""
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            artifact = export(_recipe(case), Path(folder) / "artifact", Silent(), cache=GraphCache()).artifact
            audit = inspect(artifact)
            return (*case, _parity(artifact), *_describe(audit), *_time(artifact, case, seconds))
        except (VitdeployError, RuntimeError) as error:  # torch raises RuntimeError if the GPU has no memory left
            missing = ("",) * (len(COLUMNS) - len(case) - 1)
            return (*case, *missing, " ".join(f"{_FAILED}: {error}".split())[:200])


def _recipe(case: tuple[str, str, str]) -> Recipe:
    model, device, kind = case
    made = recipes.compose(
        f"python:{Path(__file__)}:{MODELS[model]}", target="onnxruntime", device=device, precision=kind
    )
    options = {"tf32": False} if device == "cuda" else {}
    return recipes.with_target_options(made, options)


def _parity(artifact: Artifact) -> str:
    parity = artifact.manifest.device_parity
    return "" if parity is None else f"{parity.cosine:.6f}"


def _describe(audit: Audit) -> tuple[str, str, str]:
    """Return the fused attentions, their kernels, and the nodes of each provider."""
    kernels = Counter(audit.attention.kernels.values()) or Counter(u.reason for u in audit.attention.unfused)
    return (
        f"{audit.attention.fused} of {audit.attention.sites}",
        ", ".join(f"{count} {name}" for name, count in kernels.items()),
        ", ".join(f"{count} {name}" for name, count in audit.providers.items()),
    )


def _time(artifact: Artifact, case: tuple[str, str, str], seconds: float) -> tuple[str, ...]:
    """Return the latencies of PyTorch and the artifact, timed in turns, and the speed-ups."""
    model = sources.load(ModelSpec(spec=artifact.manifest.recipe.model.spec))
    image = make_input(model.preprocess)
    with ExitStack() as stack:
        sessions = [stack.enter_context(session) for session in _open(artifact, model.module, case[2])]
        feeds = [{artifact.manifest.inputs[0].name: image}] * len(sessions)
        bench = measure(sessions, feeds, batch=1, seconds=seconds)
    runs = {run.name: run for run in bench.runs}
    ratios = (ratio_interval(runs[name].blocks, runs[_ARTIFACT].blocks) for name in (_EAGER, _COMPILED))
    return (*(f"{run.p50_ms:.3f}" for run in bench.runs), *map(format_ratio, ratios), format_doubts(bench))


def _open(artifact: Artifact, module: Any, kind: str) -> Iterator[Session]:
    """Open PyTorch eager, torch.compile and the artifact, PyTorch in the artifact's precision."""
    device, threads = _target(artifact.manifest.target.device).runs_on, environment.available_cores()
    for name in (_EAGER, _COMPILED):
        own: Any = Half(module) if kind == "fp16" else copy.deepcopy(module)
        own = torch.compile(own) if name == _COMPILED else own
        yield TorchSession(own, threads=threads, name=name, device=device)
    session = open_session(artifact, threads)
    session.name = _ARTIFACT
    yield session


def _heading(reasons: dict[str, str]) -> list[str]:
    host = environment.host()
    lines = [
        "# ONNX Runtime on an NVIDIA GPU",
        "",
        "Two models with redrawn weights at batch 1, images and outputs in the host's memory. All sides of a row are",
        "timed in turns in one process, in the same precision, with TF32 off (TensorRT-RTX decides by itself). A",
        "speed-up has its 95 % bootstrap interval over blocks. Made by `python -m benchmarks.gpu`.",
        "",
        f"{host.gpu or 'No GPU'}. {describe_machine('torch', 'timm', 'onnxruntime', 'onnxruntime-gpu')}",
    ]
    for device, reason in reasons.items():
        lines += ["", f"**Not run on `{device}`:** {reason}."]
    return lines


if __name__ == "__main__":
    main()
